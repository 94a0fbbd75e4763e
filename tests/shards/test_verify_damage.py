"""`pad verify` passes a sound run, and names what is wrong with one whose files were changed, lost or exchanged."""

from __future__ import annotations

import json
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pad_pipeline.plan import PLAN_NAME
from pad_pipeline.records import MEMBERS
from pad_pipeline.shards.run import RUN_NAME
from tests.shards.builders import FIRST, SECOND
from tests.shards.conftest import Pad, Runs
from tests.shards.damage import Change, index_rows, problems


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
    "a stray tar": ("it belongs to no planned shard", lambda folder: (folder / "pad-000099.tar").write_bytes(b"stray")),
    "a stray index": (
        "it belongs to no planned shard",
        lambda folder: (folder / "pad-0000000.parquet").write_bytes(b"x"),
    ),
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
    for name, sign in ((PLAN_NAME, "it is not the plan of this run"), (RUN_NAME, "not the plan")):
        shutil.rmtree(folder)
        shutil.copytree(runs.good, folder)
        shutil.copy(runs.other / name, folder)
        assert any(sign in problem for problem in problems(folder)), name
