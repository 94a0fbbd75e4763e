"""Scores of what a trained model says, against the truth: boxes, captions, short answers.

Here is arithmetic on text and numbers. No model is asked here: `pad_pipeline.workflows.learning.ask` does that.
"""
