"""How a run is made: the options that `pad build` and `pad import` have in common. Imports nothing heavy."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from pad_pipeline.errors import UserError
from pad_pipeline.workflows.runs.fingerprint import cores

if TYPE_CHECKING:
    from pad_pipeline.plan import Depth
    from pad_pipeline.stages.decode import RedoFrom
    from pad_pipeline.workflows.engine.local import Engine
    from pad_pipeline.workflows.engine.placement import Placement, Size


@dataclass(frozen=True)
class RunOptions:
    """How a run is made. None of this but `shard_size`, `limit` and `redo_from` decides a byte."""

    shard_size: int = 512
    """Images in one shard."""
    limit: int | None = None
    """Take the first images alone."""
    redo_from: RedoFrom = "tag"
    """For images from PAD shards: the first stage that is done again."""
    depth: Depth = "sample"
    """What the plan notes of each file, to know it again."""
    engine: Engine = "local"
    address: str = ""
    """Of a Ray cluster."""
    workers: int = 0
    """See `deal_out`."""
    placement: Placement = "auto"
    pools: dict[str, Size] = field(default_factory=dict)
    threads: int = 0
    """CPU threads of each model; 0 for all cores, shared between workers."""
    fork: Path | str | None = None
    """Leave the run as it is, and make this one from it."""
    accept_changed_code: bool = False
    retry_failed: bool = False
    """Try the failed images of finished shards again, and nothing else."""
    breaker: int = 100
    """Stop when a stage fails for this many images in a row; 0 never does."""

    @property
    def used_threads(self) -> int:
        """CPU threads of each model."""
        if self.threads:
            return self.threads
        return max(1, cores() // max(self.workers, 1)) if self.engine == "ray" else cores()


_LIMIT = re.compile(r"(\d{1,12})|(\d{1,3}(?:\.\d+)?)%")


def failures_allowed(max_failed: str, images: int) -> int:
    """Return how many of `images` may fail: `max_failed` is a count, or a share such as `5%`.

    Raises:
        UserError: it is neither.
    """
    found = _LIMIT.fullmatch(max_failed)
    if not found or (found[2] and float(found[2]) > 100):
        raise UserError("max_failed", max_failed, "it should be a count or a share", "write for instance 100 or 5%")
    return int(found[1]) if found[1] else int(Fraction(found[2]) * images // 100)
