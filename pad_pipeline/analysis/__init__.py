"""Did the alignment work? The studies over a trained projector, the model that they look at, their charts and drawings.

A study takes one batch after another and keeps sums, or little for each image, so that memory hardly grows. The
measures themselves are in `pad_pipeline.measures`.
"""
