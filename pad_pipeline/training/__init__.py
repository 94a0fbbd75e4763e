"""Train the projector: read samples, batch them, compute the losses, keep checkpoints, and export the model.

`loop.train` is the entry point. It runs in any process and does not depend on who starts that process: the `pad`
command, torchrun or Ray Train.
"""
