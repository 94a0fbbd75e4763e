"""What a trained model says, against the truth: boxes, captions, answers. Arithmetic on text; no model here."""
