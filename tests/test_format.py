"""The written format: plans, shards, masks, seals hold for any content; no damage goes unseen, none crashes a reader.

What may kill the process (C code on hostile bytes) runs in a child, so that a crash is a failed test.
"""

from __future__ import annotations

import faulthandler
import hashlib
import io
import json
import math
import os
import random
import re
import resource
import shutil
import struct
import subprocess
import sys
import tarfile
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco_mask

from pad_pipeline import plan as plans
from pad_pipeline.errors import UserError
from pad_pipeline.geometry import View
from pad_pipeline.images import DecodeSettings
from pad_pipeline.masks import check_mask, decode_mask
from pad_pipeline.miniature.files import World
from pad_pipeline.plan import GROUP, PLAN_NAME, PLAN_SCHEMA, Plan, PlanFacts, write_plan
from pad_pipeline.records import (
    INDEX_SCHEMA,
    SCHEMA_VERSION,
    Alternate,
    ImageRecord,
    Region,
    Shard,
    Status,
    Tag,
    shard_name,
)
from pad_pipeline.shards.keys import plain_key
from pad_pipeline.shards.reader import ShardFolder, index_facts, totals_in
from pad_pipeline.shards.run import RUN_NAME, Run
from pad_pipeline.shards.seal import UNSEALED, seal, seal_of, seal_problem
from pad_pipeline.shards.stats import as_json, read_statistics
from pad_pipeline.shards.writer import MEMBERS, TOTALS, count, write_shard
from pad_pipeline.sources.base import Planned
from pad_pipeline.storage import Folder
from pad_pipeline.verify import verify_run

Pad = Callable[..., Any]
Change = Callable[[Path], object]
ROOT = Path(__file__).parents[1]
FIRST, SECOND = shard_name(0), shard_name(1)


def in_child(function: str, *arguments: object, seconds: int = 60) -> list[str]:
    """What a function of this file prints in a process of its own, a line for each broken promise.

    It has 4 GB of address space, and memory that was freed or never written to holds 0x5a or 0xa5.
    """
    code = f"import sys; from tests import test_format; test_format.{function}(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds,
        env=os.environ | {"MALLOC_PERTURB_": "165", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, f"it ended with {done.returncode}: {(done.stdout + done.stderr)[-3000:]}"
    return done.stdout.splitlines()


def as_child() -> None:
    """What `in_child` promises; and 20 seconds without a word end the process."""
    limit = 4 << 30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    faulthandler.enable()
    os.fsync = lambda descriptor: None  # nothing here has to outlive a power cut
    sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---------------------------------------------------------------- plans


class Listed:
    """A source of what it is given."""

    def __init__(self, images: Sequence[Planned]) -> None:
        self.origin = self.root = "/nowhere"
        self.counts: Counter[str] = Counter()
        self.images = images

    def __iter__(self) -> Iterator[Planned]:
        yield from self.images


def planned(path: Path, images: Sequence[Planned], shard_size: int, limit: int | None = None) -> PlanFacts:
    return write_plan(Listed(images), path, shard_size, "names", limit)


LONG = "x" * 300
IDS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(
        [
            "",
            "x",
            "x-2",
            "x-2-2",
            "x-3",
            "X",
            "a.b",
            "a/b",
            "a_b",
            "..",
            "-",
            "_",
            "image",
            "\0",
            "a\nb",
            "é",
            "e\u0301",
        ]
    ),
    st.sampled_from([LONG, LONG[:120], LONG[:120] + "-2", LONG[:118] + "-2", "ü" * 150, "a" + "日" * 100, "🙂" * 80]),
)


@st.composite
def id_lists(draw: st.DrawFn) -> list[str]:
    """Ids of which many are equal, or equal to what another becomes when it is numbered."""
    few = draw(st.lists(IDS, min_size=1, max_size=6))
    return draw(st.lists(st.sampled_from([*few, *(name + end for name in few for end in ("-2", "-3"))]), max_size=25))


@settings(max_examples=50, deadline=None)
@given(id_lists(), st.integers(1, 9), st.none() | st.integers(0, 35), st.sampled_from([1, 2, 5, 4096]))
def test_a_plan_holds_every_image_once_in_order_under_a_key_of_its_own(
    ids: list[str], shard_size: int, limit: int | None, group: int
) -> None:
    """Whatever ids a source has. Catches an image lost or doubled where a shard straddles two row groups, two keys that
    become one when they are made plain, cut or numbered (`x`, `x`, `x-2`), and bytes that depend on when they were
    written. A key is at most 120 bytes long; where it repeats an earlier one, `-N` comes behind that."""
    images = [
        Planned(
            name,
            f"{n}.png",
            caption=f"{n} {name}",
            conversations=[{"from": "human", "value": name}] * (n % 3),
            annotations=[{"label": name, "box": [n, 0.5, 1, None]}] * (n % 2),
        )
        for n, name in enumerate(ids)
    ]
    wanted = images[:limit]
    with TemporaryDirectory() as home, pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "GROUP", group)
        path = Path(home, "one.parquet")
        source = Listed(images)
        facts = write_plan(source, path, shard_size, "names", limit)
        again = planned(Path(home, "two.parquet"), images, shard_size, limit)
        assert (facts.digest, facts.seal) == (again.digest, again.seal)
        assert path.read_bytes() == Path(home, "two.parquet").read_bytes()
        assert seal_problem(path.read_bytes()) == ""
        assert names_in(Path(home)) == {"one.parquet", "two.parquet"}, "nothing is left beside it"

        plan = Plan(Folder(Path(home)), path.name)
        assert plan.images == facts.images == len(wanted)
        assert len(plan) == -(-len(wanted) // shard_size)
        slices = [plan.rows(number) for number in range(len(plan))]
        rows = [row for part in slices for row in part]
        assert [(row["id"], row["source"], row["caption"]) for row in rows] == [
            (one.id, one.source, one.caption) for one in wanted
        ]
        assert [(row["shard"], row["row"]) for row in rows] == [divmod(n, shard_size) for n in range(len(rows))]
        for number in reversed(range(len(plan))):  # in another order, past what is held in memory
            assert plan.rows(number) == slices[number]
            start = number * shard_size
            found = [(one.key, one.caption, one.conversations, one.annotations) for one in plan.shard(number)]
            assert found == [
                (row["key"], one.caption, one.conversations, one.annotations)
                for row, one in zip(slices[number], wanted[start : start + shard_size], strict=True)
            ]

        keys = [row["key"] for row in rows]
        assert len(set(keys)) == len(keys)
        own: set[str] = set()
        for one, key in zip(wanted, keys, strict=True):
            plain = plain_key(one.id)
            assert re.fullmatch(r"[\w-]+", plain), "no dot, no slash, nothing that a file system trips over"
            assert len(plain.encode()) <= 120
            assert re.fullmatch(re.escape(plain) + r"-([2-9]|[1-9]\d+)" if plain in own else re.escape(plain), key)
            own.add(plain)
        assert source.counts["repeated ids, kept under keys of their own"] == len(rows) - len(own)


VALUES: dict[str, st.SearchStrategy[Any]] = {
    **{name: st.text(max_size=3) for name in ("id", "source", "file", "caption", "sha256", "problem")},
    **{name: st.integers(-1, 1 << 40) for name in ("at", "size", "earlier_at", "earlier_bytes")},
    "conversations": st.lists(
        st.fixed_dictionaries({"from": st.text(max_size=2)}, optional={"value": st.text(max_size=2)}), max_size=2
    ),
    "annotations": st.lists(st.fixed_dictionaries({"label": st.text(max_size=2)}), max_size=2),
}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.builds(Planned, **VALUES), min_size=2, max_size=6), st.data())
def test_two_plans_that_differ_anywhere_have_different_digests(images: list[Planned], data: st.DataObject) -> None:
    """The digest is what a rerun knows its inputs by. Catches a column that it leaves out, values that run into one
    another (`ab`, `c` and `a`, `bc`), and an order that it does not see."""
    other = list(images)
    what = data.draw(st.sampled_from([*VALUES, "order", "end", *["shift"] * 5]))
    at = data.draw(st.integers(1, len(images) - 1))
    if what == "order":
        other = data.draw(st.permutations(images))
    elif what == "shift":  # the first letter of one value becomes the last of the value before
        images[at] = _with(other[at], caption="b" + other[at].caption)
        other[at - 1] = _with(images[at - 1], caption=images[at - 1].caption + "b")
    elif what == "end":
        other = images[:-1]
    else:
        other[at] = _with(images[at], **{what: data.draw(VALUES[what])})
    with TemporaryDirectory() as home, pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "GROUP", data.draw(st.sampled_from([4096, 2, 1])))
        size = data.draw(st.integers(1, 3))
        mine, others = (planned(Path(home, name), plan, size) for name, plan in (("1", images), ("2", other)))
    assert (mine.digest == others.digest) == (images == other)
    assert (mine.seal == others.seal) == (images == other)


