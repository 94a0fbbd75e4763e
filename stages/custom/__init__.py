"""Support for a user's own models: the protocol, the settings with the import of the class, and the stages."""
