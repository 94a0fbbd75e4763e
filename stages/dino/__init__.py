"""Grounding DINO: the model of transformers, which here encodes an image once for all its prompts, and the conversion
of official checkpoints."""
