"""Trains the five small models of the drawn world, which ship with pad, anew."""
