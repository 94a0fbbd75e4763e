"""What a run writes is the same bytes from both engines at any time, agrees in itself, and can be read by others."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
from pycocotools import mask as coco_mask

from pad_pipeline.geometry import View
from pad_pipeline.labels import LabelEmbedder
from pad_pipeline.miniature.files import World
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.stages.ground import DetectorSettings
from pad_pipeline.workflows.models.settings import ModelSettings, load_models
from tests.conftest import data
from tests.runs.conftest import Pad


def test_both_engines_write_the_same_bytes(pad: Pad, world: World, common: list[object], tmp_path: Path) -> None:
    """Ray's scheduling, threads and pickling must not reach the data; nor may a rerun change a byte."""
    command = [
        "build",
        "--images",
        world.llava,
        "--image-root",
        world.images,
        *common[:4],
        "--threads",
        2,
        "--shard-size",
        4,
    ]
    local = pad(*command, "--engine", "local", "--out", tmp_path / "local")
    assert local.code == 0, local.err
    assert "10 images" in local.out.replace("\n", " ")
    on_ray = pad(*command, "--engine", "ray", "--out", tmp_path / "ray")
    assert on_ray.code == 0, on_ray.err
    expected = data(tmp_path / "local")
    assert sorted(expected) == ["pad-000000.parquet", "pad-000000.tar", "pad-000001.parquet", "pad-000001.tar",
                                "pad-000002.parquet", "pad-000002.tar", "plan.parquet", "run.json"]  # fmt: skip
    assert data(tmp_path / "ray") == expected

    # A rerun leaves finished shards alone, and makes anew just what is missing or half-written.
    whole = tmp_path / "local" / "pad-000000.tar"
    untouched = whole.stat().st_mtime_ns
    (tmp_path / "local" / "pad-000001.parquet").unlink()
    (tmp_path / "local" / "pad-000001.tar").write_bytes(b"half")
    (tmp_path / "local" / ".pad-000002.tar.partial").write_bytes(b"of a dead run")
    again = pad(*command, "--engine", "local", "--out", tmp_path / "local")
    assert again.code == 0, again.err
    assert "2 of 3 shards are finished already" in again.err
    assert whole.stat().st_mtime_ns == untouched
    (tmp_path / "local" / ".pad-000002.tar.partial").unlink(missing_ok=True)
    assert data(tmp_path / "local") == expected


