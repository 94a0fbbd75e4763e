"""The miniature: a drawn world in which the label of every pixel is known, and five small models for it.

`score` compares shards with the truth. The code that trained the models is in the repository, in `examples/miniature`.
"""
