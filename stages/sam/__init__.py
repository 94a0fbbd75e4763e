"""Segment Anything: official SAM checkpoints, and SAM, SAM-HQ and SAM 2.1 of transformers."""
