"""Reads and writes the files of a run: shards, each a WebDataset tar and a Parquet index, and run.json.

A shard is finished when its index exists. The plan is in `pad_pipeline.plan`. docs/format.md specifies the format.
"""
