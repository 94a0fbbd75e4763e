"""What the Patch-Aligned Dataset is, and what is learnt from it. No Ray, no annotation model."""

__version__ = "0.1.0"
