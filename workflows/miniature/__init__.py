"""Trains, ships and scores the miniature: small members of the five real families over the drawn world."""
