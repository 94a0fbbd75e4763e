"""What moves shards through a chain: in one process of this machine (`local`) or on a Ray cluster (`ray`).

Links, scheduling, attempts at shards whose process died, placement on GPUs, and progress. What a shard holds, and what
the steps of a chain do with it, is not known here.
"""
