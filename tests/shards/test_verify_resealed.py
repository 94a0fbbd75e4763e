"""`pad verify` finds what is wrong with a run although all its hashes and seals were made right again."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pad_pipeline.errors import UserError
from pad_pipeline.plan import PLAN_NAME, PLAN_SCHEMA, Plan
from pad_pipeline.records import MEMBERS, ImageRecord, Planned, Shard, ShardRow
from pad_pipeline.report.settings import ReportSettings
from pad_pipeline.report.site import write_report
from pad_pipeline.shards.reader import ShardFolder
from pad_pipeline.shards.seal import UNSEALED, seal
from pad_pipeline.shards.writer import write_shard
from pad_pipeline.stages.restore import Restore
from pad_pipeline.storage import Folder
from tests.shards.builders import FIRST, GRID, SECOND, WIDTH, a_run, planned
from tests.shards.children import as_child, in_child
from tests.shards.conftest import Pad
from tests.shards.damage import accept_tar, index_rows, problems, reseal, rewrite
from tests.shards.test_masks import rle_text

Member = tuple[tarfile.TarInfo, bytes]


def retar(folder: Path, change: Callable[[list[Member]], object]) -> None:
    """The first tar with other members; its index says that this is the tar that was written."""
    path = folder / f"{FIRST}.tar"
    with tarfile.open(path) as tar:
        members: list[Member] = [(info, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    change(members)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    accept_tar(folder)


def _row(**values: Any) -> Callable[[list[dict[str, Any]]], object]:
    return lambda rows: rows[0].update(values)


def _moved(column: str, by: int) -> Callable[[list[dict[str, Any]]], object]:
    return lambda rows: rows[0].update({column: rows[0][column] + by})


FORGED: dict[str, Callable[[list[dict[str, Any]]], object]] = {
    **{f"{member}_{part} moved": _moved(f"{member}_{part}", by) for member in MEMBERS for part, by in
       (("at", 512), ("bytes", -1))},
    "another sha256": _row(sha256="0" * 64),
    "another key": _row(key="mine"),
    "another id": _row(id="mine"),
    "another source": _row(source="mine"),
    "another width": _row(width=7),
    "fewer regions": _moved("regions", -1),
    "more labels": _moved("labels", 1),
    "other tags": _moved("tags", 1),
    "said to be empty": _row(status="empty"),
    "said to have failed": _row(status="failed", stage="mine", reason="mine"),
    "a reason of an image that did not fail": _row(stage="annotate", reason="mine"),
    "a stage of an image that did not fail": _row(stage="mine"),
    "a status that there is not": _row(status="mine"),
    "a row less": lambda rows: rows.pop(),
    "a row twice": lambda rows: rows.append(rows[0]),
    "rows in another order": lambda rows: rows.reverse(),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_verify_finds_an_index_that_was_changed_and_sealed_again(name: str, folder: Path) -> None:
    """The seal has no secret: who changes an index can seal it again. What the plan, the tar or the JSON says too can't
    be changed unseen: keys, ids, offsets, sizes, hashes, counts, statuses."""
    reseal(folder / f"{FIRST}.parquet", FORGED[name])
    assert any(problem.startswith(f"{FIRST}: ") for problem in problems(folder))


def test_verify_finds_facts_that_were_changed_and_sealed_again(folder: Path) -> None:
    """A rerun counts by the totals at an index's end and compares the tar's size with it, without reading a row: what
    stands there must be what the rows and the tar say."""
    path = folder / f"{FIRST}.parquet"
    content = path.read_bytes()
    totals = json.loads(pq.read_metadata(path).metadata[b"totals"])
    forged = {
        "run": "0" * 16,
        "tar_sha256": "0" * 64,
        "tar_bytes": "7",
        "totals": json.dumps(totals | {"failed": totals["failed"] + 1}),
    }
    unseen = []
    for name, value in forged.items():
        path.write_bytes(content)
        reseal(path, **{name: value})
        if not problems(folder):
            unseen.append(name)
    assert unseen == []


def test_verify_can_not_know_why_an_image_failed(folder: Path) -> None:
    """The limit of the above, so that nobody takes it for more: the reason of a failure stands nowhere else, and an
    index with another one, sealed again, passes. (Without the new seal it does not, see test_verify_damage.)"""
    reseal(folder / f"{SECOND}.parquet", lambda rows: rows[-1].update(reason="mine"))
    assert index_rows(folder, SECOND)[-1]["status"] == "failed"
    assert problems(folder) == []


@pytest.mark.parametrize(
    ("change", "sign"),
    [
        (lambda members: members.extend(members[:4]), "it is not in the index"),
        (lambda members: members.pop(), "in the index and not in the tar"),
        (lambda members: members.reverse(), "does not lie where the index says"),
        (lambda members: members.append((tarfile.TarInfo("more.txt"), b"more")), "it is not in the index"),
    ],
)
def test_verify_finds_a_sample_twice_or_in_part(
    change: Callable[[list[Member]], object], sign: str, folder: Path
) -> None:
    """By the members' names, for here all hashes of the tar are right: a training would see an image twice, or stop."""
    retar(folder, change)
    assert any(sign in problem for problem in problems(folder))


