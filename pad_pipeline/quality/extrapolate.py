"""Extrapolates from a random sample of images to all of them: regions, labels, storage, failures, time."""

from __future__ import annotations

import json
import math
from typing import NamedTuple

import numpy as np
from rich.filesize import decimal

from pad_pipeline.errors import UserError
from pad_pipeline.quality.verdicts import wilson
from pad_pipeline.records import MEMBERS, IndexRow, shard_name
from pad_pipeline.shards.reader import ShardFolder
from pad_pipeline.shards.run import is_run
from pad_pipeline.storage import folder_at

_RESAMPLES = 200
_PADDING = 512 + 256
_METRICS = "metrics.jsonl"
_WITHOUT_MODEL = ("plan", "decode", "patchify", "write")
"""Stages that compute on the CPU beside the models."""
_WORKERS = {1: "one worker", 8: "8 workers"}
_LEAST = 3
"""The fewest entries of the metrics that give an interval of the time."""
_Z = 1.959964
"""Standard deviations of a normal distribution that hold 95% of it."""


class Extrapolated(NamedTuple):
    """What all images would give, with its 95% interval; NaN bounds if the sample says nothing of them."""

    what: str
    value: float
    low: float
    high: float

    @property
    def texts(self) -> tuple[str, str]:
        """The value and its interval as texts."""
        kinds = {"bytes": _bytes_text, "hours": _hours_text, "regions per": "{:.3g}".format}
        show = next((kind for begin, kind in kinds.items() if self.what.startswith(begin)), "{:,.0f}".format)
        known = not math.isnan(self.high) and self.low != self.high
        return show(self.value), f"{show(self.low)} to {show(self.high)}" if known else ""


def _hours_text(value: float) -> str:
    return f"{value:,.1f} h" if value >= 1 else f"{60 * value:.0f} min" if value >= 1 / 60 else f"{3600 * value:.0f} s"


def _bytes_text(value: float) -> str:
    return decimal(round(value))


def sample_in(out: str) -> ShardFolder | None:
    """Return the run in a folder or URL if it has a sample that is finished; otherwise None."""
    if not is_run(folder_at(out)):
        return None
    shards = ShardFolder(out)
    return shards if _sampled(shards) else None


