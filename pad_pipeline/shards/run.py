"""`run.json`: what a run's folder was made with, so that a rerun continues it or refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from pad_pipeline.errors import UserError
from pad_pipeline.geometry import View
from pad_pipeline.records import SCHEMA_VERSION
from pad_pipeline.shards.files import atomic_path

RUN_NAME = "run.json"


class Run(BaseModel):
    """The facts that decide a run's bytes. The engine and the number of workers are not among them."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    kind: str
    """What made it: `build` or `import-coco`."""
    images: NonNegativeInt
    shards: NonNegativeInt
    shard_size: NonNegativeInt
    counts: dict[str, int]
    """What the source left out or altered, by reason."""
    view: View
    embedding_width: int
    settings: dict[str, Any]
    """Every setting of every stage."""
    fingerprints: dict[str, str]
    """sha256 of the inputs' plan and of each model's weights; `code` is the version of this package."""

    @classmethod
    def read(cls, folder: Path, field: str = "shards") -> Run:
        """The run in `folder`.

        Raises:
            UserError: there is none, or it is of another schema version.
        """
        path = folder / RUN_NAME
        remedy = "name a folder that `pad build` or `pad import` wrote"
        if not path.is_file():
            raise UserError(field, folder, f"there is no {RUN_NAME} in it", remedy)
        try:
            data = json.loads(path.read_bytes())
            if data.get("schema_version") != SCHEMA_VERSION:
                rule = f"it has schema version {data.get('schema_version')}, and this pad reads {SCHEMA_VERSION}"
                raise UserError(field, folder, rule, "use the version of pad that wrote it, or build it anew")
            return cls.model_validate(data)
        except (ValueError, AttributeError, RecursionError, ValidationError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(field, path, f"it is not a run.json of pad's ({reason})", remedy) from error

    def write(self, folder: Path) -> None:
        """Write it into `folder`, atomically."""
        with atomic_path(folder / RUN_NAME) as partial:
            partial.write_text(json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True) + "\n")

    def differences(self, other: Run) -> list[str]:
        """`name: mine -> other's` for every fact that differs. What the source left out is no part of the data."""
        mine, others = (_flat(run.model_dump(mode="json", exclude={"counts"})) for run in (self, other))
        return [
            f"{name}: {mine.get(name, 'absent')} -> {others.get(name, 'absent')}"
            for name in sorted(mine.keys() | others.keys())
            if mine.get(name) != others.get(name)
        ]


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, entry in value.items():
        if isinstance(entry, dict):
            flat |= _flat(entry, f"{prefix}{name}.")
        else:
            flat[prefix + name] = entry
    return flat
