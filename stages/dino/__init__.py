"""Grounding DINO of transformers, changed to encode an image once for all its prompts; and the conversion of official
checkpoints."""
