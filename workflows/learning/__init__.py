"""Training and what comes after it: start a training, analyze, ask and score, experiment, chat.

Each file is what one command does, without its options. The loops themselves are in `pad_pipeline.training` and
`pad_pipeline.analysis`.
"""
