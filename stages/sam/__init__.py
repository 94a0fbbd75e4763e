"""Segment Anything: official SAM checkpoints, and the SAM, SAM-HQ and SAM 2.1 of transformers."""
