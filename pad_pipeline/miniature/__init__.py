"""A drawn world with exact truth: what is in each image, and which pixels it is."""
