"""Read, flatten and compare the facts that a command notes as JSON in its output folder: settings, inputs, models."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pad_pipeline.errors import UserError


def read_facts(path: Path) -> dict[str, Any] | None:
    """Return the facts in a JSON file of an output folder, or None if the file is missing.

    Raises:
        UserError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        facts = json.loads(path.read_bytes())
        if not isinstance(facts, dict):
            raise ValueError
    except (ValueError, RecursionError) as error:
        raise UserError("out", path, "it can't be read", "name another `out`") from error
    return facts


def flatten(facts: Any, name: str = "") -> dict[str, Any]:
    """Return nested facts as one dictionary with dotted names: `{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    if not isinstance(facts, dict):
        return {name: facts}
    parts = (flatten(value, f"{name}.{key}" if name else key) for key, value in facts.items())
    return {dotted: value for part in parts for dotted, value in part.items()}


def differences(old: Any, new: Any, ignored: Collection[str] = ()) -> list[str]:
    """Return `name: old -> new` for every fact that differs, sorted by name, without the dotted names `ignored`.

    A fact that is missing on one side is shown as `absent`. It counts as equal to None.
    """
    before, after = flatten(old), flatten(new)
    return [
        f"{name}: {before.get(name, 'absent')} -> {after.get(name, 'absent')}"
        for name in sorted(before.keys() | after.keys())
        if name not in ignored and before.get(name) != after.get(name)
    ]