def _with(one: Planned, **values: Any) -> Planned:
    return Planned(**({name: getattr(one, name) for name in Planned.__slots__} | values))


def test_a_sampled_hash_is_that_of_the_image_with_the_key(tmp_path: Path) -> None:
    """run.json notes a few images' hashes by key. Of ids that repeat, the last image's hash stood under the key of the
    first: a change of the first was not seen, and --retry-failed refused a run in which only the last was mended."""
    images = [Planned(name, f"{n}.png") for n, name in enumerate(["x", "y", "x", "x-2", "x", "z", "y"])]
    for one in images:
        (tmp_path / one.source).write_bytes(one.source.encode())
    source = Listed(images)
    source.root = str(tmp_path)
    facts = write_plan(source, tmp_path / PLAN_NAME, 3, "sample")
    plan = Plan(Folder(tmp_path))
    sources = {row["key"]: row["source"] for number in range(len(plan)) for row in plan.rows(number)}
    assert {"x", "y", "x-2", "z"} <= facts.sample.keys() <= sources.keys()
    for key, digest in facts.sample.items():
        assert digest == hashlib.sha256(sources[key].encode()).hexdigest(), key


def test_what_a_death_leaves_of_a_plan_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies while it numbers repeated keys leaves files beside the unfinished plan. One of a name that
    `clean` does not know would stay for ever, and be uploaded and copied with the run."""
    folder, seen = Folder(tmp_path), set[str]()
    replace = Path.replace

    def look(self: Path, target: Path) -> Path:
        seen.update(names_in(tmp_path))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", look)
    with folder.commit(PLAN_NAME) as partial:
        planned(partial, [Planned("x", "1"), Planned("x", "2")], 1)
    left = seen - {PLAN_NAME}
    assert left
    for name in left:
        (tmp_path / name).write_bytes(b"of the dead")
    folder.clean()
    assert names_in(tmp_path) == {PLAN_NAME}


# ---------------------------------------------------------------- shards

GRID, WIDTH = 2, 3
TEXT = st.text(max_size=8) | st.sampled_from(
    ["🙂👩‍🚀", "\x00\x1b[31m\x7f", "a\nb\r\n\tc", "\u2028\ufeff", '"\\/', "[/red]"]
)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
IMAGES = st.binary(max_size=40) | st.sampled_from([bytes(size) for size in (0, 1, 511, 512, 513, 1024, 10241)])


@st.composite
def region(draw: st.DrawFn) -> Region:
    alternates = draw(st.lists(st.builds(Alternate, TEXT, NUMBER, NUMBER), max_size=2))
    rle = {"size": [draw(st.integers(1, 9)), draw(st.integers(1, 9))], "counts": draw(st.text("0123?PQo", max_size=5))}
    box = tuple(draw(NUMBER) for _ in range(4))
    return Region(
        draw(TEXT), box, draw(NUMBER), draw(NUMBER), alternates, draw(st.integers(0, 9)), rle, draw(NUMBER),
        draw(st.booleans()),
    )  # fmt: skip


@st.composite
def image_record(draw: st.DrawFn) -> ImageRecord:
    turns = st.lists(st.fixed_dictionaries({"from": TEXT, "value": TEXT}), max_size=2)
    record = ImageRecord(draw(IDS), draw(TEXT), draw(TEXT), draw(TEXT), draw(turns))
    record.width, record.height = draw(st.integers(0, 9000)), draw(st.integers(0, 9000))
    record.data, record.format = draw(IMAGES), draw(st.sampled_from(["JPEG", "PNG", ""]))
    record.tags = draw(st.lists(st.builds(Tag, TEXT, NUMBER), max_size=2))
    status = draw(st.sampled_from(["ok", "ok", "empty", "failed"]))
    if status == "failed":
        record.fail(draw(TEXT), draw(TEXT))
        return record
    record.regions = draw(st.lists(region(), min_size=1, max_size=3)) if status == "ok" else []
    record.status = status
    lot = np.random.default_rng(draw(st.integers(0, 99)))
    record.coverage = lot.integers(0, 256, (len(record.regions), GRID, GRID), np.uint8)
    record.embeds = lot.normal(size=(len(record.labels), WIDTH)).astype(np.float16)
    return record


def a_run(**more: Any) -> Run:
    facts: dict[str, Any] = {
        "kind": "build", "images": 1, "shards": 1, "shard_size": 100, "counts": {}, "embedding_width": WIDTH,
        "view": View(size=28, patch=14), "settings": {"decode": DecodeSettings().model_dump(mode="json")},
        "fingerprints": {},
    }  # fmt: skip
    return Run(**(facts | more))


def restored(shards: ShardFolder, name: str) -> list[ImageRecord]:
    """The records of a written shard, as they were when it was written."""
    rows = []
    for row in shards.index(name):
        record = ImageRecord(row["key"], row["id"], row["source"])
        if row["status"] == "failed":
            record.status, record.stage, record.reason = "failed", row["stage"], row["reason"]
            record.width, record.height = row["width"], row["height"]
        else:
            sample = shards.sample(name, row)
            record.restore(sample.meta)
            record.status, record.data = row["status"], sample.image
            record.coverage, record.embeds = sample.coverage, sample.embeds
        rows.append(record)
    return rows


@settings(max_examples=40, deadline=None)
@given(st.lists(image_record(), min_size=1, max_size=5))
def test_a_shard_read_and_written_again_has_the_same_bytes(records: list[ImageRecord]) -> None:
    """Whatever the records hold. Catches a field that the JSON or the index loses, text that comes back altered,
    numbers that move when they are written twice, offsets that are wrong behind a long or non-ASCII name or an image
    that fills its blocks exactly; and a tar that the plain `webdataset` package reads otherwise."""
    import webdataset

    for number, record in enumerate(records):
        record.key = f"{plain_key(record.key)}-{number}"  # what a plan sees to
    with TemporaryDirectory() as home:
        one, two = Path(home, "one"), Path(home, "two")
        for folder in (one, two):
            folder.mkdir()
            run = a_run()
            run.write(Folder(folder))
        totals = write_shard(Shard(0, records), Folder(one), run.identity)
        shards = ShardFolder(one)
        assert shards.names == [FIRST]
        assert totals_in(index_facts(shards.folder, FIRST)) == dict(totals) == dict(count(Shard(0, records)))
        write_shard(Shard(0, restored(shards, FIRST)), Folder(two), run.identity)
        for ending in ("tar", "parquet"):
            assert (one / f"{FIRST}.{ending}").read_bytes() == (two / f"{FIRST}.{ending}").read_bytes(), ending
        assert seal_problem((one / f"{FIRST}.parquet").read_bytes()) == ""

        by_key = {record.key: record for record in records if record.status != "failed"}
        rows = {row["key"]: row for row in shards.index(FIRST)}
        assert list(rows) == [record.key for record in records]
        opened = webdataset.WebDataset(str(one / f"{FIRST}.tar"), shardshuffle=False, empty_check=False)
        samples = {sample["__key__"]: sample for sample in opened}
        assert samples.keys() == by_key.keys()
        for key, sample in samples.items():
            record, found = by_key[key], shards.sample(FIRST, rows[key])
            assert {name for name in sample if not name.startswith("__")} == set(MEMBERS.values())
            assert sample["jpg"] == record.data == found.image
            assert sample["json"] == record.to_json()
            for member, array in (("masks.npy", record.coverage), ("embeds.npy", record.embeds)):
                loaded = np.load(io.BytesIO(sample[member]))
                assert loaded.dtype == array.dtype and np.array_equal(loaded, array)


# ---------------------------------------------------------------- masks


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))),
        st.builds(np.full, st.tuples(st.integers(1, 90), st.integers(1, 90)), st.booleans()),
        arrays(bool, st.tuples(st.just(1), st.integers(1, 60))),
        arrays(bool, st.tuples(st.integers(1, 60), st.just(1))),
    )
)
def test_a_mask_comes_back_as_it_was(mask: np.ndarray) -> None:
    """Empty, full, one pixel, one row, one column, any. Catches rows for columns, a first run of the wrong color, and
    a check that refuses what pycocotools itself wrote."""
    height, width = mask.shape
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    for counts in (rle["counts"], rle["counts"].decode()):
        found = decode_mask({"size": [height, width], "counts": counts}, width, height)
        assert found.dtype == np.uint8
        assert np.array_equal(found, mask)
        for size in ([width + 1, height], [height, width + 1], [height, -width], [width * height]):
            with pytest.raises(ValueError, match="mask"):
                decode_mask({"size": size, "counts": counts}, width, height)


def rle_text(runs: Sequence[int], padded: dict[int, int] | None = None) -> str:
    """Runs as compressed RLE, by the format's definition; with more groups than it needs for the runs in `padded`."""
    text = ""
    for number, run in enumerate(runs):
        value, more, groups = run - (runs[number - 2] if number > 2 else 0), True, 0
        while more:
            bits, value, groups = value & 31, value >> 5, groups + 1
            more = groups < (padded or {}).get(number, 0) or value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
    return text


