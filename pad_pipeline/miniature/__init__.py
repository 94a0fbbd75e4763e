"""A drawn world with exact truth: what is in each picture, and which pixels it is."""