def small_png(shade: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 99, 200)).save(stream, "PNG")
    return stream.getvalue()


def test_verify_finds_a_key_twice_in_a_plan(tmp_path: Path) -> None:
    """Its docstring promises that the plan's keys are unique: readers that join shards by key would lose an image."""
    folder = Folder(tmp_path)
    planned(tmp_path / PLAN_NAME, [Planned("a", "a.png"), Planned("b", "b.png")], 1)
    table = pq.read_table(tmp_path / PLAN_NAME)
    table = table.set_column(2, "key", pa.array(["x", "x"]))
    pq.write_table(table.cast(PLAN_SCHEMA.with_metadata({"shard_size": "1", "seal": UNSEALED})), tmp_path / PLAN_NAME)
    run = a_run(images=2, shards=2, plan=seal(tmp_path / PLAN_NAME))
    run.write(folder)
    plan = Plan(folder)
    for number in range(2):
        for record in (rows := plan.shard(number)):
            record.data, record.format, record.width, record.height = small_png(), "PNG", 8, 8
            record.status = "empty"
            record.coverage, record.embeds = np.zeros((0, GRID, GRID), np.uint8), np.zeros((0, WIDTH), np.float16)
        write_shard(Shard(number, rows), folder, run.identity)
    assert problems(tmp_path) != []


def _swap_masks(record: ImageRecord) -> None:
    one, two = record.regions[:2]
    one.rle, two.rle = two.rle, one.rle


def _box(*box: float) -> Callable[[ImageRecord], object]:
    return lambda record: setattr(record.regions[0], "box", box)


WRONG: dict[str, tuple[str, Callable[[ImageRecord], object]]] = {
    "masks exchanged": ("its coverage does not agree", _swap_masks),
    "mask of nothing": ("region 0 can't be read", lambda record: record.regions[0].rle.update(counts="")),
    "mask in another alphabet": ("region 0", lambda record: record.regions[0].rle.update(counts="日本")),
    "one cell of a coverage": (
        "its coverage does not agree",
        lambda record: np.bitwise_xor(record.coverage, 1, record.coverage),
    ),
    "box outside": ("does not lie in the image", _box(0, 0, 1e6, 1)),
    "box before": ("does not lie in the image", _box(-1, 0, 1, 1)),
    "box inside out": ("does not lie in the image", _box(5, 5, 1, 1)),
    "another format": ("its JSON states GIF", lambda record: setattr(record, "format", "GIF")),
    "another image": ("its JSON states", lambda record: setattr(record, "data", small_png())),
}


@pytest.mark.parametrize("name", WRONG)
def test_deep_verify_finds_what_hashes_can_not(name: str, folder: Path, pad: Pad) -> None:
    """A shard that says something wrong, whose every hash is right: what a bug in a stage would write. --deep holds the
    JSON and the arrays against the image and the masks."""
    sign, change = WRONG[name]
    rewrite(folder, change)
    assert problems(folder) == [], "by its hashes it is sound"
    done = pad("verify", folder, "--deep")
    assert done.code == 1
    assert sign in done.out
    key = index_rows(folder)[0]["key"]
    assert f"{FIRST}: {key}: " in done.out


def _claim(record: ImageRecord, width: int, height: int) -> None:
    """Give the record another size, and its regions masks of all its pixels."""
    half = 1 << 28
    runs = [0, *[half] * (width * height // half // 2 * 2), width * height % (2 * half)]
    record.width, record.height = width, height
    for region in record.regions:
        region.rle = {"size": [height, width], "counts": rle_text(runs)}


def read_a_giant(folder: str) -> None:
    """In a child: say which way of reading the first sample does not refuse it."""
    as_child()
    shards = ShardFolder(Path(folder))
    if not any("178,000,000" in problem for problem in problems(Path(folder))):
        print("verify lets it through")
    try:
        list(write_report(shards, Path(folder).with_name("report"), ReportSettings()))
        print("it is reported")
    except UserError:
        pass
    row = ImageRecord("", "", key="key", place=ShardRow(f"{FIRST}.parquet", 0))
    row.id = index_rows(Path(folder))[0]["id"]
    Restore(folder)(Shard(0, [row]))
    if row.status != "failed" or "178,000,000" not in row.reason:
        print(f"it is written again: {row.reason}")


def test_a_size_beyond_all_limits_is_refused_before_memory_is_taken(folder: Path) -> None:
    """JSON, index, hashes and run lengths all agree on 100,000 x 100,000 pixels. Catches a plain verify that lets them
    pass, and the segmentation fault of pycocotools, which writes into the 10 GB that it did not get."""
    rewrite(folder, lambda record: _claim(record, 100_000, 100_000))
    assert in_child(read_a_giant, folder) == []


def test_plain_verify_finds_a_mask_of_another_size(folder: Path) -> None:
    """Catches sizes that are compared only by `deep`, although readers allocate by them."""
    rewrite(folder, lambda record: record.regions[0].rle["size"].reverse())
    assert any("its mask is" in problem for problem in problems(folder))
