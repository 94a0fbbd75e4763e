"""Draws images of a run and their regions: the HTML report of `pad report`, and the image of `pad show`."""
