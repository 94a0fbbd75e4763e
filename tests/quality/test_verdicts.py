"""`pad evaluate labels --verdicts`: verdicts by eye, read back from the file that a report's review saves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pad_pipeline.quality.verdicts import wilson
from pad_pipeline.records import ImageRecord
from pad_pipeline.shards.reader import open_shards
from tests.changed_run import changed_run

Pad = Callable[..., Any]


@pytest.fixture
def run(shards: Path, tmp_path: Path) -> Path:
    """The scenes with scores that differ."""
    rng = Random(2)

    def change(record: ImageRecord) -> None:
        for region in record.regions:
            region.score = region.label_score = round(rng.random(), 3)
        record.regions.sort(key=lambda region: -region.score)

    return changed_run(shards, tmp_path / "run", change)


def verdicts_on(run: Path, answer: Callable[[dict[str, Any]], str]) -> list[dict[str, Any]]:
    """A verdict on every region."""
    shards, found = open_shards(run), []
    for name, row in shards.rows():
        for number, region in enumerate(shards.sample(name, row).meta["regions"]):
            numbers = {what: region[what] for what in ("label", "score", "label_score", "predicted_iou")}  # type: ignore[literal-required]
            line = {"run": shards.run.identity, "key": row["key"], "region": number, "patches": 3.5, "seed": 1}
            found.append(line | numbers | {"verdict": answer(numbers)})
    return found


def write(path: Path, verdicts: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in verdicts))
    return path


def test_precision_interval_and_threshold_follow_from_verdicts(run: Path, pad: Pad, tmp_path: Path) -> None:
    """Regions are right from a score of .4 on. Catches a suggestion beside it, bins that are shifted, and verdicts that
    somebody was unsure of as right or wrong ones; the last verdict on a region counts."""
    lines = verdicts_on(run, lambda region: "right" if region["score"] >= 0.4 else "wrong label")
    unsure, mask = lines[0] | {"verdict": "unsure"}, lines[1] | {"verdict": "wrong mask"}
    file = write(tmp_path / "mine.jsonl", [*lines, unsure, mask])
    done = pad("evaluate", "labels", "--shards", run, "--verdicts", file, "--precision", 1, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    right = sum(line["verdict"] == "right" for line in lines) - 2
    assert found["regions"] == len(lines) and found["verdicts"]["unsure"] == 1
    assert found["all"]["precision"] == right / (len(lines) - 1)
    assert found["labels"]["right"] == right + 1
    assert found["by score"]["0.1 to 0.2"]["precision"] == 0
    assert found["by score"]["0.4 to 0.5"]["precision"] == 1
    shown = pad("evaluate", "labels", "--shards", run, "--verdicts", write(file, lines), "--precision", 1)
    assert shown.code == 0 and f"pad retarget {run} --min-score 0.4 --out {run}-chosen" in shown.out


def test_two_people_are_compared(run: Path, pad: Pad, tmp_path: Path) -> None:
    """By their share of equal verdicts and by Cohen's kappa, computed by hand. Catches an agreement over regions that
    only one of them saw."""
    mine = verdicts_on(run, lambda region: "right" if region["score"] >= 0.5 else "wrong label")
    theirs = [line | {"verdict": "right"} if number % 4 == 0 else line for number, line in enumerate(mine)][:40]
    files = [write(tmp_path / "mine.jsonl", mine), write(tmp_path / "theirs.jsonl", theirs)]
    done = pad("evaluate", "labels", "--shards", run, "--verdicts", files[0], "--verdicts", files[1], "--json")
    both = json.loads(done.out)["agreement"]
    equal = sum(one["verdict"] == other["verdict"] for one, other in zip(mine, theirs, strict=False)) / 40
    rights = [sum(line["verdict"] == "right" for line in lines[:40]) / 40 for lines in (mine, theirs)]
    chance = rights[0] * rights[1] + (1 - rights[0]) * (1 - rights[1])
    assert both["regions"] == 40 and both["equal"] == equal < 1
    assert both["kappa"] == pytest.approx((equal - chance) / (1 - chance))


def test_verdicts_on_other_shards_are_refused(run: Path, pad: Pad, tmp_path: Path) -> None:
    """One line with file, line and reason. Catches a precision of regions that nobody looked at, and text from a file
    that reaches the terminal as it is."""
    good = verdicts_on(run, lambda region: "right")
    for line, said in (
        (good[0] | {"run": "0123"}, "it is on the run '0123'"),
        (good[0] | {"label": "\x1b[31mred"}, "in the shards"),
        (good[0] | {"key": "nowhere"}, "these shards have no regions of 'nowhere'"),
        (good[0] | {"region": 10**9}, "in the shards, it is not there"),
        (good[0] | {"score": 0.123}, "with a score of 0.123 in it; in the shards, it is"),
        (good[0] | {"score": 1e308}, "line 2: it is no verdict (score:"),
        (good[0] | {"region": True}, "line 2: it is no verdict (region:"),
        (good[0] | {"label": "x" * 10_000}, "..."),
        (good[0] | {"verdict": "fine"}, "line 2: it is no verdict (verdict:"),
        (good[0] | {"score": float("nan")}, "line 2: it is no verdict (score:"),
    ):
        file = write(tmp_path / "bad.jsonl", [good[1], line])
        done = pad("evaluate", "labels", "--shards", run, "--verdicts", file)
        assert done.code == 2 and said in done.err and "\x1b[31m" not in done.err and len(done.err) < 500, done.err
    (tmp_path / "bad.jsonl").write_text("")
    assert "there is no verdict in it" in pad("evaluate", "labels", "--shards", run, "--verdicts", file).err
    (tmp_path / "bad.jsonl").write_bytes(b"\xff\xfe\x00")
    assert "it can't be read" in pad("evaluate", "labels", "--shards", run, "--verdicts", file).err
    many = ["--verdicts", file] * 3
    words = pad("evaluate", "labels", "--shards", run, "--verdicts", file, "--wordnet", tmp_path)
    assert words.code == 2 and "it goes with --truth, and not with --verdicts" in words.err
    assert "more than two files" in pad("evaluate", "labels", "--shards", run, *many).err


def test_the_interval_is_wilsons() -> None:
    """Against values that follow from the formula by hand. Catches an interval of zero width at 0 or all right."""
    assert wilson(0, 10) == pytest.approx((0, 0.27753), abs=1e-5)
    assert wilson(8, 10) == pytest.approx((0.49016, 0.94331), abs=1e-5)
    assert wilson(0, 0) == (0, 1)
