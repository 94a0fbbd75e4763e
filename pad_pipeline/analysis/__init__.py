"""The analysis of a trained projector: did the alignment work?

This package has the studies, the model that they analyze, and their charts. The measures are in
`pad_pipeline.measures`.
"""
