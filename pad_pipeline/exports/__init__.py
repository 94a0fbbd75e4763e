"""Shards in the formats that other tools open: COCO, FiftyOne, Parquet, a dataset of the Hugging Face hub.

A new format is a new file here, and a command in `pad_pipeline.workflows.commands.export`. Everything is
written through `target.Target`, which keeps names below the folder.
"""
