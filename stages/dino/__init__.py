"""Grounding DINO: the model of transformers, encoding each image once for all its prompts, and official checkpoints."""
