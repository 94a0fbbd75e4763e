"""The shard format: a deterministic WebDataset tar and its Parquet index, which is the commit; run.json beside them.

Whatever reads or writes a file of a run's folder is here, but for the plan. docs/format.md is the specification.
"""
