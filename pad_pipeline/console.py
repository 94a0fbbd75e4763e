"""The two streams that people read: results on standard output, everything else on standard error. Color only where
a terminal is."""

from __future__ import annotations

from rich.console import Console

console = Console()
errors = Console(stderr=True)
"""Progress, notes and warnings; a quiet `pad` prints none of it, but for the error that ends a command."""
