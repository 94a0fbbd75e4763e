"""A drawn world with exact truth: what is in each image, and which pixels it is; and the five small models for it.

What trains and scores those models is in `pad_pipeline.workflows.miniature`.
"""
