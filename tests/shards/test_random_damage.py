"""Readers and commands name random damage to the files of a run, or it does no harm."""

from __future__ import annotations

import faulthandler
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from pad_pipeline.records import MEMBERS
from tests.shards.builders import FIRST, SECOND
from tests.shards.children import as_child, in_child
from tests.shards.conftest import Pad, Runs
from tests.shards.damage import index_rows, mended, plainly
from tests.shards.hostile import use


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
    assert in_child(fuzz, runs.good, tmp_path / "run", 0, 150, seconds=120) == []


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
