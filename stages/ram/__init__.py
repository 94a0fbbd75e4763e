"""RAM and RAM++: the two recognize-anything taggers, inference only, with the names and shapes of the official
checkpoints (xinyu1205/recognize-anything)."""
