"""Shards from shards: another view, other regions, some images, several runs; as if the build had been made so."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pad_pipeline.miniature.files import World
from pad_pipeline.shards.reader import open_shards
from tests.conftest import wait_for

Pad = Callable[..., Any]
PAD = Path(sys.executable).with_name("pad")


def shard_files(folder: Path) -> dict[str, bytes]:
    """Tars and their indexes."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("pad-*"))}


def regions(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Image id -> its regions."""
    shards = open_shards(folder)
    return {
        row["id"]: shards.sample(name, row).meta["regions"] if row["status"] != "failed" else []
        for name, row in shards.rows()
    }


@pytest.fixture(scope="module")
def images(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenes, and one that is no image."""
    folder = tmp_path_factory.mktemp("images") / "images"
    shutil.copytree(world.images, folder)
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def built(images: Path, models_toml: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Builds of them with a view, each made once."""
    made: dict[tuple[object, ...], Path] = {}

    def build(*view: object) -> Path:
        if view not in made:
            made[view] = tmp_path_factory.mktemp("built") / "out"
            words = [PAD, "build", "--images", images, "--models", models_toml, "--threads", 1, "--engine", "local"]
            words += ["--shard-size", 4, "--view-size", 112, *view, "--out", made[view]]
            subprocess.run([str(word) for word in words], check=True, capture_output=True)
        return made[view]

    return build


@pytest.mark.parametrize(
    "view",
    [
        pytest.param((), id="same"),
        pytest.param(("--fit", "pad"), id="padded", marks=pytest.mark.long),
        pytest.param(("--patch", 28), id="coarser", marks=pytest.mark.long),
    ],
)
def test_it_equals_a_fresh_build(
    view: tuple[object, ...], built: Callable[..., Path], pad: Pad, tmp_path: Path
) -> None:
    """Tars and indexes to the byte, failed images too. Catches masks that are cut for the old grid, digits that are
    lost on the way through JSON, and an order of samples or labels of its own."""
    done = pad("retarget", built(), *view, "--out", tmp_path / "new")
    assert done.code == 0, done.err
    assert shard_files(tmp_path / "new") == shard_files(built(*view))
    assert pad("verify", tmp_path / "new", "--deep").code == 0


@pytest.mark.long
def test_on_ray_and_after_a_kill_it_is_the_same(built: Callable[..., Path], tmp_path: Path) -> None:
    """The same engine, commit and resume as a build's: killed behind its first shard, finished on Ray."""
    words = [str(word) for word in (PAD, "retarget", built(), "--fit", "pad", "--shard-size", 1, "--out")]
    subprocess.run([*words, str(tmp_path / "whole")], check=True, capture_output=True)
    killed = [*words, str(tmp_path / "killed")]
    with subprocess.Popen(killed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True) as process:
        wait_for((tmp_path / "killed/pad-000000.parquet").exists, process)
        os.kill(process.pid, signal.SIGKILL)
    assert len(shard_files(tmp_path / "killed")) < len(shard_files(tmp_path / "whole"))
    done = subprocess.run([*killed, "--engine", "ray"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert shard_files(tmp_path / "killed") == shard_files(tmp_path / "whole")


def test_another_llm_changes_the_embeddings_alone(
    built: Callable[..., Path], models_toml: Path, pad: Pad, tmp_path: Path
) -> None:
    """Retargeted to the miniature's LLM, width and embeddings are its own, regions and coverage as they were."""
    import numpy as np

    from pad_pipeline.labels import LabelEmbedder, LabelSettings

    assert pad("retarget", built(), "--llm", "miniature", "--out", tmp_path / "new").code == 0
    old, new = open_shards(built()), open_shards(tmp_path / "new")
    embed = LabelEmbedder(LabelSettings(llm="miniature:llm"))
    assert new.run.embedding_width == embed.width != old.run.embedding_width
    for (name, before), (_, after) in zip(old.rows(), new.rows(), strict=True):
        if before["status"] == "failed":
            continue
        was, now = old.sample(name, before), new.sample(name, after)
        assert was.meta == now.meta
        assert np.array_equal(was.coverage, now.coverage)
        labels = [region["label"] for region in now.meta["regions"]]
        if labels:
            assert np.array_equal(now.region_embeds(), embed(labels))


def test_regions_are_filtered_renamed_and_thinned(built: Callable[..., Path], pad: Pad, tmp_path: Path) -> None:
    """Thresholds, names and overlaps as counted by hand from the shards. Catches a filter that looks at old names, and
    masks that no longer go with their regions."""
    before = regions(built())
    found = [region for its in before.values() for region in its]
    labels = sorted({region["label"] for region in found})
    first, second, third = labels[:3]
    score = sorted(region["score"] for region in found)[len(found) // 3]
    (tmp_path / "map.json").write_text(json.dumps({first: second, third: ""}))
    (tmp_path / "drop.txt").write_text(f"{labels[3]}\n\n")
    options = ["--label-map", tmp_path / "map.json", "--drop-labels", tmp_path / "drop.txt", "--min-score", score]
    done = pad("retarget", built(), *options, "--out", tmp_path / "new")
    assert done.code == 0, done.err
    after = regions(tmp_path / "new")
    for name, its in before.items():
        stay = [one for one in its if one["score"] >= score and one["label"] not in (third, labels[3])]
        named = [second if one["label"] == first else one["label"] for one in stay]
        assert [one["label"] for one in after[name]] == named
        assert [one["rle"] for one in after[name]] == [one["rle"] for one in stay]
        assert all(other["label"] != one["label"] for one in after[name] for other in one["alternates"])
    assert pad("verify", tmp_path / "new", "--deep").code == 0
    assert pad("retarget", built(), "--nms-iou-across-labels", 0.0, "--out", tmp_path / "apart").code == 0
    for its in regions(tmp_path / "apart").values():
        for number, one in enumerate(its):
            assert not any(overlap(one["box"], other["box"]) for other in its[:number])
    (tmp_path / "keep.txt").write_text("nothing of the kind")
    assert pad("retarget", built(), "--keep-labels", tmp_path / "keep.txt", "--out", tmp_path / "none").code == 0
    assert {row["status"] for _, row in open_shards(tmp_path / "none").rows()} == {"empty", "failed"}


def overlap(a: list[float], b: list[float]) -> bool:
    """Whether two boxes share area."""
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])


def test_a_filter_takes_whole_images(built: Callable[..., Path], pad: Pad, tmp_path: Path) -> None:
    """Those that are asked for and no other, each as it was."""
    before = regions(built())
    label = next(one["label"] for its in before.values() for one in its)
    wanted = {name: its for name, its in before.items() if any(one["label"] == label for one in its)}
    assert pad("filter", built(), "--label", label, "--out", tmp_path / "label").code == 0
    assert regions(tmp_path / "label") == wanted
    assert pad("filter", built(), "--status", "failed", "--out", tmp_path / "failed").code == 0
    (row,) = (row for _, row in open_shards(tmp_path / "failed").rows())
    assert (row["id"], row["stage"]) == ("broken", "decode")
    (tmp_path / "ids.txt").write_text("scene-00001\nscene-00003\n")
    assert pad("filter", built(), "--ids", tmp_path / "ids.txt", "--out", tmp_path / "ids").code == 0
    assert list(regions(tmp_path / "ids")) == ["scene-00001", "scene-00003"]
    keys = [row["key"] for _, row in open_shards(built()).rows()][1:3]
    (tmp_path / "keys.txt").write_text("\n".join([*keys, "no such key"]))
    done = pad("filter", built(), "--keys", tmp_path / "keys.txt", "--out", tmp_path / "keys")
    assert done.code == 0 and "1 keys that no finished shard has" in done.out
    assert [row["key"] for _, row in open_shards(tmp_path / "keys").rows()] == keys


def test_images_that_failed_before_are_no_broken_stage(models_toml: Path, pad: Pad, tmp_path: Path) -> None:
    """More failed images in a row than stop a run (100): they are taken over, and do not stop it. An exit code tells
    where more failed than may, and where nothing else is left."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(120):
        (images / f"{number:03}.png").write_bytes(b"no image")
    Image.new("RGB", (60, 40)).save(images / "200.png")
    entries = [
        {"id": n, "file_name": p.name, "width": 60, "height": 40} for n, p in enumerate(sorted(images.iterdir()))
    ]
    (tmp_path / "a.json").write_text(json.dumps({"images": entries, "annotations": [], "categories": []}))
    command = ["import", "coco", "--annotations", tmp_path / "a.json", "--images", images, "--models", models_toml]
    assert pad(*command, "--view-size", 112, "--breaker", 0, "--out", tmp_path / "old").code == 0
    done = pad("retarget", tmp_path / "old", "--fit", "pad", "--out", tmp_path / "new")
    assert done.code == 0 and "120 failed" in done.out, done.err
    assert pad("retarget", tmp_path / "old", "--max-failed", "5%", "--out", tmp_path / "new", "--fit", "pad").code == 1
    assert pad("filter", tmp_path / "old", "--status", "failed", "--out", tmp_path / "failed").code == 0
    none = pad("filter", tmp_path / "old", "--limit", 100, "--min-edge", 0, "--label", "x", "--out", tmp_path / "no")
    assert none.code == 2 and "Traceback" not in none.err
    lost = pad("retarget", tmp_path / "failed", "--fit", "pad", "--out", tmp_path / "lost")
    assert lost.code == 2 and "every one of them failed" in lost.err


def test_a_merge_holds_every_image_of_every_run(built: Callable[..., Path], pad: Pad, tmp_path: Path) -> None:
    """Repeated ids keep keys of their own; halves that are merged are the whole again; views must be said where they
    differ."""
    ids = sorted(regions(built()))
    for number, half in enumerate((ids[:5], ids[5:])):
        (tmp_path / "ids.txt").write_text("\n".join(half))
        assert pad("filter", built(), "--ids", tmp_path / "ids.txt", "--out", tmp_path / f"half-{number}").code == 0
    assert pad("merge", tmp_path / "half-0", tmp_path / "half-1", "--out", tmp_path / "merged").code == 0
    assert regions(tmp_path / "merged") == regions(built())
    refused = pad("merge", built(), built("--fit", "pad"), "--out", tmp_path / "both")
    assert refused.code == 2
    assert "--fit" in refused.err and "view" in refused.err
    done = pad("merge", built(), built("--fit", "pad"), "--fit", "pad", "--out", tmp_path / "both")
    assert done.code == 0, done.err
    rows = [row for _, row in open_shards(tmp_path / "both").rows()]
    assert len(rows) == 2 * len(ids) == len({row["key"] for row in rows})
    assert pad("verify", tmp_path / "both", "--deep").code == 0


def test_damage_is_not_sealed_anew(built: Callable[..., Path], pad: Pad, tmp_path: Path) -> None:
    """A byte of an image that has changed since the build: the image fails, and the others come through. Catches a
    copy that hashes whatever it finds."""
    old = tmp_path / "old"
    shutil.copytree(built(), old)
    name, row = next((name, row) for name, row in open_shards(old).rows() if row["status"] != "failed")
    content = bytearray((old / f"{name}.tar").read_bytes())
    content[row["image_at"] + row["image_bytes"] // 2] ^= 1
    (old / f"{name}.tar").write_bytes(content)
    assert pad("retarget", old, "--out", tmp_path / "new").code == 0
    failed = {row["id"]: row for _, row in open_shards(tmp_path / "new").rows() if row["status"] == "failed"}
    assert failed.keys() == {"broken", row["id"]}
    assert failed[row["id"]]["stage"] == "restore"
    assert "sha256" in failed[row["id"]]["reason"]


def test_mistakes_are_answered_in_one_line(built: Callable[..., Path], pad: Pad, tmp_path: Path) -> None:
    """Each names its option, and leaves no folder behind."""
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "empty.txt").write_text("\n")
    out = ["--out", tmp_path / "new"]
    for said, *words in (
        ("run.json", "retarget", tmp_path / "nowhere", *out),
        ("--label-map", "retarget", built(), "--label-map", tmp_path / "list.json", *out),
        ("--drop-labels", "retarget", built(), "--drop-labels", tmp_path / "empty.txt", *out),
        ("--keep-labels", "retarget", built(), "--keep-labels", tmp_path / "gone.txt", *out),
        ("llm", "retarget", built(), "--llm", tmp_path / "gone", *out),
        ("--view-size", "retarget", built(), "--patch", 113, *out),
        ("--out", "retarget", built(), "--out", built()),
        ("--status", "filter", built(), *out),
        ("no image", "filter", built(), "--label", "unicorn", *out),
    ):
        refused = pad(*words)
        assert refused.code == 2, words
        assert said in refused.err, refused.err
        assert "Traceback" not in refused.err
        assert not (tmp_path / "new").exists()
