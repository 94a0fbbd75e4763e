"""Grounding DINO: transformers' model, the features of an image shared by its prompts, and official checkpoints."""
