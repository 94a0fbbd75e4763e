"""`pad build` and what it writes: the same bytes from both engines, readable by others, resumable, no row lost."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image
from pycocotools import mask as coco_mask

from pad_pipeline.geometry import View
from pad_pipeline.labels import LabelEmbedder
from pad_pipeline.miniature.files import World
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.workflows.models.settings import ModelSettings, load_models
from tests.conftest import SHARED, data, shared

Pad = Callable[..., object]


@pytest.fixture(scope="module")
def common(models_toml: Path) -> list[object]:
    return ["--models", models_toml, "--view-size", 112, "--threads", 2]


def test_both_engines_write_the_same_bytes(pad: Pad, world: World, common: list[object], tmp_path: Path) -> None:
    """Ray's scheduling, threads and pickling must not reach the data; nor may a rerun change a byte."""
    command = ["build", "--images", world.llava, "--image-root", world.images, *common, "--shard-size", 4]
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
    assert "left as they are: 2 of 3 shards" in again.err
    assert whole.stat().st_mtime_ns == untouched
    (tmp_path / "local" / ".pad-000002.tar.partial").unlink(missing_ok=True)
    assert data(tmp_path / "local") == expected


def test_a_mistake_is_one_line_on_ray_too(pad: Pad, world: World, models_toml: Path, tmp_path: Path) -> None:
    """Ray used to retry the actor that refused its checkpoint, and to print pages before the reason."""
    for name in ("tags.txt", "segmenter.safetensors", "detector", "llm"):
        (tmp_path / name).symlink_to(models_toml.parent / name)
    (tmp_path / "models.toml").write_text(
        models_toml.read_text().replace('"tagger.safetensors"', '"segmenter.safetensors"')
    )
    done = pad("build", "--images", world.images, "--models", tmp_path / "models.toml", "--out", tmp_path / "out")
    assert done.code == 2
    assert "look like SAM" in done.err
    assert done.err.count("\n") == 1, done.err


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


