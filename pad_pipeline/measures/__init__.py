"""One measure of alignment in each file: Align, entropy, matching pursuit, neighbor overlap, vocabulary.

A measure is arithmetic on tensors, with its formula and source. Models, shards and settings are not known here.
"""