def _sampled(shards: ShardFolder) -> list[str]:
    """Return the names of the shards that hold the sample; none while one of them is not finished. Within the sample,
    images stand in the source's order, so that a part of it is not random."""
    run = shards.run
    count = -(-min(run.sample, run.images) // max(run.shard_size, 1))
    names = [shard_name(number) for number in range(count)]
    return names if set(names) <= set(shards.names) else []


def extrapolate(shards: ShardFolder) -> tuple[int, list[Extrapolated]]:
    """Extrapolate from the sample in the first shards of a run to all images of its plan.

    The images of the sample are as good as random, so counts are their mean times the number of images; failures have
    Wilson's interval. Distinct labels follow Chao and others (2014, Ecological Monographs 84, formula for incidences,
    with Chao2), with the spread of bootstrap samples. Hours follow from the run's metrics, and their interval from its
    minutes.

    Returns:
        The number of images that are known, and one entry for each measure.

    Raises:
        UserError: there is no sample that is finished, or a shard is damaged.
    """
    names, total = _sampled(shards), shards.run.images
    if not names:
        rule = "there is no random sample in it that is finished"
        raise UserError("shards", shards.folder, rule, "build it with a `sample`")
    placed = [(name, row) for name in names for row in shards.index(name)]
    rows = [row for _, row in placed]
    labels = [
        {region["label"] for region in shards.sample(name, row, image=False).meta["regions"]}
        for name, row in placed
        if row["status"] != "failed"
    ]
    per_image = {"regions": [row["regions"] for row in rows], "bytes of shards": [_bytes(row) for row in rows]}
    found = [Extrapolated("images", total, total, total)]
    failed = sum(row["status"] == "failed" for row in rows)
    found.append(_scaled("failed images", failed / len(rows), *wilson(failed, len(rows)), total))
    for name, values in per_image.items():
        mean, spread = float(np.mean(values)), _spread(values, total)
        found.append(_scaled(name, mean, max(mean - spread, 0.0), mean + spread, total))
        if name == "regions":
            found.append(_scaled("regions per image", mean, max(mean - spread, 0.0), mean + spread, 1))
    found.append(_labels(labels, total))
    return len(rows), [*found, *_hours(shards, total)]


def _bytes(row: IndexRow) -> int:
    """Return the bytes of an image in a tar: its members, each with a header and padding."""
    return 0 if row["status"] == "failed" else sum(row[f"{member}_bytes"] + _PADDING for member in MEMBERS)


def _scaled(what: str, mean: float, low: float, high: float, total: int) -> Extrapolated:
    return Extrapolated(what, mean * total, low * total, high * total)


def _spread(values: list[int], total: int) -> float:
    """Return half of the 95% interval of a mean, for a sample without repetition."""
    number = len(values)
    if number < 2:
        return math.nan
    finite = max(1 - number / total, 0.0)
    return _Z * float(np.std(values, ddof=1)) * math.sqrt(finite / number)


def _labels(labels: list[set[str]], total: int) -> Extrapolated:
    """Return the number of distinct labels in all images."""
    names = {name: number for number, name in enumerate(sorted(set().union(*labels)))}
    pairs = [(image, names[name]) for image, given in enumerate(labels) for name in sorted(given)]
    if not pairs:
        return Extrapolated("distinct labels", 0, 0, math.nan)
    image, label = np.array(pairs).T
    number, further = len(labels), max(total - len(labels), 0)
    value = _distinct(np.bincount(label), number, further)
    rng = np.random.default_rng(0)
    drawn = (rng.multinomial(number, np.full(number, 1 / number)) for _ in range(_RESAMPLES))
    spread = float(np.std([_distinct(np.bincount(label, weights[image]), number, further) for weights in drawn]))
    return Extrapolated("distinct labels", value, max(value - _Z * spread, len(names)), value + _Z * spread)


def _distinct(images: np.ndarray, number: int, further: int) -> float:
    """Return the number of labels in `number + further` images, from the number of images that have each label in a
    sample of `number`."""
    seen, once, twice = (int(np.count_nonzero(test)) for test in (images >= 1, images == 1, images == 2))
    part = (number - 1) / number
    unseen = part * (once**2 / (2 * twice) if twice else once * (once - 1) / 2)
    if not unseen:
        return float(seen)
    return seen + unseen * (1 - (1 - once / (number * unseen + once)) ** further)


def _hours(shards: ShardFolder, total: int) -> list[Extrapolated]:
    """Return the hours of one worker in the models, from the metrics of the run that made the sample; nothing without
    them. Loading and waiting do not count."""
    if not shards.folder.has(_METRICS):
        return []
    spent: list[tuple[float, int]] = []
    """Seconds of work, and images that they were spent on, between two entries."""
    before = 0.0, 0
    try:
        for line in shards.folder.read(_METRICS).splitlines():
            entry = json.loads(line)
            stages = [stage for name, stage in entry["stages"].items() if name not in _WITHOUT_MODEL]
            if not stages:
                continue
            # An earlier version had shares of all seconds.
            working = float(entry.get("working_seconds", entry["elapsed_seconds"]))
            now = sum(float(one["busy"]) * working * int(one["workers"]) for one in stages), int(stages[-1]["images"])
            if now[1] < before[1]:  # a later run continues the sample
                before = 0.0, 0
            if now[1] > before[1]:
                spent.append((now[0] - before[0], now[1] - before[1]))
                before = now
    except (ArithmeticError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []
    if not spent or not all(math.isfinite(one) for one, _ in spent):
        return []
    seconds, images = (float(sum(values)) for values in zip(*spent, strict=True))
    value = seconds / images * total / 3600
    spread = math.nan
    if len(spread_over := [one / many for one, many in spent]) >= _LEAST:
        spread = _Z * float(np.std(spread_over, ddof=1)) / math.sqrt(len(spread_over)) * total / 3600
    hours = value, max(value - spread, 0.0), value + spread
    return [
        Extrapolated(f"hours in the models, with {workers}", *(one / number for one in hours))
        for number, workers in _WORKERS.items()
    ]
