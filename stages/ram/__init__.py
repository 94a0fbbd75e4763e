"""The taggers RAM and RAM++ ("recognize anything model"), for inference.

Modules and tensors have the names and shapes of the official checkpoints (xinyu1205/recognize-anything).
"""
