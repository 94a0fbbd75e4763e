"""The shard format: a deterministic WebDataset tar and its Parquet index, which is the commit; run.json beside them.

Whatever knows the form of a shard, of its index or of run.json is here. The plan is in `pad_pipeline.plan`.
docs/format.md is the specification.
"""