@pytest.fixture(scope="module")
def mixed(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good and bad files, of several formats, in subfolders, some with equal names."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "a" / "deep.er").mkdir(parents=True)
    scene = Image.open(world.images / "scene-00000.png")
    for name in ("a/one.jpg", "a/one.PNG", "a/deep.er/x.y.webp", "z.gif"):
        scene.save(folder / name)
    (folder / "broken.jpg").write_bytes((folder / "a/one.jpg").read_bytes()[:900])
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    Image.new("L", (9000, 3)).save(folder / "thin.png")
    return folder


def test_no_image_is_lost_and_bad_ones_have_a_reason(
    pad: Pad, mixed: Path, common: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = pad("build", "--images", mixed, *common, "--engine", "local", "--out", out, "--shard-size", 3)
    assert done.code == 0, done.err
    assert "1 files that are no images" in done.out
    rows = {row["source"]: row for _, row in open_shards(out).rows()}
    assert sorted(rows) == [
        "a/deep.er/x.y.webp",
        "a/one.PNG",
        "a/one.jpg",
        "broken.jpg",
        "empty.png",
        "thin.png",
        "z.gif",
    ]
    keys = [row["key"] for row in rows.values()]
    assert len(set(keys)) == 7
    assert not any("." in key or "/" in key for key in keys)
    failed = {source: (row["stage"], row["reason"]) for source, row in rows.items() if row["status"] == "failed"}
    assert sorted(failed) == ["broken.jpg", "empty.png", "thin.png"]
    assert all(stage == "decode" for stage, _ in failed.values())
    assert "max_aspect" in failed["thin.png"][1]
    assert pad("verify", out).code == 0
    stats = json.loads(pad("stats", out, "--json").out)
    assert stats["statuses"] == {"ok": 4, "failed": 3}
    assert stats["left_out"] == {"files that are no images": 1, "repeated ids, kept under keys of their own": 1}
    for name, row in open_shards(out).rows():
        if row["status"] == "ok":  # the bytes are the file's own, whatever the format
            assert open_shards(out).sample(name, row).image == (mixed / row["source"]).read_bytes()


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
            assert models.detector.box_threshold <= region["score"] <= 1
            assert region["label_score"] <= region["score"]
            regions += 1
    assert regions > 20


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


def test_llava_records_of_every_kind(pad: Pad, world: World, common: list[object], tmp_path: Path) -> None:
    """Text-only records are counted, repeated ids kept apart, bad records fail by name; `<image>` at either end."""
    question = {"from": "human", "value": "What?\n<image>"}
    good = {"id": "x", "image": "scene-00000.png", "conversations": [question, {"from": "gpt", "value": " a house. "}]}
    records = [
        good,
        good | {"conversations": [question | {"value": "<image>\nWhat?"}, {"from": "gpt", "value": "a car"}]},
        {"id": "text", "conversations": [{"from": "human", "value": "hi"}]},
        {"id": "missing", "image": "nowhere.jpg", "conversations": []},
        {"id": "up", "image": "../secret.png", "conversations": []},
        {"id": "abs", "image": str(world.images / "scene-00001.png"), "conversations": []},
        {"id": "two", "image": ["a.png", "b.png"], "conversations": []},
        {"id": "turns", "image": "scene-00001.png", "conversations": [{"from": "human"}]},
        {"id": 7, "image": "scene-00001.png"},
        "not a record",
        {"id": "lone \ud800.v1", "image": "scene-00002.png", "conversations": [{"from": "gpt", "value": "\ud800!"}]},
        {"id": "path", "image": "scene-\udcff.png"},
    ]  # fmt: skip
    path = tmp_path / "records.json"
    path.write_text(json.dumps(records))
    shutil.copy(world.images / "scene-00000.png", tmp_path / "secret.png")
    out = tmp_path / "out"
    done = pad("build", "--images", path, "--image-root", world.images, *common, "--engine", "local", "--out", out)
    assert done.code == 0, done.err
    assert "1 records without an image" in done.out
    assert "1 repeated ids" in done.out
    shards = open_shards(out)
    rows = {row["key"]: row for _, row in shards.rows()}
    assert list(rows) == [
        "x",
        "x-2",
        "missing",
        "up",
        "abs",
        "two",
        "turns",
        "7",
        "record-9",
        "lone___v1",
        "path",
    ]
    reasons = {key: row["reason"] for key, row in rows.items() if row["status"] == "failed"}
    assert list(reasons) == ["missing", "up", "abs", "two", "turns", "record-9", "path"]
    assert "no such file" in reasons["missing"]
    assert "climbs out of the image root" in reasons["up"]
    assert "absolute" in reasons["abs"]
    assert "record 6: image is a list" in reasons["two"]
    captions = [shards.sample("pad-000000", rows[key]).meta["caption"] for key in ("x", "x-2", "7", "lone___v1")]
    assert captions == [" a house. ", "a car", "", "\ufffd!"]


def test_verify_names_what_is_wrong(pad: Pad, world: World, common: list[object], tmp_path: Path) -> None:
    """A flipped byte, a cut tar, a missing index, a swapped shard, a stray file: each found, each named."""
    good = tmp_path / "good"
    options = ["--images", world.images, *common[:4], "--shard-size", 5, "--out", good]
    assert pad("import", "coco", "--annotations", world.instances, *options).code == 0
    assert pad("verify", good).code == 0

    def damaged(change: Callable[[Path], object]) -> str:
        folder = tmp_path / "bad"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, folder)
        change(folder)
        result = pad("verify", folder)
        assert result.code == 1, result.out
        return result.out

    tar = (good / "pad-000001.tar").read_bytes()
    row = pq.read_table(good / "pad-000001.parquet").to_pylist()[2]

    def flip(at: int) -> Callable[[Path], object]:
        return lambda folder: (folder / "pad-000001.tar").write_bytes(tar[:at] + bytes([tar[at] ^ 1]) + tar[at + 1 :])

    out = damaged(flip(row["json_at"] + 30))
    assert "pad-000001: its tar is not the one that was written" in out
    assert f"{row['key']}: sha256 differs" in out
    assert "pad-000000" not in out
    assert "sha256 differs" in damaged(flip(len(tar) - 1))  # the padding at the very end
    out = damaged(lambda folder: (folder / "pad-000001.tar").write_bytes(tar[:5000]))
    assert "5000 bytes instead of" in out
    assert "in the index and not in the tar" in out
    assert "its index is missing" in damaged(lambda folder: (folder / "pad-000000.parquet").unlink())
    assert "its tar is missing" in damaged(lambda folder: (folder / "pad-000000.tar").unlink())
    assert "no such shard is planned" in damaged(lambda folder: (folder / "pad-000007.tar").write_bytes(tar))
    assert "planned images" in damaged(
        lambda folder: [
            shutil.copy(good / f"pad-000000.{end}", folder / f"pad-000001.{end}") for end in ("tar", "parquet")
        ]
    )


def test_verify_refuses_links_and_pickles(pad: Pad, world: World, common: list[object], tmp_path: Path) -> None:
    """A tar from elsewhere: a link that leads out, an array of objects. Neither is followed or loaded."""
    out = tmp_path / "out"
    options = ["--images", world.images, *common[:4], "--out", out]
    assert pad("import", "coco", "--annotations", world.instances, *options).code == 0
    (tar_path,) = out.glob("*.tar")
    with tarfile.open(tar_path) as tar:
        members = [(info, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    evil = io.BytesIO()
    np.save(evil, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with tarfile.open(tar_path, "w") as tar:
        for number, (info, content) in enumerate(members):
            if number == 0:
                info.type, info.linkname, info.size = tarfile.SYMTYPE, "/etc/passwd", 0
                tar.addfile(info)
                continue
            content = evil.getvalue() if number == 2 else content
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    shown = pad("verify", out)
    assert shown.code == 1
    assert "no plain file" in shown.out
    assert pad("stats", out).code == 2  # one line, no traceback


def test_damaged_shards_are_named_by_every_reader(
    pad: Pad, world: World, models_toml: Path, common: list[object], tmp_path: Path
) -> None:
    """stats and train meet what verify would find: one line that says which file, and points to verify."""
    good = tmp_path / "good"
    options = ["--images", world.images, *common[:4], "--out", good]
    assert pad("import", "coco", "--annotations", world.instances, *options).code == 0
    models = models_toml.parent
    train = ["--vision", models / "clip", "--llm", models / "llm", "--batch-size", 10, "--steps", 1]

    def damages() -> dict[str, Callable[[Path], object]]:
        return {
            "tar is empty": lambda folder: (folder / "pad-000000.tar").write_bytes(b""),
            "tar is missing": lambda folder: (folder / "pad-000000.tar").unlink(),
            "index is garbage": lambda folder: (folder / "pad-000000.parquet").write_bytes(b"garbage"),
            "run.json is garbage": lambda folder: (folder / "run.json").write_text("{"),
            "run.json is another's": lambda folder: (folder / "run.json").write_text('{"schema_version": 99}'),
            "run.json is deep": lambda folder: (folder / "run.json").write_text("[" * 100000),
        }

    for number, (name, damage) in enumerate(damages().items()):
        folder = tmp_path / f"bad-{number}"
        shutil.copytree(good, folder)
        damage(folder)
        for command in (["stats", folder], ["train", "--shards", folder, *train, "--out", tmp_path / f"run-{number}"]):
            done = pad(*command)
            assert done.code == 2, (name, command[0])
            assert done.err.count("\n") == 1, (name, done.err)
            assert str(folder) in done.err, name


def test_a_wrong_model_does_not_lock_the_folder(
    pad: Pad, world: World, models_toml: Path, common: list[object], tmp_path: Path
) -> None:
    """A first attempt that failed before its first shard used to refuse the mended second one."""
    for name in ("tagger.safetensors", "tags.txt", "segmenter.safetensors", "detector", "llm"):
        (tmp_path / name).symlink_to(models_toml.parent / name)
    swapped = models_toml.read_text().replace('"tagger.safetensors"', '"segmenter.safetensors"')
    (tmp_path / "models.toml").write_text(swapped)
    command = [
        "build",
        "--images",
        world.images,
        "--models",
        tmp_path / "models.toml",
        *common[2:],
        "--engine",
        "local",
    ]
    assert pad(*command, "--out", tmp_path / "out").code == 2
    (tmp_path / "models.toml").write_text(models_toml.read_text())
    done = pad(*command, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    # A lost plan is put back, from the same inputs, by the same command.
    (tmp_path / "out" / "plan.parquet").unlink()
    assert pad(*command, "--out", tmp_path / "out").code == 0
    assert pad("verify", tmp_path / "out").code == 0


def test_somebody_elses_files_are_not_touched(pad: Pad, world: World, common: list[object], tmp_path: Path) -> None:
    """A folder with a plan.parquet or run.json of another tool is not a run of ours."""
    for name, content in (("plan.parquet", b"mine"), ("run.json", b'{"mine": 1}'), (".git", b"x")):
        folder = tmp_path / name.strip(".")
        folder.mkdir()
        (folder / name).write_bytes(content)
        done = pad("build", "--images", world.images, *common, "--engine", "local", "--out", folder)
        assert done.code == 2
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {name: content}


def test_nothing_found_is_told_from_failed(pad: Pad, common: list[object], tmp_path: Path) -> None:
    """A run with an empty image: statuses apart, statistics and verify work; and twice the same bytes, reasons too."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (1, 1)).save(tmp_path / "images" / "dot.png")
    (tmp_path / "images" / "junk.jpg").write_bytes(b"junk")
    coco = {"images": [{"id": n, "file_name": name} for n, name in enumerate(("dot.png", "junk.jpg"))]}
    (tmp_path / "coco.json").write_text(json.dumps(coco | {"annotations": [], "categories": []}))
    options = ["--annotations", tmp_path / "coco.json", "--images", tmp_path / "images", *common[:4]]
    for out in ("one", "two"):
        assert pad("import", "coco", *options, "--out", tmp_path / out).code == 0
        assert pad("verify", tmp_path / out).code == 0
        stats = json.loads(pad("stats", tmp_path / out, "--json").out)
        assert stats["statuses"] == {"empty": 1, "failed": 1}
    assert data(tmp_path / "one") == data(tmp_path / "two")


def test_photographs(pad: Pad, common: list[object], tmp_path: Path) -> None:
    """The 51 photographs through the whole chain: every row accounted for, with its caption, regions and masks."""
    photos, out = shared("photos"), tmp_path / "out"
    command = ["build", "--images", photos / "llava.json", "--image-root", photos / "images", *common]
    done = pad(*command, "--engine", "local", "--shard-size", 20, "--out", out)
    assert done.code == 0, done.err
    assert pad("verify", out).code == 0
    stats = json.loads(pad("stats", out, "--json").out)
    assert stats["statuses"] == {"ok": 51}
    assert (stats["images"], stats["captions"], stats["shards"]) == (51, 51, {"finished": 3, "planned": 3})
    assert stats["regions"] > 51
    keys = [row["key"] for _, row in open_shards(out).rows()]
    assert keys == [record["id"] for record in json.loads((photos / "llava.json").read_text())]


@pytest.mark.skipif(not (SHARED / "data/odd_images").exists(), reason="no check data at shared/data/odd_images")
def test_odd_images_among_good_ones(pad: Pad, world: World, common: list[object], tmp_path: Path) -> None:
    """The 43 odd files through the whole command: rejected ones are failed rows, the rest reach the shard."""
    folder = tmp_path / "images"
    shutil.copytree(shared("odd_images"), folder)
    shutil.copy(world.images / "scene-00000.png", folder)
    out = tmp_path / "out"
    done = pad("build", "--images", folder, *common, "--engine", "local", "--out", out)
    assert done.code == 0, done.err
    rows = {row["source"]: row for _, row in open_shards(out).rows()}
    table = [line.split("\t") for line in shared("odd_images/TABLE.tsv").read_text().splitlines()[1:]]
    assert len(rows) == 44
    assert rows["scene-00000.png"]["status"] == "ok"
    for name, _, wanted, _ in table:
        assert (rows[name]["status"] == "failed") == wanted.startswith("REJECT"), (name, rows[name]["reason"])
        assert rows[name]["stage"] in ("", "decode"), rows[name]
    assert pad("verify", out).code == 0


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
