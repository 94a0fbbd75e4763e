"""The miniature: drawn scenes with a known label for every pixel, and five small models for them.

`score` compares shards with the truth. `examples/miniature` in the repository trains the models.
"""
