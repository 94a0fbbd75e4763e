"""Measures of alignment, one in each file: Align, entropy, matching pursuit, neighbor overlap, vocabulary.

A measure is arithmetic on tensors, with its formula and source. It knows nothing of models, shards and settings.
"""
