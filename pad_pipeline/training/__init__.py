"""Train the projector: read samples, batch them, compute the losses, keep checkpoints, and export the model.

`loop.train` is the entry point. It does not matter whether the `pad` command, torchrun or Ray Train starts the process.
"""
