"""Training and what comes after it: start a training, analyze, ask and score, experiment, chat.

These are what the commands do, without their options. The loops themselves are in `pad_pipeline.training` and
`pad_pipeline.analysis`.
"""
