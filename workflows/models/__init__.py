"""The models of a build: their settings, and the catalog and the checks of their files."""
