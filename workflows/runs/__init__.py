"""What all runs have in common: plan, fingerprints, resume, chain, commit.

`build` plans and carries out, `rewrite` makes runs of runs, `dry_run` estimates one. Whatever decides which steps a
shard goes through is in `chains`, `steps` and `rewrite`, which are part of the code fingerprint.
"""
