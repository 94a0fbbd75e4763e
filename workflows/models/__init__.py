"""The models of a run: their settings from presets and TOML files, and the catalog and the checks of their files."""
