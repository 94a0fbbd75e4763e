"""What is told of each image in a run, to compare runs by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pad_pipeline.shards.reader import open_shards


def found(folder: Path) -> dict[str, Any]:
    """Image id -> caption, dialogue and regions."""
    shards = open_shards(folder)
    metas = [shards.sample(name, row).meta for name, row in shards.rows() if row["status"] != "failed"]
    return {meta["id"]: [meta[name] for name in ("caption", "conversations", "regions")] for meta in metas}
