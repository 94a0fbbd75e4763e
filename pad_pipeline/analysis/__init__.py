"""Did the alignment work? Each file measures one thing on tensors; `model` and `patches` say whose and of what."""
