"""Start trainings, and analyze, score, compare and question the trained models.

These modules do the work of the commands, without their options. The loops themselves are in `pad_pipeline.training`
and `pad_pipeline.analysis`.
"""
