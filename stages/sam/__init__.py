"""Segment Anything models: SAM from official checkpoints; SAM, SAM-HQ and SAM 2.1 from transformers."""
