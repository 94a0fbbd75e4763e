"""The file with the index rows of a large run: the same rows as in the indexes, found wrong whenever it is."""

from __future__ import annotations

import os
import pickle
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from pad_pipeline.shards import rows as module
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.shards.rows import ROWS_NAME, Rows


@pytest.fixture
def run(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that counts as large, in groups of 3 rows."""
    monkeypatch.setattr("pad_pipeline.shards.reader.HELD", 0)
    monkeypatch.setattr(module, "_GROUP", 3)
    monkeypatch.setenv("PAD_CACHE", str(tmp_path / "cache"))
    shutil.copytree(shards, tmp_path / "run")
    return tmp_path / "run"


def read(folder: Path) -> tuple[Rows, list[str]]:
    said: list[str] = []
    return open_shards(folder).usable(said.append), said


def in_indexes(folder: Path) -> list[object]:
    """Name of the shard, key and places of each usable image, straight from the indexes."""
    found = []
    for name, row in open_shards(folder).rows():
        if row["status"] != "failed":
            parts = [row[f"{member}_{part}"] for member in module.MEMBERS for part in ("at", "bytes")]
            found.append((name, row["key"], row["labels"], parts))
    return found


def in_rows(rows: Rows) -> list[object]:
    found = []
    for name, row in map(rows.__getitem__, range(len(rows))):
        parts = [row[f"{member}_{part}"] for member in module.MEMBERS for part in ("at", "bytes")]
        found.append((name, row["key"], row["labels"], parts))
    return found


def test_the_file_has_the_rows_of_the_indexes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory, from a new file, from the file, and in a data loader's worker. Catches rows that are lost or repeated
    between two groups, another order, and distances that are taken for positions."""
    expected = in_indexes(run)
    first, said = read(run)
    assert in_rows(first) == expected
    assert said == [f"The index of all samples is made, once: {run / ROWS_NAME} does not exist yet."]
    again, said = read(run)
    assert in_rows(again) == expected and said == []
    assert in_rows(pickle.loads(pickle.dumps(again))) == expected
    monkeypatch.setattr("pad_pipeline.shards.reader.HELD", 1000)
    held, _ = read(run)
    assert in_rows(held) == in_rows(pickle.loads(pickle.dumps(held))) == expected


def test_a_damaged_byte_is_found_wherever_it_is(run: Path) -> None:
    """Catches a part of the file that its seal does not cover, and a damaged file that is not replaced."""
    expected = in_rows(read(run)[0])
    path = run / ROWS_NAME
    content = path.read_bytes()
    for position in range(0, len(content), 97):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        rows, said = read(run)
        # A damaged byte of the noted state of the shards looks like another state.
        assert in_rows(rows) == expected and re.search("is damaged|is older than a shard", said[0]), position
        assert path.read_bytes() == content
    path.write_bytes(content[:-9])
    assert in_rows(read(run)[0]) == expected


def test_a_file_that_is_older_than_a_shard_is_made_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard of a retry may have the same size as before. Catches a training on positions in tars that are gone, and
    gigabytes that are hashed though they are of no use."""
    read(run)
    index = next(run.glob("pad-*.parquet"))
    os.utime(index, ns=(1, 1))
    monkeypatch.setattr(module, "check_seal", lambda stream: pytest.fail("an old file was hashed"))
    assert read(run)[1] == [f"The index of all samples is made, once: {run / ROWS_NAME} is older than a shard."]
    index.unlink()
    rows, said = read(run)
    assert "older" in said[0] and in_rows(rows) == in_indexes(run)


def test_a_folder_that_can_not_be_written_gets_its_file_in_the_cache(run: Path, tmp_path: Path) -> None:
    """A data set that everybody may read. Catches an error there, and a file that each start makes anew."""
    (run / ROWS_NAME).with_suffix(".lock").mkdir()  # also root can't open it
    rows, said = read(run)
    assert in_rows(rows) == in_indexes(run)
    assert str(tmp_path / "cache") in said[0] and not (run / ROWS_NAME).exists()
    assert read(run)[1] == []


def test_ranks_that_start_together_make_one_file(run: Path) -> None:
    """Eight ranks of a node would read every index eight times."""
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(read, [run] * 8))
    assert [said for _, said in found if said] == [found[[bool(said) for _, said in found].index(True)][1]]
    assert all(in_rows(rows) == in_indexes(run) for rows, _ in found)


def test_no_command_trips_over_the_file(run: Path, pad: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    """Verify calls unknown files of shards strays, and an export to the hub publishes what it copies."""
    read(run)
    assert pad("verify", run).code == 0
    assert pad("export", "hub", run, "--out", tmp_path / "hub").code == 0
    assert not (tmp_path / "hub" / ROWS_NAME).exists()
