"""The projector's training: samples to examples, batches and losses; checkpoints; what is exported.

`loop.train` is the entry. It runs in any process: who starts it, and where, is not known here.
"""
