"""The shard format: a deterministic WebDataset tar and its Parquet index, which is the commit."""
