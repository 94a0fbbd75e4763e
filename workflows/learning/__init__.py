"""Implement the commands that train models, and analyze, score, compare and question them.

The loops over samples and images are in `pad_pipeline.training` and `pad_pipeline.analysis`.
"""
