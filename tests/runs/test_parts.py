"""Several drivers on one run, each with a part of its shards: together they write what one run writes."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from pad_pipeline.errors import UserError
from pad_pipeline.shards import lock
from pad_pipeline.shards.lock import locked
from pad_pipeline.storage import Folder, folder_at
from pad_pipeline.workflows.runs.options import Part
from tests.conftest import data
from tests.runs.conftest import Pad, living
from tests.runs.processes import finished, process


@pytest.fixture(scope="module")
def command(imported: list[object]) -> list[object]:
    """An import of ten scenes into five shards, without its folder."""
    return [*imported, "--shard-size", 2, "--engine", "local"]


@pytest.fixture
def whole(command: list[object], pad: Pad, tmp_path: Path) -> dict[str, str]:
    """The files of one run."""
    assert pad(*command, "--out", tmp_path / "whole").code == 0
    return data(tmp_path / "whole")


def files(out: Path) -> dict[str, str]:
    """The files that a run must write the same every time."""
    return {name: digest for name, digest in data(out).items() if not name.startswith("metrics-")}


def test_every_shard_is_in_one_part() -> None:
    """Catches a shard between two parts, or in both."""
    for parts in range(1, 13):
        for shards in (0, 1, 5, 7, 12, 200_000):
            ranges = [Part(number, parts).shards(shards) for number in range(1, parts + 1)]
            assert [ranges[0].start, *(own.stop for own in ranges)] == [*(own.start for own in ranges), shards]


@pytest.mark.parametrize("parts", [(1, 2), (2, 1), (3, 1, 2), (7, 1, 2, 3, 4, 5, 6)])
def test_parts_in_any_order_are_one_run(
    command: list[object], whole: dict[str, str], pad: Pad, tmp_path: Path, parts: tuple[int, ...]
) -> None:
    """Catches a part that removes or repeats shards of another, a plan or run.json of its own, and an exit code for a
    part without shards."""
    out = tmp_path / "out"
    for n, part in enumerate(parts, 1):
        done = pad(*command, "--out", out, "--part", f"{part}/{len(parts)}")
        assert done.code == 0, done.err
        missing = 5 - len(list(out.glob("*.tar")))
        last = "of 5 shards of the whole run are still missing" if missing else "The whole run is finished: 5 shards"
        assert last in done.out.splitlines()[-1] and (n == len(parts)) == (not missing)
    assert files(out) == whole
    assert json.loads((out / "metrics-1-of-2.jsonl").read_text())["shards"] == 2 if len(parts) == 2 else True
    again = pad(*command, "--out", out)
    assert "5 of 5 shards are finished already" in again.err and files(out) == whole
    assert pad("verify", out).code == 0


def test_parts_of_a_rewrite(whole: dict[str, str], pad: Pad, tmp_path: Path) -> None:
    """Catches an option that only `build` and `import` know."""
    command = ["retarget", tmp_path / "whole", "--fit", "pad", "--engine", "local", "--out"]
    assert pad(*command, tmp_path / "one").code == 0
    for part in ("2/2", "1/2"):
        assert pad(*command, tmp_path / "two", "--part", part).code == 0
    assert files(tmp_path / "two") == data(tmp_path / "one") != whole


@pytest.mark.long
def test_parts_at_the_same_time(command: list[object], whole: dict[str, str], tmp_path: Path) -> None:
    """Two processes, one of which is killed in mid-commit, and runs again. Catches parts that lock each other out,
    whose plans and run.json mix while both are written, or that remove what another one writes at the moment."""
    out = tmp_path / "out"
    first, second = ([*command, "--out", out, "--part", f"{part}/2"] for part in (1, 2))
    running = [process(first), process(second, "at:index written:1:driver")]
    ended = [finished(one) for one in running]
    assert [code for code, _ in ended] == [0, -signal.SIGKILL], ended
    code, said = finished(process(second))
    assert code == 0 and "The whole run is finished: 5 shards" in said, said
    assert files(out) == whole


def test_a_part_that_died_leaves_the_others_alone(
    command: list[object], whole: dict[str, str], pad: Pad, tmp_path: Path
) -> None:
    """What a killed part leaves: a tar without index, unfinished files. Catches a part that tidies up what another one
    writes at the moment, and leftovers in its own range that stay."""
    out = tmp_path / "out"
    assert pad(*command, "--out", out, "--part", "1/2").code == 0
    partial = ".pad-{}.tar.0123456789ab.partial"
    (out / "pad-000003.tar").write_bytes(b"half")
    for shard in ("000000", "000004"):
        (out / partial.format(shard)).write_bytes(b"half")
    (out / ".lock-2-of-2").write_text("{}")
    assert pad(*command, "--out", out, "--part", "1/2").code == 0
    assert (out / "pad-000003.tar").read_bytes() == b"half"
    assert not (out / partial.format("000000")).exists() and (out / partial.format("000004")).exists()
    (out / "pad-000001.parquet").unlink()  # of the other part
    assert "1 of 5 shards of the whole run" in pad(*command, "--out", out, "--part", "2/2").out
    assert (out / "pad-000001.tar").exists() and not (out / "pad-000001.parquet").exists()
    assert pad(*command, "--out", out, "--part", "1/2").code == 0
    assert files(out) == whole


def test_a_lock_may_go_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a run that fails because another one ended between two requests."""
    monkeypatch.setattr(Folder, "has", lambda self, name: True)
    assert lock._read(Folder(tmp_path), lock.LOCK_NAME) == {}


