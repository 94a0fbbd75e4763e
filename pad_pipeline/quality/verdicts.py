"""Scores the verdicts that people gave on a random sample of regions, in the review of a report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pad_pipeline.errors import UserError
from pad_pipeline.quality.label_scores import SCORE_BINS
from pad_pipeline.quality.region_scores import CUTS
from pad_pipeline.shards.reader import ShardFolder

Answer = Literal["right", "wrong label", "wrong mask", "unsure"]
_MOST_BYTES = 1 << 30


class Verdict(BaseModel):
    """A line of a verdict file: what somebody says of one region."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    run: str
    """The identity of the run, as in the indexes of its shards."""
    key: str
    """The key of the sample."""
    region: int = Field(ge=0)
    """The position of the region in the sample."""
    label: str
    score: float = Field(ge=0, le=1)
    label_score: float = Field(ge=0, le=1)
    predicted_iou: float = Field(allow_inf_nan=False)
    patches: float = Field(ge=0, allow_inf_nan=False)
    """The coverage of the region, summed over the patches."""
    verdict: Answer


def read_verdicts(path: Path, shards: ShardFolder) -> list[Verdict]:
    """Read a verdict file. Of several verdicts on one region, the last one counts.

    Raises:
        UserError: the file can't be read, a line is no verdict, or a verdict is on another run, or on a region that the
            run does not have with this label.
    """
    remedy = "give a verdicts.jsonl that the report of these shards saved"
    found: dict[tuple[str, int], Verdict] = {}
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError("verdicts", path, f"it has more than {_MOST_BYTES >> 30} GB", remedy)
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        verdict = Verdict.model_validate_json(line)
                    except ValidationError as error:
                        first = error.errors()[0]
                        where = ".".join(map(str, first["loc"]))
                        rule = f"it is no verdict ({where + ': ' if where else ''}{first['msg']})"
                        raise UserError("verdicts", f"{path}, line {number}", rule, remedy) from error
                    if verdict.run != shards.run.identity:
                        rule = f"it is on the run {verdict.run[:40]!r}, and these shards are {shards.run.identity!r}"
                        raise UserError("verdicts", f"{path}, line {number}", rule, remedy)
                    found[verdict.key, verdict.region] = verdict
    except (OSError, UnicodeDecodeError) as error:
        rule = f"it can't be read ({getattr(error, 'strerror', None) or type(error).__name__})"
        raise UserError("verdicts", path, rule, remedy) from error
    if not found:
        raise UserError("verdicts", path, "there is no verdict in it", remedy)
    _check_there(path, found, shards)
    return [*found.values()]


