"""Shows a run to people: the HTML report of `pad report`, and the drawing of one image by `pad show`."""
