"""Exports shards to the formats of other tools: COCO, FiftyOne, Parquet, and datasets on the Hugging Face hub.

A new format is a new file here, and a command in `pad_pipeline.workflows.commands.export`. Every export writes with
`target.Target`, which writes no file outside the folder.
"""
