"""Models of the user's own: their protocol, their settings, how their class is loaded, and the stages that run them."""
