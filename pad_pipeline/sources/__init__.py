"""Where images come from: each source yields `Planned` images in a fixed order and counts what it leaves out.

A new format is a new file here, with the protocol of `base.Source`, and a line in `open.open_source`.
"""
