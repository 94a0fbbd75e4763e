"""Is a dataset good: labels, boxes and masks against people, thresholds, and what a sample says of the whole."""
