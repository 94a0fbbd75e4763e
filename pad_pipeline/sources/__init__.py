"""Where images come from: each source yields `Planned` images in a fixed order and counts what it leaves out."""