def mask_by_hand(counts: str, width: int, height: int) -> np.ndarray:
    """What a compressed RLE means, by the format's definition and without C."""
    runs: list[int] = []
    value = shift = 0
    for letter in counts:
        bits = ord(letter) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    flat = np.repeat(np.arange(len(runs)) % 2, np.maximum(runs, 0))
    return flat.reshape((height, width) if len(flat) == height * width else -1, order="F")


LETTERS = "0?@PQ`o~\x7f/n_O1é\u0470ßÿ日🙂\ud800\0\n\x80"
"""The edges of the format's range, and what turns into several bytes, or into `?`, on its way to C."""


def hostile_masks() -> None:
    """In a child: see below."""
    as_child()
    lot = random.Random(7)

    def look(counts: Any, width: int, height: int) -> None:
        rle = {"size": [height, width], "counts": counts}
        what = f"{counts!r} as {width} x {height}"
        try:
            check_mask(rle, width, height)
        except ValueError:
            try:
                decode_mask(rle, width, height)
                print(f"{what}: refused by check_mask, decoded all the same")
            except ValueError:
                pass
            return
        try:
            found = decode_mask(rle, width, height)
        except ValueError as error:
            print(f"{what}: check_mask let through what pycocotools reads otherwise ({error})")
            return
        text = counts if isinstance(counts, str) else counts.decode("latin-1")
        if found.shape != (height, width) or not np.array_equal(found, mask_by_hand(text, width, height)):
            print(f"{what}: it became another mask, values {np.unique(found)[:5].tolist()}")

    # Any character of a good one changed, removed or added.
    for _ in range(60):
        height, width = lot.randint(1, 30), lot.randint(1, 30)
        mask = np.frombuffer(lot.randbytes(height * width), np.uint8).reshape(height, width) < lot.choice([3, 128, 250])
        good = coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
        for at in range(min(len(good), 25)):
            look(good[:at] + good[at + 1 :], width, height)
            for letter in lot.sample(LETTERS, 6):
                look(good[:at] + letter + good[at + 1 :], width, height)
                look(good[:at] + letter + good[at:], width, height)
            changed = bytearray(good.encode())
            changed[at] ^= 1 << lot.randrange(8)
            look(bytes(changed), width, height)
    # A run of 15 is the character that stands for what ASCII does not hold.
    for letter in LETTERS:
        look(rle_text([15, 85]).replace("?", letter), 10, 10)
    # The same runs in more groups than they need: C counts in 32 bits, and is undefined beyond.
    for difference in (-32, -64, -33, -1, 0, 1, 32):
        for groups in range(1, 10):
            runs = [200, 200, 200, 200 + difference]
            look(rle_text([*runs, 1000 - sum(runs)], {3: groups}), 100, 10)
    # Anything.
    for _ in range(3000):
        size = lot.choice([1, 3, 10, 40])
        look("".join(lot.choices(LETTERS, k=size)), lot.randint(1, 9), lot.randint(1, 9))
        look("".join(chr(lot.randint(48, 111)) for _ in range(size)), lot.randint(1, 9), lot.randint(1, 9))
        look(lot.randbytes(size), lot.randint(1, 9), lot.randint(1, 9))
    for text in ("", "o" * 100_000, "0" * 100_000, "O" * 100_000, "~" * 1000 + "0", "P" * 99_999 + "0"):
        look(text, 5, 5)
    for odd in (None, 5, [], [52, 0], {}, True, ["P"], bytearray(b"54"), 1.5, [float("nan")]):
        for size in ([5, 5], [5.0, 5.0], "55", None):
            try:
                decode_mask({"size": size, "counts": odd}, 5, 5)
                print(f"{odd!r} of size {size!r} is a mask")
            except (ValueError, TypeError):
                pass


def test_no_string_makes_pycocotools_read_or_write_beyond_its_memory() -> None:
    """pycocotools trusts the string: it corrupted memory, or showed what lay in it, on strings from a stranger's file.
    Each is refused with a ValueError, or means a mask of exactly the stated size; what `check_mask` lets through,
    pycocotools reads the same way. Catches a check that reads other bytes than C does (text outside ASCII), and runs of
    so many groups that C's integers overflow."""
    assert in_child("hostile_masks") == []


# ---------------------------------------------------------------- a run, and copies of it to damage


class Runs(NamedTuple):
    """What the tests below damage copies of."""

    good: Path
    """Two shards, 4 and 3 images: empty ones, one that failed."""
    other: Path
    """The first shard's images under another view, and another plan."""
    command: list[object]
    """What made `good`, but for --out."""


@pytest.fixture(scope="module")
def runs(world: World, models_toml: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    from pad_pipeline.workflows import cli

    home = tmp_path_factory.mktemp("runs")
    coco = json.loads(world.instances.read_text())
    coco["images"] = [*coco["images"][:6], {"id": 10**6, "file_name": "missing.png"}]
    blank = {entry["id"] for entry in coco["images"][1:3]}
    kept = {entry["id"] for entry in coco["images"]} - blank
    coco["annotations"] = [entry for entry in coco["annotations"] if entry["image_id"] in kept]
    (home / "coco.json").write_text(json.dumps(coco))
    command: list[object] = ["import", "coco", "--annotations", home / "coco.json", "--images", world.images]
    command += ["--captions", world.llava, "--models", models_toml, "--view-size", 112, "--shard-size", 4]
    for more in (["--out", home / "good"], ["--out", home / "other", "--fit", "pad", "--limit", 5]):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
            patch.setattr("sys.argv", ["pad", *map(str, [*command, *more])])
            cli.main()
        assert not end.value.code
    return Runs(home / "good", home / "other", command)


@pytest.fixture
def folder(runs: Runs, tmp_path: Path) -> Path:
    """A copy of the good run."""
    shutil.copytree(runs.good, tmp_path / "run")
    return tmp_path / "run"


def problems(folder: Path, deep: bool = False) -> list[str]:
    """What `verify_run` finds; a run that it can't open at all is one of them."""
    found = []
    try:
        for name, wrong in verify_run(folder, deep):
            found += [f"{name}: {problem}" for problem in wrong]
    except UserError as error:
        found.append(f"refused: {error}")
    return found


def index_rows(folder: Path, name: str = FIRST) -> list[dict[str, Any]]:
    return pq.read_table(folder / f"{name}.parquet").to_pylist()  # type: ignore[no-any-return]


def reseal(path: Path, change: Callable[[list[dict[str, Any]]], object] = lambda rows: None, **facts: str) -> None:
    """An index changed by somebody who knows how it is made: its rows, and what stands at its end; sealed again."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    noted = {name.decode(): value.decode() for name, value in table.schema.metadata.items()}
    schema = INDEX_SCHEMA.with_metadata(noted | facts | {"seal": UNSEALED})
    pq.write_table(pa.Table.from_pylist(rows, schema), path, compression="zstd")
    seal(path)


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


def accept_tar(folder: Path, name: str = FIRST) -> None:
    """The index says that this is the tar that was written."""
    content = (folder / f"{name}.tar").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    reseal(folder / f"{name}.parquet", tar_sha256=digest, tar_bytes=str(len(content)))


# ---------------------------------------------------------------- seals


def sealed_files(runs: Runs, home: Path) -> dict[str, bytes]:
    images = [Planned(f"{n}", f"{n}.png", caption="a house") for n in range(3)]
    planned(home / PLAN_NAME, images, 2)
    return {path.name: path.read_bytes() for path in (home / PLAN_NAME, runs.good / f"{SECOND}.parquet",
                                                      runs.good / RUN_NAME)}  # fmt: skip


def test_no_byte_of_a_sealed_file_can_change_unseen(runs: Runs, tmp_path: Path) -> None:
    """Each byte of an index, of a plan and of run.json, flipped in three ways, dropped or doubled; each length that a
    file can be cut to. Catches a seal that leaves out a part of the file, such as the seal's own surroundings."""
    for name, content in sealed_files(runs, tmp_path).items():
        assert seal_problem(content) == ""
        for at, byte in enumerate(content):
            flipped = bytearray(content)
            for pattern in (0x01, 0x80, 0xFF):
                flipped[at] = byte ^ pattern
                assert seal_problem(bytes(flipped)), f"{name}: byte {at} ^ {pattern:#x}"
            assert seal_problem(content[:at]), f"{name}: cut to {at}"
            assert seal_problem(content[:at] + content[at + 1 :]), f"{name}: without byte {at}"
            assert seal_problem(content[:at] + content[at : at + 1] + content[at:]), f"{name}: byte {at} twice"
        for more in (b"\0", b"\n", content, UNSEALED.encode()):
            assert seal_problem(content + more), f"{name}: {len(more)} bytes more"
            assert seal_problem(more + content), f"{name}: {len(more)} bytes in front"


@pytest.mark.parametrize("behind", [0, 10, (1 << 20) - 70, (1 << 20) - 40, 1 << 20, (3 << 20) + 5])
def test_a_seal_is_found_wherever_the_windows_end(tmp_path: Path, behind: int) -> None:
    """Files larger than what is read at a time. Catches a seal across the edge of two windows that is not found, and
    bytes that are hashed twice or never."""
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 5000 + UNSEALED.encode() + b"x" * behind)
    seal(path)
    content = path.read_bytes()
    assert seal_problem(content) == ""
    for at in (0, (1 << 20) - 1, 1 << 20, len(content) - behind - 1, len(content) - 1):
        assert seal_problem(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])


