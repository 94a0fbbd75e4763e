"""Measurements on a GPU, in order of worth, of which a cut loses nothing: `python -m benchmarks.gpu`."""
