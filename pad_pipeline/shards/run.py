"""Reads and writes `run.json`: settings, models and inputs of a run. A rerun continues only with the same ones."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt

from pad_pipeline.errors import UserError
from pad_pipeline.facts import differences
from pad_pipeline.geometry import View
from pad_pipeline.records import SCHEMA_VERSION
from pad_pipeline.shards.seal import UNSEALED, seal
from pad_pipeline.storage import Folder

RUN_NAME = "run.json"


class Run(BaseModel):
    """The facts that decide the bytes of a run. The engine and the number of workers do not affect them. Another
    number of threads can change last digits, see `environment`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    kind: str
    """How the run was made: `build`, `import-coco` (or another format), or `merge` of runs made in different ways."""
    images: NonNegativeInt
    shards: NonNegativeInt
    shard_size: NonNegativeInt
    sample: NonNegativeInt = 0
    """Number of images of a random sample, which the plan has before all others; 0: it has the source's order."""
    sample_seed: NonNegativeInt = 0
    counts: dict[str, int]
    """The numbers of entries that the source left out or changed, by reason."""
    view: View
    embedding_width: int
    settings: dict[str, Any]
    """The settings of all stages, and the settings of an earlier run whose results were kept."""
    fingerprints: dict[str, str]
    """The sha256 of the plan's values, of each model's weights, and of the code that affects the bytes."""
    contents: dict[str, str] = {}
    """The sha256 of the content of a few images, by key (with the depth `sample`)."""
    plan: str = ""
    """The seal of plan.parquet."""
    accepted_code: list[str] = []
    """The sha256 of other code that made some of the shards (`accept_changed_code`)."""
    environment: dict[str, str] = {}
    """Versions of libraries, kind of processor and number of threads when the run began. Differences can change
    last digits. A rerun reports them, and goes on."""

    @classmethod
    def read(cls, folder: Folder) -> Run:
        """Read the run.json in `folder`; raise `UserError` if it is missing or has another schema version."""
        remedy = "name a folder that `pad build` or `pad import` wrote"
        if not folder.has(RUN_NAME):
            raise UserError("shards", folder, f"there is no {RUN_NAME} in it", remedy)
        try:
            data = json.loads(folder.read(RUN_NAME))
            if data.get("schema_version") != SCHEMA_VERSION:
                rule = f"it has schema version {data.get('schema_version')}; this version of pad reads {SCHEMA_VERSION}"
                raise UserError("shards", folder, rule, "use the version of pad that wrote it, or build it again")
            return cls.model_validate({name: value for name, value in data.items() if name != "seal"})
        except (ValueError, AttributeError, RecursionError) as error:
            reason = str(error).splitlines()[0]
            rule = f"it is not a run.json of pad's ({reason})"
            raise UserError("shards", f"{folder}/{RUN_NAME}", rule, remedy) from error

    def write(self, folder: Folder, first: bool = False) -> None:
        """Write run.json into `folder`, sealed (see `seal`); with `first`, unless there is one by now."""
        with folder.commit(RUN_NAME, first=first) as partial:
            facts = json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True)
            # The seal is the last entry, so that no text in a setting can be mistaken for it.
            partial.write_text(f'{facts.removesuffix("}").rstrip()},\n  "seal": "{UNSEALED}"\n}}\n')
            seal(partial)

    @property
    def name(self) -> str:
        """A short hash over the planned images. Files of other programs have it, so that those of another run are
        recognized."""
        return self.fingerprints.get("inputs", "")[:16]

    @property
    def identity(self) -> str:
        """A short sha256 of the settings and weights, but not of inputs and code. Each index has it, so that a shard of
        another run is recognized."""
        kept = self.model_dump(mode="json", include={"schema_version", "kind", "view", "embedding_width", "settings"})
        weights = {name: value for name, value in self.fingerprints.items() if name not in ("inputs", "code")}
        return hashlib.sha256(json.dumps([kept, weights], sort_keys=True).encode()).hexdigest()[:16]

    def differences(self, other: Run) -> list[str]:
        """Return `name: value -> value in the other run` for each fact that differs and affects the data. The content
        of a file that could not be read for one of the two runs is unknown, and so does not differ."""
        unrelated = {"counts", "environment", "accepted_code", "plan"}
        unknown = {f"contents.{key}" for run in (self, other) for key, sha256 in run.contents.items() if not sha256}
        old, new = (run.model_dump(mode="json", exclude=unrelated) for run in (self, other))
        return differences(old, new, unknown)


def is_run(folder: Folder) -> bool:
    """Return whether a folder holds a run of any version."""
    try:
        data = json.loads(folder.read(RUN_NAME)) if folder.has(RUN_NAME) else None
    except (ValueError, RecursionError):
        return False
    return isinstance(data, dict) and {"schema_version", "fingerprints", "shard_size"} <= data.keys()
