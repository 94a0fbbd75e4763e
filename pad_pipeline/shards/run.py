"""`run.json`: what a run's folder was made with, so that a rerun continues it or refuses."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from pad_pipeline.errors import UserError
from pad_pipeline.geometry import View
from pad_pipeline.records import SCHEMA_VERSION
from pad_pipeline.shards.seal import UNSEALED, seal
from pad_pipeline.storage import Folder

RUN_NAME = "run.json"


class Run(BaseModel):
    """The facts that decide a run's bytes. The engine and the number of workers are not among them."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    kind: str
    """What made it: `build`, `import-coco`, or `merge` of runs that were made differently."""
    images: NonNegativeInt
    shards: NonNegativeInt
    shard_size: NonNegativeInt
    counts: dict[str, int]
    """What the source left out or altered, by reason."""
    view: View
    embedding_width: int
    settings: dict[str, Any]
    """Every setting of every stage, and what of an earlier run was kept."""
    fingerprints: dict[str, str]
    """sha256 of the inputs' plan, of each model's weights and of the code that decides bytes."""
    contents: dict[str, str] = {}
    """sha256 of the content of a few images, by key (the depth `sample`)."""
    plan: str = ""
    """The seal of plan.parquet."""
    accepted_code: list[str] = []
    """Other code that some of its shards were made with (`accept_changed_code`)."""
    environment: dict[str, str] = {}
    """Versions of libraries, kind of processor and threads that the run began with. They can move last digits; a rerun
    with others is told, and not refused."""

    @classmethod
    def read(cls, folder: Folder) -> Run:
        """The run in `folder`.

        Raises:
            UserError: there is none, or it is of another schema version.
        """
        where, remedy = f"{folder}/{RUN_NAME}", "name a folder that `pad build` or `pad import` wrote"
        if not folder.has(RUN_NAME):
            raise UserError("shards", folder, f"there is no {RUN_NAME} in it", remedy)
        try:
            data = json.loads(folder.read(RUN_NAME))
            if data.get("schema_version") != SCHEMA_VERSION:
                rule = f"it has schema version {data.get('schema_version')}, and this pad reads {SCHEMA_VERSION}"
                raise UserError("shards", folder, rule, "use the version of pad that wrote it, or build it anew")
            return cls.model_validate({name: value for name, value in data.items() if name != "seal"})
        except (ValueError, AttributeError, RecursionError, ValidationError) as error:
            reason = str(error).splitlines()[0]
            raise UserError("shards", where, f"it is not a run.json of pad's ({reason})", remedy) from error

    def write(self, folder: Folder) -> None:
        """Write it into `folder`, sealed."""
        with folder.commit(RUN_NAME) as partial:
            facts = json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True)
            # The seal stands last, where no text of a setting can be taken for it.
            partial.write_text(f'{facts.removesuffix("}").rstrip()},\n  "seal": "{UNSEALED}"\n}}\n')
            seal(partial)

    @property
    def identity(self) -> str:
        """A short sha256 over what all shards of the run have in common, wherever their images come from: written into
        each index, it tells them from shards of another run."""
        kept = self.model_dump(mode="json", include={"schema_version", "kind", "view", "embedding_width", "settings"})
        weights = {name: value for name, value in self.fingerprints.items() if name not in ("inputs", "code")}
        return hashlib.sha256(json.dumps([kept, weights], sort_keys=True).encode()).hexdigest()[:16]

    def differences(self, other: Run) -> list[str]:
        """`name: mine -> other's` for every fact that differs. What the source left out is no part of the data."""
        facts = {"counts", "environment", "accepted_code", "plan"}
        mine, others = (_flat(run.model_dump(mode="json", exclude=facts)) for run in (self, other))
        return [
            f"{name}: {mine.get(name, 'absent')} -> {others.get(name, 'absent')}"
            for name in sorted(mine.keys() | others.keys())
            if mine.get(name) != others.get(name)
        ]


def is_run(folder: Folder) -> bool:
    """Whether a folder holds a run, of whatever version."""
    if not folder.has(RUN_NAME):
        return False
    try:
        data = json.loads(folder.read(RUN_NAME))
    except (ValueError, RecursionError):
        return False
    return isinstance(data, dict) and {"schema_version", "fingerprints", "shard_size"} <= data.keys()


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, entry in value.items():
        if isinstance(entry, dict):
            flat |= _flat(entry, f"{prefix}{name}.")
        else:
            flat[prefix + name] = entry
    return flat
