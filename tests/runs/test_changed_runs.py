"""A run that is resumed with other settings, images or code is refused by name, and can be forked or accepted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pad_pipeline.miniature.files import World
from pad_pipeline.shards import lock
from pad_pipeline.storage import folder_at
from pad_pipeline.workflows.runs import prepare
from tests.conftest import data
from tests.runs.conftest import Pad


def test_a_rerun_with_other_settings_is_refused(pad: Pad, world: World, common: list[object], tmp_path: Path) -> None:
    """Half a run with one threshold or view and half with another would be a dataset that nobody can describe."""
    command = ["build", "--images", world.images, *common, "--engine", "local", "--out", tmp_path / "out"]
    assert pad(*command).code == 0
    before = data(tmp_path / "out")
    other = pad(*command, "--fit", "pad")
    assert other.code == 2
    assert "view.fit: crop -> pad" in other.err
    assert other.err.count("\n") == 1
    moved = pad("build", "--images", world.llava, "--image-root", world.images, *command[3:])
    assert moved.code == 2
    assert "fingerprints.inputs" in moved.err
    assert data(tmp_path / "out") == before


def test_a_difference_is_spelled_out(folder: Path, imported: list[object], pad: Pad, tmp_path: Path) -> None:
    """Which image, and what about it; which setting, from what to what. And the ways on are named."""
    out = tmp_path / "out"
    command = [*imported[:4], "--images", folder, *imported[6:], "--out", out]
    assert pad(*command).code == 0

    def refusal(*more: object) -> str:
        refused = pad(*command, *more)
        assert refused.code == 2, refused.out
        assert refused.err.count("\n") == 1
        assert "a new folder with --fork" in refused.err
        return str(refused.err)

    path = folder / "scene-00003.png"
    content = path.read_bytes()
    path.write_bytes(content + b"\0")
    size = len(content)
    assert f"pad-000000 row 3, bytes: {size} -> {size + 1}" in refusal()
    path.write_bytes(content[:-1] + b"\1")  # the size tells nothing
    assert "contents.scene-00003" in refusal()
    path.write_bytes(content)
    assert "view.fit: crop -> pad" in refusal("--fit", "pad")
    assert "images: 10 -> 4" in refusal("--limit", 4)
    assert pad(*command).code == 0


def test_a_full_fingerprint_notices_a_change_that_keeps_the_size(
    folder: Path, common: list[object], pad: Pad, tmp_path: Path
) -> None:
    """`--fingerprint full` notes every image's sha256; one that changes between planning and reading fails by name."""
    command = ["build", "--images", folder, *common, "--engine", "local", "--fingerprint", "full"]
    assert pad(*command, "--out", tmp_path / "one").code == 0
    path = folder / "scene-00009.png"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\1")
    refused = pad(*command, "--out", tmp_path / "one")
    assert refused.code == 2
    assert "row 9, sha256: " in refused.err


def test_facts_that_were_edited_stop_a_rerun(imported: list[object], pad: Pad, tmp_path: Path) -> None:
    """One value changed in run.json made every shard another run's, and the rerun threw them away."""
    out = tmp_path / "out"
    assert pad(*imported, "--out", out).code == 0
    text = (out / "run.json").read_text()
    (out / "run.json").write_text(text.replace('"max_aspect": 100.0', '"max_aspect": 100.5'))
    before = data(out)
    refused = pad(*imported, "--fit", "pad", "--out", out)
    assert refused.code == 2 and "changed after it was written" in refused.err
    assert data(out) == before


def test_a_fork_takes_over_what_would_come_out_the_same(
    folder: Path, imported: list[object], pad: Pad, tmp_path: Path
) -> None:
    """More images at the end: the whole shards before are copied, the run in --out stays as it is. Another view:
    nothing carries over."""
    out, fork, other = tmp_path / "out", tmp_path / "fork", tmp_path / "other"
    command = [*imported[:4], "--images", folder, *imported[6:], "--shard-size", 3]
    assert pad(*command, "--limit", 7, "--out", out).code == 0
    expected = data(out)
    forked = pad(*command, "--out", out, "--fork", fork)
    assert forked.code == 0, forked.err
    assert "2 of 4 shards" in forked.err
    assert data(out) == expected
    assert pad(*command, "--out", tmp_path / "whole").code == 0
    assert data(fork) == data(tmp_path / "whole")
    assert "0 of 4 shards" in pad(*command, "--fit", "pad", "--out", out, "--fork", other).err
    assert pad("verify", other, "--deep").code == 0