def test_text_that_looks_like_a_seal_is_text(tmp_path: Path) -> None:
    """A caption, an id, a reason or a setting that holds the words of a seal. Catches a writer that puts the seal
    there, and a check that looks for it there: the file would count as damaged."""
    names = [UNSEALED, UNSEALED[:14], UNSEALED[:14] + "a" * 64, UNSEALED * 2]
    facts = planned(tmp_path / PLAN_NAME, [Planned(name, name, caption=name, problem=name) for name in names], 9)
    content = (tmp_path / PLAN_NAME).read_bytes()
    assert (seal_problem(content), seal_of(content)) == ("", facts.seal)
    plan = Plan(Folder(tmp_path))
    assert [row["caption"] for row in plan.rows(0)] == names

    write_shard(Shard(0, plan.shard(0)), Folder(tmp_path), "identity")
    assert seal_problem((tmp_path / f"{FIRST}.parquet").read_bytes()) == ""
    for where in ("counts", "settings", "fingerprints", "kind"):
        for name in names:
            value: Any = name if where == "kind" else {name: 1} if where == "counts" else {"name": name}
            run = a_run(**{where: value})
            run.write(Folder(tmp_path))
            assert seal_problem((tmp_path / RUN_NAME).read_bytes()) == "", where
            assert Run.read(Folder(tmp_path)) == run, where


# ---------------------------------------------------------------- pad verify


def test_a_sound_run_passes(runs: Runs, pad: Pad) -> None:
    """Catches a check that cries wolf."""
    for run in (runs.good, runs.other):
        assert problems(run) == problems(run, deep=True) == []
        for options in ([], ["--deep"]):
            assert pad("verify", run, *options).code == 0


def chunk(kind: bytes, content: bytes, checksum: int | None = None) -> bytes:
    """One of PNG's."""
    checksum = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def test_an_image_that_a_run_takes_passes_verify(runs: Runs, pad: Pad, tmp_path: Path) -> None:
    """PNGs with a wrong checksum, or without an end: Pillow decodes them, and so a run takes them; Pillow's `verify`
    refuses them, and `pad verify` would say of an undamaged run that a member can't be read."""
    images = tmp_path / "images"
    images.mkdir()
    Image.effect_mandelbrot((20, 30), (-2, -2, 1, 1), 9).save(images / "good.png")
    png = (images / "good.png").read_bytes()
    end = png.index(b"IEND") - 4
    (images / "text.png").write_bytes(png[:end] + chunk(b"tEXt", b"a\0b", 1) + png[end:])
    (images / "pixels.png").write_bytes(png[: end - 4] + b"abcd" + png[end:])
    (images / "endless.png").write_bytes(png[:end])
    (images / "more.png").write_bytes(png + b"more")
    entries = [{"id": n, "file_name": path.name} for n, path in enumerate(sorted(images.iterdir()))]
    (tmp_path / "coco.json").write_text(json.dumps({"images": entries, "annotations": [], "categories": []}))
    models = runs.command[runs.command.index("--models") + 1]
    out = tmp_path / "out"
    command = ["import", "coco", "--annotations", tmp_path / "coco.json", "--images", images, "--models", models]
    done = pad(*command, "--out", out)
    assert done.code == 0
    assert "5 empty, 0 failed" in done.out
    assert problems(out) == []


