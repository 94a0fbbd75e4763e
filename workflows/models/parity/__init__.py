"""Compare pad's models with the code of the models' authors ("upstream"), number by number, on one image.

`check.py` goes through the models. `script.py` runs the authors' example, in a process of its own and with the Python
that has their packages. `tagger.py`, `detector.py` and `segmenter.py` run pad's stage on the same input and compare.
"""
