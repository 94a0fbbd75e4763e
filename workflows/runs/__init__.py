"""This package carries out a run (`build`, or `rewrite` from other runs) or estimates it (`dry_run`).

`chains`, `shard_io` and `rewrite` decide which operations a shard passes. They are part of the code fingerprint.
"""
