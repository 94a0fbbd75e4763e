"""The miniature at work: scores it and what is trained on it against exact truth; and `pad demo`."""
