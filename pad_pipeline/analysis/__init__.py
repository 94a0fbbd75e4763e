"""Did the alignment work? The studies over a trained projector, the model that they look at, their charts and drawings.

A study takes one batch after another and keeps sums, so that memory does not grow with the images. The measures
themselves are in `pad_pipeline.measures`.
"""
