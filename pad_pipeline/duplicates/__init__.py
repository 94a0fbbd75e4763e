"""Copies of images within a run, and images of a run that an evaluation set has too: by file, and by appearance."""
