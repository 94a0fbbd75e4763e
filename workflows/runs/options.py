"""The options of a run. This module does not import torch, because the command line reads it."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pad_pipeline.choices import RerunDepth
from pad_pipeline.errors import UserError
from pad_pipeline.machine import cores
from pad_pipeline.roles import RedoFrom
from pad_pipeline.workflows.engine.ray_session import Cluster, seconds_of

EngineName = Literal["ray", "local"]


class Part(NamedTuple):
    """A part of a run: a range of its shards."""

    number: int
    """Number of the part, from 1 on."""
    parts: int
    """Number of parts."""

    @classmethod
    def parse(cls, text: str) -> Part:
        """Return the part that a text such as `3/8` names.

        Raises:
            UserError: it is not I/N with 1 <= I <= N.
        """
        found = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", text, re.ASCII)
        if not found or int(found[1]) > int(found[2]):
            rule = "it should be I/N: part I of N parts, counted from 1"
            raise UserError("part", text, rule, "write for instance 3/8")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        """Return the part as names of files have it, such as `3-of-8`."""
        return f"{self.number}-of-{self.parts}"

    def shards(self, count: int) -> range:
        """Return the numbers of the part's shards, of a run with `count` shards."""
        return range((self.number - 1) * count // self.parts, self.number * count // self.parts)


class RunOptions(BaseModel):
    """The options of a run. Only `shard_size`, `limit` and `redo_from` affect the bytes of its shards."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    shard_size: int = Field(512, ge=1, le=1_000_000)
    """Images in one shard."""
    limit: int | None = Field(None, ge=1, le=10**12)
    """Take only this many images, the first of the source."""
    sample: int = Field(0, ge=0, le=1_000_000)
    """Annotate only a random sample of about so many images (whole shards), spread over folders and sizes. They come
    first in the plan, so the same command without this option annotates the rest afterwards. 0: all images."""
    sample_seed: int = Field(0, ge=0)
    """Another seed gives another sample."""
    redo_from: RedoFrom = "tag"
    """For images from PAD shards: the first stage that runs again. The results of earlier stages are kept."""
    depth: RerunDepth = "sample"
    """What a rerun compares to recognize the images. `names`: their names. `sizes`: sizes too. `sample`: the sha256 of
    64 images too. `full`: the sha256 of every image too (reads everything once). `kept`: a rerun lists no images, keeps
    the plan in the folder, and compares the sha256 of its sample only."""
    engine: EngineName = "local"
    """Where the stages run. `ray`: on Ray, on this machine or a cluster. `local`: in one process on this machine."""
    isolated: bool = False
    """With the engine `local`: the models work in a child process, and an image that kills the child fails alone. The
    command line sets it. From Python it is off, because a child imports and loads everything again, and does not see
    changes that the caller made in this process."""
    address: str = ""
    """Address of a running Ray cluster, such as auto or ray://host:10001; empty starts Ray on this machine."""
    workers: str = ""
    """Number of Ray workers with models: at most 8 with `8`; `2-8` also stops the run if there are fewer than 2 for
    longer than `wait`. On a cluster that grows, missing ones are requested, and begin when nodes join. Empty: one for
    each GPU; with `gpus` 0, one for each node of a cluster. On one machine without a GPU, or without models: as many as
    its cores, its memory and the run's shards allow."""
    gpus: float | None = Field(None, ge=0, le=1)
    """GPUs that each worker with models reserves: 1, or a share such as 0.5. 0 computes on the CPU. Empty: 1; on this
    machine alone, 0 if it has no GPU. A run on a cluster without a GPU waits for the first one."""
    wait: str = "10m"
    """How long a run waits for workers that the cluster has no room for, such as 30s, 10m or 2h. Then it stops with
    exit code 4."""
    threads: int = Field(0, ge=0, le=1024)
    """CPU threads of each model. 0: all cores of this machine, divided by its number of workers (by one with `engine`
    local)."""
    part: str = ""
    """One part of the run, such as 3/8: the third of eight equal ranges of its shards. Parts may run at the same time,
    on machines that have nothing in common but `out`. All parts together write what one run writes."""
    fork: Path | str | None = None
    """New folder or URL for this run. The run in `out` stays as it is, and its shards that would come out the same are
    copied."""
    accept_changed_code: bool = False
    """Continue a run that another version of pad began."""
    strict: bool = False
    """Stop before the first shard is written if the source left anything out or changed anything, or if an image can't
    be used."""
    private_addresses: bool = False
    """Read images whose URLs lead to this machine or to a private network. By default they fail, because a list from
    somebody else could send pad anywhere. The server of the folder that paths are relative to is read anyway."""
    retry_failed: bool = False
    """Try the failed images of finished shards again, and nothing else."""
    breaker: int = Field(100, ge=0)
    """Stop when a stage fails for this many images in a row. 0 never stops."""

    @model_validator(mode="after")
    def _sample_of_all(self) -> Self:
        for name in ("part", "fork", "limit"):
            if self.sample and getattr(self, name):
                rule = f"a sample is drawn from all images, so it can't go with `{name}`"
                raise UserError("sample", self.sample, rule, "leave one of them out")
        return self

    @field_validator("workers", mode="before")
    @classmethod
    def _as_text(cls, workers: object) -> str:
        if workers:
            parse_workers(str(workers))
        return str(workers or "")

    @field_validator("wait")
    @classmethod
    def _is_duration(cls, wait: str) -> str:
        seconds_of("wait", wait)
        return wait

    @property
    def worker_range(self) -> tuple[int, int]:
        """Least and greatest number of workers; (1, 0) follows the cluster.

        Raises:
            UserError: `workers` is neither a number nor a range.
        """
        low, high = parse_workers(self.workers) if self.workers else (1, 0)
        return (low if "-" in self.workers else 1), high

    @property
    def cluster(self) -> Cluster:
        """The Ray cluster, and what the run wants from it."""
        return Cluster(self.address, self.gpus, seconds_of("wait", self.wait))

    @property
    def share(self) -> Part | None:
        """The part, or None for the whole run.

        Raises:
            UserError: `part` is no part.
        """
        return Part.parse(self.part) if self.part else None

    @property
    def sampled_images(self) -> int:
        """Number of images in the sample: `sample`, rounded up to whole shards."""
        return -(-self.sample // self.shard_size) * self.shard_size

    @property
    def used_threads(self) -> int:
        """Number of CPU threads of each model, `threads`; if that is 0, computed from the cores."""
        workers = max(self.worker_range[1], 1) if self.engine == "ray" else 1
        return self.threads or max(1, cores() // workers)


def parse_workers(workers: str) -> tuple[int, int]:
    """Parse a number of workers, or a range: `4` gives (4, 4), and `2-8` gives (2, 8).

    Raises:
        UserError: `workers` is neither.
    """
    low, dash, high = workers.partition("-")
    if low.isdecimal() and (not dash or high.isdecimal()) and 1 <= int(low) <= int(high or low) <= 100_000:
        return int(low), int(high or low)
    raise UserError("workers", workers, "it should be a number or a range", "write for instance 4, or 2-8")


_LIMIT = re.compile(r"(\d{1,12})|(\d{1,3}(?:\.\d+)?)%")


def failures_allowed(max_failed: str, images: int) -> int:
    """Return how many images may fail, out of `images`. `max_failed` is a count, or a share such as `5%`.

    Raises:
        UserError: `max_failed` is neither a count nor a share.
    """
    found = _LIMIT.fullmatch(max_failed)
    if not found or (found[2] and float(found[2]) > 100):
        raise UserError("max_failed", max_failed, "it should be a count or a share", "write for instance 100 or 5%")
    return int(found[1]) if found[1] else int(Fraction(found[2]) * images // 100)
