"""Models of a user's own: the contract that they keep, their settings, how a class is found, the stages around them."""