def spread(size: int, number: int) -> list[int]:
    """Positions over a whole file, with its first and last eight bytes."""
    return sorted({*range(8), *range(size - 8, size), *(size * n // number for n in range(number))})


@pytest.mark.parametrize("name", [RUN_NAME, PLAN_NAME, f"{FIRST}.parquet", f"{SECOND}.parquet"])
def test_verify_finds_a_changed_byte_of_plan_index_and_facts(folder: Path, name: str) -> None:
    """Catches a part of these files that verify reads without looking at its seal; and a parser that gives up with an
    exception of its own, before anything is said."""
    content = (folder / name).read_bytes()
    for number, at in enumerate(spread(len(content), 28)):
        changed = bytearray(content)
        changed[at] ^= (0x01, 0xFF, 0x80)[number % 3]
        (folder / name).write_bytes(changed)
        assert any(name.split(".")[0] in problem for problem in problems(folder)), f"{name}: byte {at}"
    for size in (0, 1, 100, len(content) // 2, len(content) - 1):
        (folder / name).write_bytes(content[:size])
        assert problems(folder), f"{name}: cut to {size}"


def test_verify_finds_a_changed_byte_of_a_tar(folder: Path) -> None:
    """Anywhere: pixels, JSON, arrays, headers, padding, the zeros at the end. Catches a check of members alone."""
    path = folder / f"{FIRST}.tar"
    content = path.read_bytes()
    row = index_rows(folder)[0]
    positions = {*spread(len(content), 24)}
    for member in MEMBERS:
        at, size = row[f"{member}_at"], row[f"{member}_bytes"]
        header = at - tarfile.BLOCKSIZE
        positions |= {header, header + 124, header + 148, header + 156, at, at + size // 2, at + size - 1, at + size}
    for at in sorted(positions):
        changed = bytearray(content)
        changed[at] ^= 0x10
        path.write_bytes(changed)
        assert any(problem.startswith(f"{FIRST}: ") for problem in problems(folder)), f"byte {at}"


def edited(change: Callable[[list[dict[str, Any]]], object]) -> Change:
    """The index written again by pyarrow, as any program would."""

    def edit(folder: Path) -> None:
        table = pq.read_table(folder / f"{FIRST}.parquet")
        rows = table.to_pylist()
        change(rows)
        pq.write_table(pa.Table.from_pylist(rows, table.schema), folder / f"{FIRST}.parquet", compression="zstd")

    return edit


def by_pandas(folder: Path) -> None:
    import pandas

    frame = pandas.read_parquet(folder / f"{FIRST}.parquet")
    frame.loc[0, "reason"] = "mine"
    frame.to_parquet(folder / f"{FIRST}.parquet", index=False)


def swapped(folder: Path) -> None:
    for ending in ("tar", "parquet"):
        one, two = folder / f"{FIRST}.{ending}", folder / f"{SECOND}.{ending}"
        content = one.read_bytes()
        shutil.copy(two, one)
        two.write_bytes(content)


def twice(members: list[Member]) -> None:
    members += members[:4]


def bytes_of(name: str, change: Callable[[bytes], bytes]) -> Change:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


DAMAGES: dict[str, tuple[str, Change]] = {
    "tar cut in half": ("bytes instead of", bytes_of(f"{FIRST}.tar", lambda tar: tar[: len(tar) // 2])),
    "tar cut by its end": ("bytes instead of", bytes_of(f"{FIRST}.tar", lambda tar: tar[:-1024])),
    "tar cut by a byte": ("bytes instead of", bytes_of(f"{FIRST}.tar", lambda tar: tar[:-1])),
    "tar of nothing": ("bytes instead of", bytes_of(f"{FIRST}.tar", lambda tar: b"")),
    "byte behind the tar": ("bytes instead of", bytes_of(f"{FIRST}.tar", lambda tar: tar + b"x")),
    "zeros behind the tar": ("bytes instead of", bytes_of(f"{FIRST}.tar", lambda tar: tar + bytes(10240))),
    "tar behind the tar": ("bytes instead of", bytes_of(f"{FIRST}.tar", lambda tar: tar + tar)),
    "tar missing": ("its tar is missing", lambda folder: (folder / f"{FIRST}.tar").unlink()),
    "index missing": ("its index is missing", lambda folder: (folder / f"{FIRST}.parquet").unlink()),
    "plan missing": ("the plan can't be read", lambda folder: (folder / PLAN_NAME).unlink()),
    "shards swapped": ("does not list the planned images", swapped),
    "a stray tar": ("no such shard is planned", lambda folder: (folder / "pad-000099.tar").write_bytes(b"stray")),
    "a stray index": ("no such shard is planned", lambda folder: (folder / "pad-0000000.parquet").write_bytes(b"x")),
    "status by pyarrow": ("seal", edited(lambda rows: rows[0].update(status="empty"))),
    "reason by pyarrow": ("seal", edited(lambda rows: rows[0].update(reason="mine"))),
    "key by pyarrow": ("seal", edited(lambda rows: rows[0].update(key="mine"))),
    "offset by pyarrow": ("seal", edited(lambda rows: rows[0].update(json_at=rows[0]["json_at"] + 512))),
    "nothing by pyarrow": ("seal", edited(lambda rows: rows.reverse() or rows.reverse())),
    "reason by pandas": ("seal", by_pandas),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_verify_names_what_happened_to_a_run(name: str, folder: Path, pad: Pad) -> None:
    """What users do to runs: files lost, cut, copied twice, exchanged, edited. Each is exit code 1 (or 2, where there
    is no run left to check) and names the shard and what is wrong with it."""
    sign, damage = DAMAGES[name]
    damage(folder)
    done = pad("verify", folder)
    assert done.code == (2 if name == "plan missing" else 1), done.out + done.err
    assert sign in done.out + done.err
    assert SECOND not in done.out or name == "shards swapped"


def test_verify_knows_parts_of_another_run(runs: Runs, folder: Path) -> None:
    """A shard of the same images under another view, a plan or a run.json of another run: each is sound by itself, and
    trains a model on masks of another grid."""
    for ending in ("tar", "parquet"):
        shutil.copy(runs.other / f"{FIRST}.{ending}", folder)
    assert problems(folder) == [f"{FIRST}: its index was written by a run with other settings or weights"]
    for name, sign in ((PLAN_NAME, "it is not the plan that run.json was written with"), (RUN_NAME, "not the plan")):
        shutil.rmtree(folder)
        shutil.copytree(runs.good, folder)
        shutil.copy(runs.other / name, folder)
        assert any(sign in problem for problem in problems(folder)), name


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
    index with another one, sealed again, passes. (Without the new seal it does not, see above.)"""
    reseal(folder / f"{SECOND}.parquet", lambda rows: rows[-1].update(reason="mine"))
    assert index_rows(folder, SECOND)[-1]["status"] == "failed"
    assert problems(folder) == []


@pytest.mark.parametrize(
    ("change", "sign"),
    [
        (lambda members: members.extend(members[:4]), "in the tar and not in the index"),
        (lambda members: members.pop(), "in the index and not in the tar"),
        (lambda members: members.reverse(), "does not lie where the index says"),
        (lambda members: members.append((tarfile.TarInfo("more.txt"), b"more")), "in the tar and not in the index"),
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


def rewrite(folder: Path, change: Callable[[ImageRecord], object]) -> None:
    """The first shard written anew, by pad's own writer, with a change to its first record: all hashes are right."""
    shards = ShardFolder(folder)
    rows = restored(shards, FIRST)
    change(rows[0])
    write_shard(Shard(0, rows), shards.folder, shards.run.identity)


def _swap_masks(record: ImageRecord) -> None:
    one, two = record.regions[:2]
    one.rle, two.rle = two.rle, one.rle


def _box(*box: float) -> Callable[[ImageRecord], object]:
    return lambda record: setattr(record.regions[0], "box", box)


def _resized(record: ImageRecord) -> None:
    record.regions[0].rle["size"] = record.regions[0].rle["size"][::-1]
    record.regions[0].rle["size"][0] += 1


WRONG: dict[str, tuple[str, Callable[[ImageRecord], object]]] = {
    "masks exchanged": ("its coverage is not that of its mask", _swap_masks),
    "mask of another size": ("region 0 can't be read", _resized),
    "mask of nothing": ("region 0 can't be read", lambda record: record.regions[0].rle.update(counts="")),
    "mask in another alphabet": ("region 0", lambda record: record.regions[0].rle.update(counts="日本")),
    "one cell of a coverage": (
        "its coverage is not",
        lambda record: np.bitwise_xor(record.coverage, 1, record.coverage),
    ),
    "box outside": ("does not lie in the image", _box(0, 0, 1e6, 1)),
    "box before": ("does not lie in the image", _box(-1, 0, 1, 1)),
    "box inside out": ("does not lie in the image", _box(5, 5, 1, 1)),
    "another size": ("its JSON says", lambda record: setattr(record, "width", record.width + 1)),
    "another format": ("its JSON says GIF", lambda record: setattr(record, "format", "GIF")),
    "another image": ("its JSON says", lambda record: setattr(record, "data", small_png())),
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


# ---------------------------------------------------------------- bytes of unknown origin


def use(folder: Path, tar_alone: bool = False) -> list[str]:
    """Read a run in every way, or in those that open its tars; what came up beside UserError, which is how to say that
    something is wrong."""
    unexpected = []

    def attempt(read: Callable[[], object]) -> None:
        try:
            read()
        except UserError:
            pass
        except Exception as error:
            steps = [f for f in traceback.extract_tb(error.__traceback__) if "/pad_pipeline/" in f.filename]
            where = " > ".join(f"{Path(step.filename).name}:{step.lineno}" for step in steps)
            unexpected.append(f"{type(error).__name__} ({str(error)[:100]}) at {where}")

    def shards() -> None:
        found = ShardFolder(folder)
        for name in found.names:
            attempt(lambda name=name: samples(found, name))

    def ends_of_indexes() -> None:
        from pad_pipeline.workflows.runs.resume import scan

        found = ShardFolder(folder)
        attempt(lambda: scan(found.folder, found.run.identity, found.run.shards))

    def samples(found: ShardFolder, name: str) -> None:
        for row in found.index(name):
            if row["status"] != "failed":
                sample = found.sample(name, row)
                sample.region_embeds()
                sample.patches("argmax")

    def plan() -> None:
        found = Plan(Folder(folder))
        for number in range(min(len(found), 50)):
            attempt(lambda number=number: found.shard(number))

    attempt(shards)
    if not tar_alone:
        attempt(ends_of_indexes)
        attempt(plan)
    attempt(lambda: list(verify_run(folder, deep=True)))
    attempt(lambda: as_json(read_statistics(folder)))
    return unexpected


def mutated(content: bytes, lot: random.Random, spots: Sequence[int] = ()) -> bytes:
    """One to three changes: cut, flip, insert, replace, drop; half of them at `spots`, where there are any."""
    changed = bytearray(content)
    for _ in range(lot.choice([1, 1, 1, 2, 3])):
        at = lot.choice(spots) if spots and lot.random() < 0.7 else lot.randrange(len(content))
        if lot.random() < 0.2:
            at = max(0, len(changed) - lot.randint(1, 3000))
        size = lot.choice([1, 1, 2, 4, 16, 600])
        match lot.randrange(6):
            case 0:
                del changed[at:]
            case 1:
                del changed[at : at + size]
            case 2:
                changed[at:at] = lot.randbytes(size)
            case 3:
                changed[at : at + size] = lot.randbytes(size)
            case 4:
                changed[at : at + size] = lot.choice([b"\0", b"\xff", b"\x7f", b"0", b"9", b"("]) * size
            case _:
                at = min(at, len(changed) - 1)
                if at >= 0:
                    changed[at] ^= 1 << lot.randrange(8)
    return bytes(changed)


def plainly(path: Path) -> bytes:
    """A Parquet file without compression and dictionaries, so that a changed byte is a changed value."""
    stream = io.BytesIO()
    pq.write_table(pq.read_table(path), stream, compression="none", use_dictionary=False)
    return stream.getvalue()


def mended(tar: bytes, spots: Sequence[int]) -> bytes:
    """A tar whose headers' checksums are right, so that what a header says is believed."""
    changed = bytearray(tar)
    for at in spots:
        header = at - at % tarfile.BLOCKSIZE
        block = changed[header : header + tarfile.BLOCKSIZE]
        if block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
            changed[header : header + tarfile.BLOCKSIZE] = block
    return bytes(changed)


def mutations(good: Path, seeds: Sequence[int]) -> Iterator[tuple[int, str, bytes]]:
    """Seed, file, its changed bytes."""
    contents = {path.name: [path.read_bytes()] for path in sorted(good.iterdir()) if path.name != "metrics.jsonl"}
    for name in contents:
        if name.endswith(".parquet"):
            contents[name].append(plainly(good / name))
    spots: dict[str, list[int]] = {}
    for name in (FIRST, SECOND):
        at = [row[f"{member}_at"] for row in index_rows(good, name) for member in MEMBERS if row["status"] != "failed"]
        spots[f"{name}.tar"] = [start + step for start in at for step in (*range(-512, -350, 5), *range(0, 128, 3))]
    for seed in seeds:
        lot = random.Random(seed)
        name = lot.choice(sorted(contents))
        changed = mutated(lot.choice(contents[name]), lot, spots.get(name, ()))
        if name.endswith(".tar") and lot.random() < 0.7:
            changed = mended(changed, spots[name])
        yield seed, name, changed


def fuzz(good: str, scratch: str, first: str, last: str) -> None:
    """In a child: read a run in which one file was changed at random."""
    as_child()
    folder = Path(shutil.copytree(good, scratch))
    for seed, name, changed in mutations(Path(good), range(int(first), int(last))):
        faulthandler.dump_traceback_later(20, exit=True)
        (folder / name).write_bytes(changed)
        for trouble in use(folder):
            print(f"seed {seed}, {name}: {trouble}")
        shutil.copy(Path(good, name), folder)
    faulthandler.cancel_dump_traceback_later()


def test_random_damage_is_named_or_does_no_harm(runs: Runs, tmp_path: Path) -> None:
    """A run.json, a plan, an index, a tar with bytes cut off, flipped, added or replaced: every reader works, or raises
    the one exception that is a line for the user. Catches a parser whose own exceptions come through (of numpy's
    header, of text that is no UTF-8), one that never ends, and a crash of C code."""
    assert in_child("fuzz", runs.good, tmp_path / "run", 0, 150, seconds=120) == []


def test_no_command_trips_over_random_damage(runs: Runs, folder: Path, pad: Pad) -> None:
    """As above, from the command line: `stats`, `verify` and a rerun end with 0, 1 or 2 and without a traceback."""
    for seed, name, changed in mutations(runs.good, range(1000, 1014)):
        for command in (["stats", folder], ["verify", folder], [*runs.command, "--out", folder]):
            (folder / name).write_bytes(changed)
            done = pad(*command)
            assert done.code in (0, 1, 2), (seed, name, command[0])
            assert "Traceback" not in done.out + done.err, (seed, name, command[0])
        shutil.rmtree(folder)
        shutil.copytree(runs.good, folder)


DEEP = 100_000
ANYTHING: list[Any] = [float("nan"), float("inf"), 10**400, None, "5", []]


def hostile_json(good: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """JSON members, by what is wrong with them."""
    for text in ("[" * DEEP, '{"a":' * DEEP, "NaN", "null", "[]", '"regions"', "1e999", "", "{", "\ufeff{}", "0" * 9):
        yield text[:9], text.encode()
    yield "no UTF-8", b'{"caption":"\xff"}'
    yield "UTF-16", json.dumps(good).encode("utf-16")
    for name in good:
        yield f"no {name}", json.dumps({key: value for key, value in good.items() if key != name}).encode()
        for value in ANYTHING:
            yield f"{name} = {str(value)[:9]}", json.dumps(good | {name: value}).encode()
    shown = good["regions"][0]
    for name in shown:
        without = {key: value for key, value in shown.items() if key != name}
        yield f"region without {name}", json.dumps(good | {"regions": [without, *good["regions"][1:]]}).encode()
        for value in [*ANYTHING, [None], [float("nan")] * 4, [1e999] * 4, ["a"] * 4, {"size": None}]:
            regions = [shown | {name: value}, *good["regions"][1:]]
            yield f"region's {name} = {str(value)[:20]}", json.dumps(good | {"regions": regions}).encode()
    for name in ("size", "counts"):
        for value in [
            *ANYTHING,
            [1, 2],
            [None, None],
            [10**30] * 2,
            [float(edge) for edge in shown["rle"]["size"]],
            "日",
        ]:
            regions = [shown | {"rle": shown["rle"] | {name: value}}, *good["regions"][1:]]
            yield f"rle's {name} = {str(value)[:20]}", json.dumps(good | {"regions": regions}).encode()


def run_of_one(good: str, scratch: str) -> tuple[Path, Run, ImageRecord]:
    """In a child: a run of the first image alone, to be written again and again; its facts and its record."""
    as_child()
    folder = Path(scratch)
    folder.mkdir()
    shards = ShardFolder(Path(good))
    record = restored(shards, FIRST)[0]
    planned(folder / PLAN_NAME, [Planned(record.id, record.source)], 1)
    facts = {"images": 1, "shards": 1, "shard_size": 1, "plan": seal_of((folder / PLAN_NAME).read_bytes())}
    run = shards.run.model_copy(update=facts)
    run.write(Folder(folder))
    return folder, run, record


def look(folder: Path, what: str, damaged: bool) -> None:
    """Print what comes up beside UserError when a run is read, and whether verify overlooks what is wrong with it."""
    faulthandler.dump_traceback_later(8, exit=True)
    print(what, file=sys.stderr)  # the last one is the one that never ends
    troubles = use(folder, tar_alone=True)
    for trouble in troubles:
        print(f"{what}: {trouble}")
    if damaged and not troubles and not problems(folder):
        print(f"{what}: verify lets it through")
    faulthandler.cancel_dump_traceback_later()


def read_hostile_json(good: str, scratch: str) -> None:
    """In a child: shards whose hashes are right and whose JSON is anything."""
    folder, run, record = run_of_one(good, scratch)
    for what, member in hostile_json(json.loads(record.to_json())):
        record.to_json = lambda member=member: member  # type: ignore[method-assign]
        write_shard(Shard(0, [record]), Folder(folder), run.identity)
        look(folder, what, damaged=b"NaN" in member)


def test_json_members_of_any_kind_are_named_or_do_no_harm(runs: Runs, tmp_path: Path) -> None:
    """Nested 100,000 deep, NaN, huge numbers, wrong types, missing keys, no UTF-8: in a tar whose hashes are right.
    Catches a reader that trusts a key to be there (`format`), and recursion that ends the process."""
    assert in_child("read_hostile_json", runs.good, tmp_path / "run") == []


def test_what_is_restored_can_be_written(runs: Runs) -> None:
    """`restore` takes over what an earlier run wrote, from any tar: it refuses in the three ways that it names, or the
    record can be written as JSON again. Catches NaN and infinity that travel into a new run, which `pad verify` then
    calls damaged."""
    shards = ShardFolder(runs.good)
    good = shards.sample(FIRST, index_rows(runs.good)[0]).meta
    for what, member in hostile_json(good):
        record = ImageRecord("key", "id", "source")
        try:
            meta = json.loads(member)
        except (ValueError, RecursionError):
            continue
        try:
            record.restore(meta)
        except (KeyError, TypeError, ValueError):
            continue
        assert not re.search(rb"NaN|Infinity", record.to_json()), what


def npy(header: str, content: bytes = b"") -> bytes:
    """A file of numpy's, whose header is anything."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content


def hostile_arrays(shape: tuple[int, ...]) -> Iterator[tuple[str, bytes]]:
    """Members in the place of an array of this shape, by what is wrong with them."""
    size = int(np.prod(shape))

    def described(kind: str, each: int) -> bytes:
        return npy(f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}}}", bytes(each * size))

    for kind, each in (("'<U2'", 8), ("'|S3'", 3), ("'|V1'", 1), ("'<M8[s]'", 8), ("'<c16'", 16), ("'<f8'", 8),
                       ("[('a', '|u1')]", 1), ("'|b1'", 1)):  # fmt: skip
        yield f"of {kind}", described(kind, each)
    for kind in ("()", "'|O'", "'<f8,<('", "'|V1000000000'", "'mine'", "None", "[]", "{}", "5"):
        yield f"of {kind}", described(kind, 0)
    for header in ("(", "{", "'", "(" * 2000, "{'descr': '|u1'", "", "\0", "0" * 9000, "{'descr': '|u1', " * 50):
        yield f"header {header[:9]!r}", npy(header)
    for content in (
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00",
        b"\x93NUMPY\x03\x00",
        b"\x93NUMPY\x01\x00\xff\xff",
        b"PK\3\4",
    ):
        yield repr(content), content


def read_hostile_arrays(good: str, scratch: str) -> None:
    """In a child: shards whose hashes are right and whose masks, or embeddings, are anything."""
    from pad_pipeline.shards import writer

    folder, run, record = run_of_one(good, scratch)
    npy_of = writer._npy
    for array in (record.coverage, record.embeds):
        for what, member in hostile_arrays(array.shape):
            writer._npy = lambda given, array=array, member=member: member if given is array else npy_of(given)
            write_shard(Shard(0, [record]), Folder(folder), run.identity)
            look(folder, f"{array.dtype} {what}", damaged=True)


def test_arrays_of_any_kind_are_named_or_do_no_harm(runs: Runs, tmp_path: Path) -> None:
    """Headers that are no Python, types of text, dates or a gigabyte an entry. Catches exceptions that numpy's parser
    lets through (of `tokenize`, IndexError, SyntaxError, MemoryError), and code that calculates with text."""
    assert in_child("read_hostile_arrays", runs.good, tmp_path / "run") == []


def sized(tar: bytes, at: int, size: int) -> bytes:
    """A tar in which the header before `at` states another size (in base 256, which has room for any)."""
    header = at - tarfile.BLOCKSIZE
    changed = bytearray(tar)
    changed[header + 124 : header + 136] = (size % (1 << 96) | (1 << 95)).to_bytes(12, "big")
    return mended(bytes(changed), [header])


def with_pax(tar: bytes, headers: dict[str, str]) -> bytes:
    """A tar in which the first member has these extended headers."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(tar)) as source, tarfile.open(fileobj=stream, mode="w") as sink:
        for number, info in enumerate(source):
            content = source.extractfile(info).read()  # type: ignore[union-attr]
            info.pax_headers = headers if number == 0 else {}
            sink.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def hostile_tars(tar: bytes, at: int) -> Iterator[tuple[str, bytes]]:
    """Tars that state something impossible, by what; `at` is where the content of some member begins."""
    yield "a member before the tar", sized(tar, at, -(1 << 40))
    yield "a member before itself", sized(tar, at, -1024)
    yield "gigabytes", sized(tar, at, 5 << 30)
    yield "exabytes", sized(tar, at, 1 << 61)
    yield "a long name", with_pax(tar, {"path": "a" * 100_000})
    yield "a sparse map of letters", with_pax(tar, {"GNU.sparse.map": "a,b"})
    yield "a sparse map that is not there", with_pax(tar, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})
    yield "a sparse size of letters", with_pax(tar, {"GNU.sparse.size": "x"})
    yield "sparse exabytes", with_pax(tar, {"GNU.sparse.map": "0,1", "GNU.sparse.size": "9" * 18})
    yield "a member that is followed by itself", sized(tar, at, -512)


def read_hostile_tars(good: str, scratch: str) -> None:
    """In a child: tars that state something impossible, and an index that says that they are what was written."""
    folder, run, record = run_of_one(good, scratch)
    write_shard(Shard(0, [record]), Folder(folder), run.identity)
    tar = (folder / f"{FIRST}.tar").read_bytes()
    for what, changed in hostile_tars(tar, index_rows(folder)[0]["json_at"]):
        (folder / f"{FIRST}.tar").write_bytes(changed)
        accept_tar(folder)
        look(folder, what, damaged=True)


def test_tars_that_state_the_impossible_are_named(runs: Runs, tmp_path: Path) -> None:
    """Members of negative size (Python's tarfile then comes to the same member again, for ever: CVE-2025-8194), of
    exabytes, sparse by headers that make no sense: `pad verify` names the tar, ends, and stays within its memory."""
    assert in_child("read_hostile_tars", runs.good, tmp_path / "run") == []


def plan_of(shard_size: str) -> Change:
    """The plan with another size of shards, sealed again, and known to run.json."""

    def change(folder: Path) -> None:
        table = pq.read_table(folder / PLAN_NAME)
        schema = PLAN_SCHEMA.with_metadata({"shard_size": shard_size, "seal": UNSEALED})
        pq.write_table(table.cast(schema), folder / PLAN_NAME)
        run = Run.read(Folder(folder))
        run.model_copy(update={"plan": seal(folder / PLAN_NAME)}).write(Folder(folder))

    return change


def facts_of_run(**facts: Any) -> Change:
    """run.json with other facts, sealed again."""

    def change(folder: Path) -> None:
        run = Run.read(Folder(folder))
        run.model_copy(update=facts).write(Folder(folder))

    return change


def not_text(folder: Path) -> None:
    """A plan whose captions are no UTF-8."""
    content = plainly(folder / PLAN_NAME)
    caption = Plan(Folder(folder)).rows(0)[0]["caption"].encode()
    (folder / PLAN_NAME).write_bytes(content.replace(caption, b"\xff" * len(caption)))


def journal(content: bytes) -> Change:
    """What a process that died left behind, and a shard that is not finished."""

    def change(folder: Path) -> None:
        (folder / ".attempt.json").write_bytes(content)
        (folder / f"{FIRST}.parquet").unlink()

    return change


HOSTILE: dict[str, Change] = {
    "shards of no image": plan_of("0"),
    "shards of less than none": plan_of("-4"),
    "shards of words": plan_of("four"),
    "shards of one": plan_of("1"),
    "shards of everything": plan_of("9" * 30),
    "captions that are no text": not_text,
    "plan is a folder": lambda folder: [(folder / PLAN_NAME).unlink(), (folder / PLAN_NAME).mkdir()],
    "counts in markup": facts_of_run(counts={"[/red]": 1}),
    "environment in markup": facts_of_run(environment={"[/red]": "[/b]"}),
    "settings in markup": facts_of_run(settings={"[/red]": "[/b]"}),
    "number of shards without end": facts_of_run(shards=10**300, images=10**300),
    "embeddings without end": facts_of_run(embedding_width=10**30),
    "totals are deep": lambda folder: reseal(folder / f"{FIRST}.parquet", totals="[" * DEEP),
    "totals are empty": lambda folder: reseal(folder / f"{FIRST}.parquet", totals="{}"),
    "totals are infinite": lambda folder: reseal(
        folder / f"{FIRST}.parquet", totals=json.dumps(dict.fromkeys(("images", "failed"), float("inf")))
    ),
    "totals are a list": lambda folder: reseal(folder / f"{FIRST}.parquet", totals="[1]"),
    "totals are text": lambda folder: reseal(folder / f"{FIRST}.parquet", totals='{"images": "many", "failed": "0"}'),
    "size of the tar is words": lambda folder: reseal(folder / f"{FIRST}.parquet", tar_bytes="many"),
    "labels in markup": lambda folder: rewrite(folder, lambda record: setattr(record.regions[0], "label", "[/red]")),
    "reason in markup": lambda folder: reseal(
        folder / f"{SECOND}.parquet", lambda rows: rows[-1].update(reason="[/red]\x1b[31m", stage="[/b]", source="[/i]")
    ),
    "values missing": lambda folder: reseal(
        folder / f"{SECOND}.parquet", lambda rows: rows[-1].update(dict.fromkeys(("reason", "stage", "source", "id")))
    ),
    "numbers missing": lambda folder: reseal(
        folder / f"{SECOND}.parquet", lambda rows: rows[0].update(dict.fromkeys(("tags", "regions", "labels")))
    ),
    "status missing": lambda folder: reseal(folder / f"{SECOND}.parquet", lambda rows: rows[0].update(status=None)),
    "journal is deep": journal(b"[" * DEEP),
    "journal is no text": journal(b"\xff\xfe"),
    "journal is another's": journal(b'{"attempts": 5, "in_hand": null}'),
    "lock is no text": lambda folder: (folder / ".lock").write_bytes(b"\xff\xfe" * 999),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_command_trips_over_a_hostile_run(name: str, runs: Runs, folder: Path, pad: Pad) -> None:
    """Folders made by somebody who knows the format. `stats`, `verify` and a rerun say in a line what is wrong, or go
    on; no traceback, no control characters, no markup (a folder's text in brackets ended `pad stats`)."""
    pristine = folder.with_name("pristine")
    HOSTILE[name](folder)
    shutil.copytree(folder, pristine)
    for command in (
        ["stats", folder],
        ["stats", folder, "--json"],
        ["verify", folder],
        [*runs.command, "--out", folder],
    ):
        done = pad(*command)
        assert done.code in (0, 1, 2), command[0]
        assert "Traceback" not in done.out + done.err
        assert "\x1b[31m" not in done.out
        assert done.code < 2 or done.err.strip().count("\n") == 0, done.err
        shutil.rmtree(folder)
        shutil.copytree(pristine, folder)


def test_a_folder_may_have_any_name(runs: Runs, pad: Pad, tmp_path: Path) -> None:
    """Square brackets are markup to the library that prints: a run into `out[/b]` ended in a traceback after its last
    shard, and of `[old]` nothing was shown."""
    out = tmp_path / "a [old] [/b] 日 %s {0}"
    for command in ([*runs.command, "--out", out], ["verify", out], ["stats", out]):
        done = pad(*command)
        assert done.code == 0, (command[0], done.err)
        assert command[0] == "verify" or "[old]" in done.out + done.err, command[0]


def test_a_stray_index_alters_nothing_that_readers_see(folder: Path) -> None:
    """`pad-0000000.parquet` (seven digits) and `pad-٠٠٠٠٠٠.parquet` (other digits) are nobody's shards: readers took
    them for another 0 and saw its images twice; a rerun took them for a half of it and made it anew."""
    from pad_pipeline.workflows.runs.resume import scan

    before = as_json(read_statistics(folder))
    run = Run.read(Folder(folder))
    for stem in ("pad-0000000", "pad-٠٠٠٠٠٠"):
        shutil.copy(folder / f"{FIRST}.parquet", folder / f"{stem}.parquet")
        (folder / f"{stem}.tar").write_bytes(b"stray")
    assert as_json(read_statistics(folder)) == before
    found = scan(Folder(folder), run.identity, run.shards)
    assert (sorted(found.finished), found.damaged) == ([0, 1], [])


# ---------------------------------------------------------------- geometry


@settings(max_examples=80, deadline=None)
@given(
    arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))), st.sampled_from(["crop", "pad", "stretch"]),
    st.sampled_from([14, 28, 56]),
)  # fmt: skip
def test_coverage_keeps_area_and_turns_with_the_image(mask: np.ndarray, fit: Any, size: int) -> None:
    """Of any mask, not of rectangles alone (see test_geometry). Catches x for y, an axis that runs backwards, and area
    that is lost or counted twice between patches."""
    view = View(size=size, patch=14, fit=fit)
    coverage = view.coverage(mask)
    assert coverage.dtype == np.uint8 and coverage.shape == (view.grid, view.grid)
    assert np.array_equal(view.coverage(mask.T), coverage.T)
    whole = view.coverage(np.ones_like(mask)).astype(int)
    rest = view.coverage(~mask).astype(int)
    assert np.abs(coverage + rest - whole).max() <= 1
    height, width = mask.shape
    axes = zip(view.axes(width, height), (width, height), strict=True)
    centerd = all(2 * axis.origin + axis.cell * view.grid == axis.pixel * edge for axis, edge in axes)
    assert centerd or fit != "stretch"
    if centerd:  # an odd margin is cut by whole pixels, more on one side
        assert np.array_equal(view.coverage(mask[:, ::-1]), coverage[:, ::-1])
        assert np.array_equal(view.coverage(mask[::-1]), coverage[::-1])
    if fit != "crop":
        share = mask.mean() if fit == "stretch" else mask.sum() / max(mask.shape) ** 2
        assert abs(coverage.sum() / 255 - share * view.grid**2) <= view.grid**2 / 255


# ---------------------------------------------------------------- the page


PAGE = (ROOT / "docs/format.md").read_text()


def documented(heading: str, table: int = 0) -> dict[str, str]:
    """What a table below a heading of the page names in its first column, with the type that stands beside it."""
    section = re.split(r"^#+ ", PAGE.partition(f"# {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    tables = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in tables[table].splitlines()[2:]]
    return {name: kind for names, kind, *_ in cells for name in re.findall(r"`([^`]+)`", names)}


def paths(value: Any, before: str = "") -> dict[str, str]:
    """The fields of a JSON value, as the page names them and their types."""
    kinds = {str: "string", bool: "boolean", int: "integer", float: "number", list: "list", dict: "object"}
    found = {before: kinds[type(value)]} if before else {}
    if isinstance(value, dict):
        for name, entry in value.items():
            found |= paths(entry, f"{before}.{name}" if before else name)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        found |= {path: kind for path, kind in paths(value[0], f"{before}[]").items() if path != f"{before}[]"}
    return found


def test_the_page_of_the_format_names_what_is_written(tmp_path: Path) -> None:
    """A column, a field or an entry that is new, gone, or of another type, and a page that does not know: nobody could
    read the shards by it."""
    assert documented("The index") == {field.name: str(field.type) for field in INDEX_SCHEMA}
    assert documented("The plan") == {field.name: str(field.type) for field in PLAN_SCHEMA}
    assert set(documented("run.json")) == {*Run.model_fields, "seal"}
    assert set(documented("run.json", 1)) == set(View.model_fields)
    assert documented("The tar") == {member: f"`key.{ending}`" for member, ending in MEMBERS.items()}

    rle = {"size": [1, 1], "counts": "01"}
    region = Region("a", (0, 0, 1, 1), alternates=[Alternate("b", 0.5, 0.5)], rle=rle)
    record = ImageRecord("key", "id", "source", "caption", [{"from": "human", "value": "?"}], tags=[Tag("a", 0.5)])
    record.regions, record.width, record.height = [region], 1, 1
    described = {name: kind.partition(" ")[0] for name, kind in documented("key.json").items()}
    assert described == paths(json.loads(record.to_json()))

    record.coverage, record.embeds = np.zeros((1, GRID, GRID), np.uint8), np.zeros((2, WIDTH), np.float16)
    write_shard(Shard(0, [record]), Folder(tmp_path), "0" * 16)
    facts = index_facts(Folder(tmp_path), FIRST)
    assert set(documented("The index", 1)) == {name.decode() for name in facts} - {"ARROW:schema"}
    assert all(f"`{name}`" in PAGE for name in (*TOTALS, *get_args(Status)))
    planned(tmp_path / PLAN_NAME, [Planned("1", "1.png")], 2)
    noted = set(pq.read_schema(tmp_path / PLAN_NAME).metadata)
    assert noted == {b"shard_size", b"seal"} and "The metadata holds `shard_size` and `seal`" in PAGE
    assert f"row groups of {GROUP:,} rows" in PAGE
    assert f"\nVersion {SCHEMA_VERSION}." in PAGE


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from([(336, 14), (112, 8), (384, 16)]))
def test_the_page_of_the_format_says_where_patches_lie(width: int, height: int, square: tuple[int, int]) -> None:
    """Its three formulas, computed as they stand there, against the code's axes."""
    size, patch = square
    formulas = re.findall(r"^(stretch|pad|crop) {2,}(.*?)(?: {4,}.*)?$", PAGE, re.MULTILINE)
    assert len(formulas) == 3 and "T = S where N <= M, else floor(S * N / M)" in PAGE
    for fit, formula in formulas:
        axes = View(size=size, patch=patch, fit=fit).axes(width, height)
        for axis, (edge, other) in zip(axes, ((width, height), (height, width)), strict=True):
            names = {"floor": math.floor, "N": edge, "M": other, "S": size, "P": patch, "Q": max(edge, other)}
            names["T"] = size if edge <= other else math.floor(size * edge / other)
            for j in (0, 1, size // patch):
                found = eval(formula, names | {"j": j})
                assert found == pytest.approx((axis.origin + j * axis.cell) / axis.pixel)
