"""Shards in the formats that other tools open: COCO, FiftyOne, Parquet, a dataset of the Hugging Face hub."""
