"""Score a trained model's boxes, captions and short answers against the true ones.

These modules compute with texts and numbers only; `pad_pipeline.workflows.learning.ask` asks the model.
"""