def test_changed_code_is_refused_and_can_be_accepted(
    imported: list[object], pad: Pad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a run by one version and half by another can't be described, unless somebody says that they agree; what
    they said stays in run.json."""
    from pad_pipeline.workflows.runs import spec

    out = tmp_path / "out"
    command = [*imported, "--shard-size", 4, "--out", out]
    assert pad(*command).code == 0
    code = json.loads((out / "run.json").read_text())["fingerprints"]["code"]
    (out / "pad-000001.parquet").unlink()
    monkeypatch.setattr(spec, "code_fingerprint", lambda: "9.9.9+another")
    refused = pad(*command)
    assert refused.code == 2
    assert f"fingerprints.code: {code} -> 9.9.9+another" in refused.err
    assert "--accept-changed-code" in refused.err
    assert pad(*command, "--accept-changed-code").code == 0
    facts = json.loads((out / "run.json").read_text())
    assert (facts["fingerprints"]["code"], facts["accepted_code"]) == ("9.9.9+another", [code])
    assert pad(*command).code == 0
    assert pad("verify", out).code == 0


def test_a_long_plan_is_followed_by_the_way_around_it(
    imported: list[object], pad: Pad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a rerun, where it helps. Catches users of 100 million images who plan again for hours at each resume."""
    monkeypatch.setattr(prepare, "_LONG", 0.0)
    command = [*imported, "--shard-size", 2, "--engine", "local", "--out", tmp_path / "out"]
    assert "With the fingerprint `kept`" not in pad(*command).err
    said = pad(*command).err
    assert "Planning again took 0 minutes. With the fingerprint `kept`, a rerun keeps the plan" in " ".join(
        said.split()
    )


@pytest.mark.parametrize("remote", [False, True])
def test_a_kept_plan_is_resumed_without_a_listing(
    folder: Path,
    imported: list[object],
    store: str,
    pad: Pad,
    tmp_path: Path,
    remote: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`--fingerprint kept`. Catches a plan that is made again, a changed image of the sample that goes unnoticed,
    images from another folder, and a damaged plan or other settings that are taken over."""
    import fsspec

    monkeypatch.setattr(lock, "BEAT", 0.1)

    here = tmp_path / "out"
    out = f"{store}/kept" if remote else here

    def fetched() -> dict[str, str]:
        if remote:
            shutil.rmtree(here, ignore_errors=True)
            fsspec.filesystem("s3").invalidate_cache()
            fsspec.filesystem("s3").get("bucket/kept", str(here), recursive=True)
        return data(here)

    command = [*imported, "--images", folder, "--shard-size", 2, "--engine", "local", "--out", out]
    kept = [*command, "--fingerprint", "kept"]
    assert pad(*kept).code == 0  # the first time, it plans as always
    whole = fetched()
    folder_at(str(out)).delete("pad-000003.parquet")
    (folder / "new.png").write_bytes(sorted(folder.iterdir())[0].read_bytes())
    done = pad(*kept)
    assert done.code == 0 and "images are planned" not in done.err and "4 of 5 shards" in done.err, done.err
    assert fetched() == whole
    for change in (["--fit", "pad"], ["--shard-size", 3], ["--limit", 4]):
        refused = pad(*kept, *change)
        assert refused.code == 2 and "made with something else" in refused.err, refused.err
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    refused = pad(*kept, "--images", elsewhere)
    assert refused.code == 2 and "none of the 10 images that were tried can be read" in refused.err, refused.err
    image = sorted(folder.iterdir())[1]
    image.write_bytes(image.read_bytes() + b"x")
    refused = pad(*kept)
    assert refused.code == 2 and f"contents.{image.stem}" in refused.err, refused.err
    image.write_bytes(image.read_bytes()[:-1])
    plan = bytearray(folder_at(str(out)).read("plan.parquet"))
    plan[len(plan) // 2] ^= 1
    with folder_at(str(out)).commit("plan.parquet") as partial:
        partial.write_bytes(plan)
    refused = pad(*kept)
    assert refused.code == 2 and refused.err.startswith("error: --fingerprint = kept: "), refused.err
    assert "plan.parquet is damaged" in refused.err and refused.err.count("\n") == 1
    (folder / "new.png").unlink()
    assert pad(*command).code == 0 and fetched() == whole