def test_what_excludes_a_part(command: list[object], pad: Pad, tmp_path: Path) -> None:
    """Catches two drivers on the same shards: the same part, the whole run, or parts of another number."""
    out = tmp_path / "out"
    out.mkdir()
    with locked(folder_at(out), "2-of-3"):
        for options in (["--part", "2/3"], [], ["--part", "1/2"]):
            refused = pad(*command, "--out", out, *options)
            assert refused.code == 2 and "another run is writing into it" in refused.err, options
        assert pad(*command, "--out", out, "--part", "1/3").code == 0
    with locked(folder_at(out)):
        refused = pad(*command, "--out", out, "--part", "2/3")
        assert refused.code == 2 and "another run is writing into it" in refused.err
    assert not list(out.glob(".lock*"))


@pytest.mark.parametrize("part", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3", "1/3/2", "\u0661/3"])
def test_a_part_that_is_none(command: list[object], pad: Pad, tmp_path: Path, part: str) -> None:
    refused = pad(*command, "--out", tmp_path / "out", f"--part={part}")
    assert refused.code == 2 and refused.err.startswith(f"error: --part = {part}: it should be I/N"), refused.err
    assert refused.err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_parts_with_other_settings_or_images_are_refused(
    command: list[object], pad: Pad, folder: Path, tmp_path: Path
) -> None:
    """Catches a folder whose shards come from two runs: nothing of a part needs to be finished for its run.json to
    hold for all others."""
    out = tmp_path / "out"
    assert pad(*command, "--out", out, "--part", "1/8").code == 0  # the range has no shard
    assert sorted(path.name for path in out.iterdir()) == ["plan.parquet", "run.json"]
    before = data(out)
    for change in (["--fit", "pad"], ["--shard-size", 3], ["--limit", 4], ["--images", folder]):
        if change[0] == "--images":
            sorted(folder.iterdir())[0].write_bytes(b"")
        refused = pad(*command, *change, "--out", out, "--part", "2/8")
        assert refused.code == 2 and "made with something else" in refused.err, refused.err
        assert data(out) == before


def test_failed_images_are_tried_again_by_part(command: list[object], pad: Pad, folder: Path, tmp_path: Path) -> None:
    """Catches a retry of a part that works on the shards of another."""
    out, hidden = tmp_path / "out", tmp_path / "hidden"
    images = [*command, "--images", folder, "--fingerprint", "names", "--out", out]
    hidden.mkdir()
    names = sorted(path.name for path in folder.iterdir())
    for name in (names[0], names[9]):
        shutil.move(folder / name, hidden)
    assert pad(*images).code == 0
    for name in (names[0], names[9]):
        shutil.move(hidden / name, folder)
    first = pad(*images, "--retry-failed", "--part", "1/2")
    assert first.code == 0 and "0 failed" in first.out
    assert json.loads(pad("stats", out, "--json").out)["statuses"]["failed"] == 1
    assert pad(*images, "--retry-failed", "--part", "2/2").code == 0
    assert "failed" not in json.loads(pad("stats", out, "--json").out)["statuses"]


def test_parts_in_an_object_store(
    command: list[object], whole: dict[str, str], store: str, pad: Pad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches locks of parts that exclude each other in a store, or that do not, and the lock of a part that died."""
    import fsspec

    monkeypatch.setattr(lock, "BEAT", 0.2)
    files_ = fsspec.filesystem("s3")
    out = f"{store}/parts"
    assert pad(*command, "--out", out, "--part", "2/2").code == 0
    files_.pipe("bucket/parts/.lock-1-of-2", b'{"host": "there", "process": 1, "token": "x"}')  # it died
    with living("bucket/parts/.lock-1-of-3"):
        for options in ([], ["--part", "1/2"], ["--part", "1/3"]):
            refused = pad(*command, "--out", out, *options)
            assert refused.code == 2 and "another run is writing" in refused.err, options
    done = pad(*command, "--out", out, "--part", "1/2")
    assert done.code == 0, done.err
    files_.invalidate_cache()
    files_.get("bucket/parts", str(tmp_path / "copy"), recursive=True)
    assert files(tmp_path / "copy") == whole


def test_a_part_from_python() -> None:
    with pytest.raises(UserError, match="part = 9/8"):
        Part.parse("9/8")
    assert str(Part.parse("3/8")) == "3-of-8"
