"""Measures of how well vision tokens align with an LLM's words, one in each file.

Each measure computes with tensors only, and states its formula and source. None uses models, shards or settings.
"""
