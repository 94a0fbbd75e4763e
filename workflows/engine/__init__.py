"""Engines move shards through a chain: in one process on this machine (`local`) or on a Ray cluster (`ray`).

This package has links, scheduling, attempts at shards whose process died, placement on GPUs, and progress. It does not
know what a shard contains, or what the operations of a chain do with a shard.
"""