def _check_there(path: Path, verdicts: Mapping[tuple[str, int], Verdict], shards: ShardFolder) -> None:
    """Raise `UserError` if a verdict is on a region that the run does not have, or that has another label there."""
    wanted: dict[str, list[Verdict]] = {}
    for verdict in verdicts.values():
        wanted.setdefault(verdict.key, []).append(verdict)
    for name, row in shards.rows():
        of_image = wanted.pop(row["key"], [])
        if of_image and row["status"] == "failed":
            wanted[row["key"]] = of_image
            break
        regions = shards.sample(name, row, image=False).meta["regions"] if of_image else []
        for verdict in of_image:
            there = regions[verdict.region] if verdict.region < len(regions) else None
            seen = (there["label"], there["score"], there["label_score"], there["predicted_iou"]) if there else ()
            if seen != (verdict.label, verdict.score, verdict.label_score, verdict.predicted_iou):
                where = f"region {_short(verdict.region)} of {_short(verdict.key)}"
                shown = f"{_short(seen[0])} with a score of {seen[1]}" if seen else "not there"
                mine = f"{_short(verdict.label)} with a score of {verdict.score}"
                rule = f"{where} is {mine} in it; in the shards, it is {shown}"
                raise UserError("verdicts", path, rule, "give verdicts on these shards, not on other ones")
        if not wanted:
            return
    rule = f"these shards have no regions of {_short(min(wanted))}"
    raise UserError("verdicts", path, rule, "give verdicts on these shards, not on other ones")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def score_verdicts(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return the precision of regions with its 95% interval: overall, by label and by score; and curves by threshold.

    A region counts as right if its label and its mask are; `labels` counts its label alone. Regions that somebody was
    unsure of do not count. Recall is the share of the right regions in the sample that stay: what no model found was
    not reviewed.
    """
    sure = [one for one in verdicts if one.verdict != "unsure"]
    by_label: dict[str, list[Verdict]] = {}
    bins: dict[int, list[Verdict]] = {number: [] for number in range(SCORE_BINS)}
    for one in sure:
        by_label.setdefault(one.label, []).append(one)
        bins[min(max(int(one.score * SCORE_BINS + 1e-9), 0), SCORE_BINS - 1)].append(one)
    right = sum(one.verdict == "right" for one in sure)
    curves = {}
    for name, cuts in CUTS.items():
        points = []
        for cut in cuts:
            kept = [one for one in sure if cut == cuts[0] or getattr(one, name) >= cut]
            hits = sum(one.verdict == "right" for one in kept)
            points.append(
                {
                    "threshold": float(cut),
                    "precision": hits / len(kept) if kept else math.nan,
                    "recall": hits / right if right else math.nan,
                    "f1": 2 * hits / (len(kept) + right) if kept or right else math.nan,
                    "regions": len(kept),
                }
            )
        curves[name] = points
    return {
        "regions": len(verdicts),
        "verdicts": dict(Counter(one.verdict for one in verdicts)),
        "all": _precision(sure),
        "labels": _precision(sure, ("right", "wrong mask")),
        "by label": {label: _precision(ones) for label, ones in sorted(by_label.items(), key=lambda e: -len(e[1]))},
        "by score": {
            f"{number / SCORE_BINS:.1f} to {(number + 1) / SCORE_BINS:.1f}": _precision(ones)
            for number, ones in bins.items()
        },
        "curves": curves,
    }


def _precision(verdicts: Iterable[Verdict], good: tuple[Answer, ...] = ("right",)) -> dict[str, Any]:
    answers = [one.verdict in good for one in verdicts]
    low, high = wilson(sum(answers), len(answers))
    precision = sum(answers) / len(answers) if answers else math.nan
    return {"regions": len(answers), "right": sum(answers), "precision": precision, "interval": [low, high]}


def wilson(right: int, number: int, z: float = 1.959964) -> tuple[float, float]:
    """Return Wilson's interval for a share, at 95% with the default `z` (Wilson, 1927, JASA 22); 0 to 1 of nothing."""
    if not number:
        return 0.0, 1.0
    share = right / number
    middle = share + z * z / (2 * number)
    spread = z * math.sqrt(share * (1 - share) / number + z * z / (4 * number * number))
    scale = 1 + z * z / number
    return max((middle - spread) / scale, 0.0), min((middle + spread) / scale, 1.0)


def agreement(first: Sequence[Verdict], second: Sequence[Verdict]) -> dict[str, Any]:
    """Compare two people's verdicts on the regions that both saw: the share of equal ones, Cohen's kappa (Cohen, 1960),
    and how often each pair of verdicts was given. Rates are NaN if there is no such region, or if chance alone explains
    the agreement."""
    theirs = {(one.key, one.region): one.verdict for one in second}
    pairs = Counter((one.verdict, theirs[one.key, one.region]) for one in first if (one.key, one.region) in theirs)
    number = pairs.total()
    if not number:
        return {"regions": 0, "equal": math.nan, "kappa": math.nan, "pairs": []}
    equal = sum(count for (mine, other), count in pairs.items() if mine == other) / number
    mine, other = (Counter[str]() for _ in range(2))
    for (one, two), count in pairs.items():
        mine[one] += count
        other[two] += count
    chance = sum(mine[answer] * other[answer] for answer in mine) / number**2
    kappa = (equal - chance) / (1 - chance) if chance < 1 else math.nan
    counted = [[*pair, count] for pair, count in pairs.most_common()]
    return {"regions": number, "equal": equal, "kappa": kappa, "pairs": counted}
