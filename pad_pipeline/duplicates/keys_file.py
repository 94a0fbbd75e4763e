"""The file of the images that `pad duplicates` found: a JSON object in each line, which `pad filter` reads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from pad_pipeline.duplicates.groups import Duplicate
from pad_pipeline.errors import UserError
from pad_pipeline.shards.run import Run
from pad_pipeline.storage import atomic_write


def write_keys(path: Path, found: Iterable[Duplicate], run: Run) -> None:
    """Write a line for each copy: its key and id, the image that it is a copy of, and the run that has the key."""
    with atomic_write(path, durable=False) as partial, partial.open("w", encoding="utf-8") as out:
        for one in found:
            facts = {
                "key": one.image.name,
                "id": one.image.id,
                "of": one.of.name,
                "leak": one.leak,
                "exact": one.exact,
                "distance": one.distance,
                "run": run.name,
            }
            out.write(json.dumps(facts) + "\n")


def keys_of(field: str, path: Path, lines: Iterable[str], run: Run) -> list[str]:
    """Return the keys in the lines of a file: each a key, or a JSON object with `key`.

    Raises:
        UserError: a line has no key, or was written for another run than `run`. The error names the parameter `field`.
    """
    keys = []
    for line in lines:
        if not line.startswith("{"):
            keys.append(line)
            continue
        try:
            facts = json.loads(line)
        except (ValueError, RecursionError):
            facts = {}
        if not isinstance(facts.get("key"), str):
            raise UserError(field, path, f"a line of it has no key: {line[:80]}", "repair the line, or take it out")
        if facts.get("run", run.name) != run.name:
            rule = "`pad duplicates` wrote it for another run, whose keys may stand for other images here"
            raise UserError(field, path, rule, "run `pad duplicates` for this run")
        keys.append(facts["key"])
    return keys
