"""What code and what libraries a run was made with."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pad_pipeline import __version__

_ROOT = Path(__file__).parents[1]
_NO_BYTES = tuple(
    f"pad_pipeline/{name}/" for name in ("training", "analysis", "evaluation", "exports", "report", "miniature")
)
"""Code that reads shards, or draws: no byte of a shard comes from it."""
_LIBRARIES = ("torch", "torchvision", "transformers", "tokenizers", "numpy", "pillow", "pycocotools", "pyarrow")


def code_fingerprint() -> str:
    """Version, and a short sha256 over the source files that decide what a shard holds."""
    digest = hashlib.sha256()
    files = [*(_ROOT / "pad_pipeline").rglob("*.py"), *(_ROOT / "stages").rglob("*.py"), _ROOT / "stages/unboxable.txt"]
    for path in sorted(files):
        name = path.relative_to(_ROOT).as_posix()
        if not name.startswith(_NO_BYTES):
            digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return f"{__version__}+{digest.hexdigest()[:12]}"


def environment(threads: int) -> dict[str, str]:
    """Versions and threads: what can move last digits without being a setting."""
    found = {"python": platform.python_version(), "machine": platform.machine(), "threads": str(threads)}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
