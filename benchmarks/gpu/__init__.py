"""Measurements on a GPU, in order of worth, of which a cut loses nothing: `python -m benchmarks.gpu`."""

import time

BEGAN = time.time()
"""The start of the run, before the imports, which take long on a machine that has never done them."""
