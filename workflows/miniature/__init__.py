"""The laboratory of the miniature: trains its five models, scores them, compares trainings; and `pad demo`."""
