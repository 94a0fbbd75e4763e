"""Scores the miniature models, and models trained with them, on drawn scenes with known truth; and `pad demo`."""
