"""The analysis of a trained projector: did the alignment work?

Here are the studies, the model that they analyze, and their charts and drawings. A study takes batch after batch and
keeps sums, or little data for each image, so that memory hardly grows. The measures are in `pad_pipeline.measures`.
"""
