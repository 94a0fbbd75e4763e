"""A run as people look at it: the HTML report of `pad report`, and the drawing of one image of `pad show`."""
