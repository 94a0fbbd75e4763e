"""Carry out a run: `build`, or `rewrite` from other runs; or estimate it: `dry_run`.

`chains`, `steps` and `rewrite` decide which steps a shard passes; they are part of the code fingerprint.
"""
