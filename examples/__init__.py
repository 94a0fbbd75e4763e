"""Packages and programs beside pad: none of them is installed with it."""
