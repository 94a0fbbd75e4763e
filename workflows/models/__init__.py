"""Which models a run uses: presets and TOML files, the official files and where they are, and what they hash to."""
