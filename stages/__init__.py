"""One annotation step per file. Each stage is a callable over a shard in memory; none knows of Ray."""