def test_clocks_and_time_zones_do_not_alter_bytes(
    imported: list[object], pad: Pad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tar that notes when it was made differs each time."""
    assert pad(*imported, "--out", tmp_path / "here").code == 0
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3e8)
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    time.tzset()
    try:
        assert pad(*imported, "--out", tmp_path / "there").code == 0
    finally:
        monkeypatch.undo()
        time.tzset()
    assert data(tmp_path / "here") == data(tmp_path / "there")


def test_every_member_agrees_with_the_others(
    pad: Pad, world: World, models: ModelSettings, common: list[object], tmp_path: Path
) -> None:
    """Coverage is that of the RLE under the run's view, embeddings are the labels', scores are in range: recomputed
    from the written shard. Catches rows in another order than the JSON's regions."""
    out = tmp_path / "out"
    assert pad("build", "--images", world.images, *common, "--engine", "local", "--fit", "pad", "--out", out).code == 0
    shards, view = open_shards(out), View(size=112, patch=14, fit="pad")
    embed = LabelEmbedder(models.llm)
    assert shards.run.view == view
    regions = 0
    for name, row in shards.rows():
        sample = shards.sample(name, row)
        meta = sample.meta
        assert sample.coverage.dtype == np.uint8
        assert sample.coverage.shape == (len(meta["regions"]), 8, 8)
        tags = {tag["label"] for tag in meta["tags"]}
        for region, coverage, embedding in zip(meta["regions"], sample.coverage, sample.region_embeds(), strict=True):
            mask = coco_mask.decode(region["rle"])
            assert mask.shape == (meta["height"], meta["width"])
            assert (view.coverage(mask) == coverage).all()
            assert (embed([region["label"]])[0] == embedding).all()
            assert region["label"] in tags
            x0, y0, x1, y1 = region["box"]
            assert 0 <= x0 < x1 <= meta["width"]
            assert 0 <= y0 < y1 <= meta["height"]
            assert models.annotator(DetectorSettings).box_threshold <= region["score"] <= 1
            assert region["label_score"] <= region["score"]
            regions += 1
    assert regions > 20


def test_alternates_have_their_own_embeddings(pad: Pad, world: World, models_toml: Path, tmp_path: Path) -> None:
    """A region may truthfully have several labels; each must lead to the mean of its own words."""
    settings = models_toml.read_text().replace("box_threshold = 0.3", "box_threshold = 0.3\ntext_threshold = 0.0")
    own = models_toml.with_name("alternates.toml")
    own.write_text(settings)
    out = tmp_path / "out"
    done = pad(
        "build", "--images", world.images, "--models", own, "--view-size", 112, "--engine", "local", "--out", out
    )
    assert done.code == 0, done.err
    assert pad("verify", out).code == 0
    embed = LabelEmbedder(load_models(str(own)).llm)
    shards, seen = open_shards(out), 0
    for name, row in shards.rows():
        sample = shards.sample(name, row)
        for region in sample.meta["regions"]:
            labels = [region["label"], *(other["label"] for other in region["alternates"])]
            assert len(set(labels)) == len(labels) <= 5
            means = [other["label_score"] for other in region["alternates"]]
            assert means == sorted(means, reverse=True) and region["label_score"] >= max(means, default=0)
            for one in (region, *region["alternates"]):
                assert np.array_equal(sample.embeds[one["embedding"]], embed([one["label"]])[0])
                seen += one is not region
    assert seen > 20


def blank_first(world: World, folder: Path, blanks: int = 6) -> Path:
    """COCO annotations in which the first images have no region, no tag and no caption; others follow."""
    coco = json.loads(world.instances.read_text())
    kept = {entry["id"] for entry in coco["images"][blanks:]}
    coco["annotations"] = [entry for entry in coco["annotations"] if entry["image_id"] in kept]
    path = folder / "blank_first.json"
    path.write_text(json.dumps(coco))
    return path


def test_others_can_read_a_shard_whose_first_images_are_empty(
    pad: Pad, world: World, common: list[object], tmp_path: Path
) -> None:
    """webdataset and Hugging Face datasets, which infers types from the first samples: empty lists have none, and
    what turned up later was dropped or refused."""
    from datasets import load_dataset

    out = tmp_path / "out"
    annotations = blank_first(world, tmp_path)
    options = ["--images", world.images, *common[:4], "--out", out]
    assert pad("import", "coco", "--annotations", annotations, *options).code == 0
    rows = {row["key"]: row for _, row in open_shards(out).rows()}
    assert [row["status"] for row in rows.values()] == ["empty"] * 6 + ["ok"] * 4

    samples = list(webdataset.WebDataset(str(out / "pad-000000.tar"), shardshuffle=False).decode("pil"))
    assert sorted(sample["__key__"] for sample in samples) == sorted(rows)
    for sample in samples:
        row = rows[sample["__key__"]]
        assert sample["masks.npy"].shape == (row["regions"], 8, 8)
        assert sample["embeds.npy"].shape == (row["labels"], 64)
        assert sample["jpg"].size == (row["width"], row["height"])
        assert len(sample["json"]["regions"]) == row["regions"]

    table = load_dataset(
        "webdataset", data_files=str(out / "pad-*.tar"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(table) == 10
    by_key = {sample["__key__"]: sample for sample in table}
    for sample in samples:
        other = by_key[sample["__key__"]]
        assert other["json"]["regions"] == sample["json"]["regions"]
        assert np.array_equal(np.array(other["masks.npy"], np.uint8).reshape(-1, 8, 8), sample["masks.npy"])
        assert other["jpg"].size == sample["jpg"].size
