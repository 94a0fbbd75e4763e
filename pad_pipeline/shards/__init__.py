"""The format of a run: shards, each a deterministic WebDataset tar and a Parquet index, and run.json.

A shard is committed when its index is there. All code that knows the form of a shard, its index or run.json is in this
package; the plan is in `pad_pipeline.plan`. docs/format.md is the specification.
"""
