"""What the Patch-Aligned Dataset is, and what is learned from it.

The modules beside this one know nothing of Ray and run no annotation model. Annotation is in
`pad_pipeline.stages`, and what the commands do is in `pad_pipeline.workflows`.
"""

__version__ = "0.1.0"
