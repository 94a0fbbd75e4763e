"""Grounding DINO: transformers' model, the features of a picture shared by its prompts, and official checkpoints."""
