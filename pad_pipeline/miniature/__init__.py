"""A drawn world with exact truth: what is in each image, and which pixels it is; and the five small models for it.

`score` compares shards with the truth. What trained the models is in the
repository, in `examples/miniature`.
"""
