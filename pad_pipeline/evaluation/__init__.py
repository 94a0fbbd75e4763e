"""Scores of a trained model's answers: boxes, captions, short answers, each compared with the truth.

This package only computes with text and numbers; `pad_pipeline.workflows.learning.ask` asks the model.
"""
