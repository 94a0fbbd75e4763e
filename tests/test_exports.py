"""Shards as COCO, FiftyOne, Parquet and a hub repository: opened by the tools they are for, and brought back whole."""

from __future__ import annotations

import copy
import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import CommitOperationDelete, HfApi
from PIL import Image

from pad_pipeline.errors import UserError
from pad_pipeline.exports.target import Target
from pad_pipeline.images import ENDINGS
from pad_pipeline.miniature.files import World
from pad_pipeline.records import ImageRecord, Shard
from pad_pipeline.shards.reader import Sample, ShardFolder, open_shards
from pad_pipeline.shards.run import Run
from pad_pipeline.storage import Folder
from tests.conftest import data
from tests.test_own_models import write as own_toml

Pad = Callable[..., Any]


@pytest.fixture(scope="module")
def built(world: World, models_toml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenes, annotated by the small models: scores, alternates, and one image that failed."""
    from pad_pipeline.sources.open import open_source
    from pad_pipeline.workflows.models.settings import load_models
    from pad_pipeline.workflows.runs.build import build
    from pad_pipeline.workflows.runs.options import RunOptions

    images = tmp_path_factory.mktemp("images") / "images"
    shutil.copytree(world.images, images)
    (images / "broken.png").write_bytes(b"no image")
    records = json.loads(world.llava.read_text())
    broken = {"id": "broken", "image": "broken.png", "conversations": records[0]["conversations"]}
    (images.parent / "llava.json").write_text(json.dumps([*records, broken]))
    models = load_models(str(models_toml))
    view = models.view.model_copy(update={"size": 112})
    out = tmp_path_factory.mktemp("built") / "out"
    build(open_source(images.parent / "llava.json", images), out, models, view, RunOptions(shard_size=4, threads=1))
    return out


def found(folder: Path) -> dict[str, Any]:
    """Image id -> caption, dialogue and regions."""
    shards = open_shards(folder)
    metas = [shards.sample(name, row).meta for name, row in shards.rows() if row["status"] != "failed"]
    return {meta["id"]: [meta[name] for name in ("caption", "conversations", "regions")] for meta in metas}


def test_coco_and_back_gives_the_same_regions(built: Path, models_toml: Path, pad: Pad, tmp_path: Path) -> None:
    """Labels, boxes to the last digit, scores, alternates, masks, captions, dialogues. Catches a box that loses digits
    as x + width, and a swap of x and y in RLE."""
    assert pad("export", "coco", built, "--out", tmp_path / "coco").code == 0
    command = ["import", "coco", "--annotations", tmp_path / "coco/instances.json"]
    command += ["--images", tmp_path / "coco/images", "--models", models_toml, "--view-size", 112, "--shard-size", 4]
    done = pad(*command, "--out", tmp_path / "back")
    assert done.code == 0, done.err
    before = found(built)
    assert any(region["alternates"] for _, _, regions in before.values() for region in regions)
    assert found(tmp_path / "back") == before


LAYOUTS = {"coco": ("instances.json", "images"), "fiftyone": ("labels.json", "data")}
"""Kind of export -> its annotations, its images."""


@pytest.mark.parametrize("kind", LAYOUTS)
def test_what_people_change_in_an_export_comes_back(
    kind: str, built: Path, models_toml: Path, pad: Pad, tmp_path: Path
) -> None:
    """Box and score were taken from `pad`, and an edit of `bbox` or `score` had no effect at all. One edit of each to
    the regions of one image; a mask that was drawn anew with the box around it; numbers that a tool rounded are no
    edit. Whatever is as it was exported comes back whole, with the box that was detected."""
    from pycocotools import mask as coco_mask

    annotations, images = LAYOUTS[kind]
    assert pad("export", kind, built, "--out", tmp_path / "out").code == 0
    path = tmp_path / "out" / annotations
    content = json.loads(path.read_text())
    image = next(
        image for image in content["images"] if sum(a["image_id"] == image["id"] for a in content["annotations"]) > 4
    )
    moved, scored, drawn, rounded, without = [a for a in content["annotations"] if a["image_id"] == image["id"]][:5]
    moved["bbox"] = [3.5, 4.25, 20.0, 11.5]
    scored["score"] = 0.125
    mask = np.zeros(drawn["segmentation"]["size"], np.uint8, order="F")
    mask[2:9, 5:25] = 1
    drawn["segmentation"] = coco_mask.encode(mask) | {"counts": coco_mask.encode(mask)["counts"].decode()}
    drawn["bbox"] = [5, 2, 20, 7]
    rounded["bbox"] = [round(edge, 2) for edge in rounded["bbox"]]
    del without["bbox"], without["score"]
    path.write_text(json.dumps(content))
    command = ["import", "coco", "--annotations", path, "--images", tmp_path / "out" / images]
    done = pad(*command, "--models", models_toml, "--view-size", 112, "--out", tmp_path / "back")
    assert done.code == 0, done.err
    wanted = copy.deepcopy(found(built))
    regions = wanted[image["pad"]["id"]][2]
    regions[0]["box"] = [3.5, 4.25, 23.5, 15.75]
    regions[1]["score"] = 0.125
    regions[2]["box"], regions[2]["rle"] = [5, 2, 25, 9], drawn["segmentation"]
    assert found(tmp_path / "back") == wanted


def test_pycocotools_evaluates_the_export(built: Path, pad: Pad, tmp_path: Path) -> None:
    """Boxes and masks, evaluated against themselves, are perfect: ids, categories and RLE go together."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    assert pad("export", "coco", built, "--out", tmp_path / "coco").code == 0
    truth = COCO(tmp_path / "coco/instances.json")
    assert {path.name for path in (tmp_path / "coco/images").iterdir()} == {
        image["file_name"] for image in truth.dataset["images"]
    }
    for annotation in truth.dataset["annotations"]:
        assert annotation["area"] == truth.annToMask(annotation).sum()
    for kind in ("segm", "bbox"):
        scored = COCOeval(truth, truth.loadRes(copy.deepcopy(truth.dataset["annotations"])), kind)
        scored.params.maxDets = [1, 100, 1000]
        scored.evaluate()
        recalls = [image["dtMatches"][0].astype(bool).mean() for image in scored.evalImgs if image and image["dtIds"]]
        assert np.mean(recalls) > 0.99  # two regions with one mask match each other


def test_fiftyone_finds_its_layout(built: Path, pad: Pad, tmp_path: Path) -> None:
    """data/ and labels.json, as its COCODetectionDataset expects them; the command to open it is printed."""
    done = pad("export", "fiftyone", built, "--out", tmp_path / "out")
    assert done.code == 0
    assert "fo.types.COCODetectionDataset" in done.out
    labels = json.loads((tmp_path / "out/labels.json").read_text())
    assert {image["file_name"] for image in labels["images"]} == {
        path.name for path in (tmp_path / "out/data").iterdir()
    }
    assert "10 images" in done.out and "1 failed" in done.out


def test_fiftyone_shows_the_whole_mask(built: Path, pad: Pad, tmp_path: Path) -> None:
    """FiftyOne keeps of a mask what lies in its bbox, rounded; detected boxes there cut most masks (seen in 1.22), as
    they would here. They stand under `pad`."""
    from pycocotools import mask as coco_mask

    assert pad("export", "fiftyone", built, "--out", tmp_path / "out").code == 0
    annotations = json.loads((tmp_path / "out/labels.json").read_text())["annotations"]
    detected = [region["box"] for _, _, regions in found(built).values() for region in regions]
    assert [annotation["pad"]["box"] for annotation in annotations] == detected

    def kept(mask: np.ndarray, x0: float, y0: float, x1: float, y1: float) -> int:
        return int(mask[round(y0) : round(y1), round(x0) : round(x1)].sum())

    cut = 0
    for annotation, box in zip(annotations, detected, strict=True):
        x, y, width, height = annotation["bbox"]
        mask = coco_mask.decode(annotation["segmentation"])
        assert kept(mask, x, y, x + width, y + height) == mask.sum() == annotation["area"]
        cut += kept(mask, *box) < mask.sum()
    assert cut > len(annotations) / 2


def test_parquet_has_a_row_for_each_region(built: Path, pad: Pad, tmp_path: Path) -> None:
    """Every region once, with the numbers of the shards."""
    from pycocotools import mask as coco_mask

    assert pad("export", "parquet", built, "--out", tmp_path / "out").code == 0
    rows = pq.read_table(tmp_path / "out/regions.parquet").to_pylist()
    expected = [(name, region) for name, (_, _, regions) in found(built).items() for region in regions]
    assert [(row["id"], row["label"], row["rle"]) for row in rows] == [
        (name, region["label"], region["rle"]["counts"]) for name, region in expected
    ]
    for row, (_, region) in zip(rows, expected, strict=True):
        assert np.allclose([row[edge] for edge in ("x0", "y0", "x1", "y1")], region["box"])
        assert row["score"] == pytest.approx(region["score"])
        assert row["area"] == coco_mask.decode(region["rle"]).sum()


def test_datasets_opens_the_hub_repository(built: Path, pad: Pad, tmp_path: Path) -> None:
    """The card says where the shards are, so `load_dataset` needs the folder alone; and the folder is a run still."""
    from datasets import load_dataset

    done = pad("export", "hub", built, "--name", "Mine", "--license", "cc-by-4.0", "--out", tmp_path / "hub")
    assert done.code == 0, done.err
    samples = load_dataset(str(tmp_path / "hub"), split="train", streaming=True)
    assert {sample["json"]["id"] for sample in samples} == set(found(built))
    card = (tmp_path / "hub/README.md").read_text()
    assert "license: cc-by-4.0" in card and "# Mine" in card
    assert "| images | 11 (" in card
    assert pad("verify", tmp_path / "hub").code == 0


def test_a_hostile_label_stays_text_on_the_card(built: Path) -> None:
    """Cards are rendered as HTML in other people's browsers."""
    from pad_pipeline.exports.hub import card
    from pad_pipeline.shards.stats import read_statistics

    stats = read_statistics(built)
    stats.labels["<img src=x onerror=alert(1)>\n# [a](b) | c"] = 10**6
    hostile = "`<script>`\n# x"
    run = stats.shards.run
    run.settings["tagger"] |= {"weights": hostile, "thresholds": hostile, "threshold": None}
    run.settings |= {"detector": {"class": hostile, "settings": {hostile: 1}}, "edits": [{hostile: hostile}]}
    run.fingerprints |= {"tagger": hostile, "detector_<script>": hostile}
    run.counts[hostile] = 1
    text = card(stats, "a\n---\nb", "other")
    assert "<img" not in text.replace("\\<img", "") and "<script" not in text.replace("\\<script", "")
    assert text.count("\\<script") == 10 and "\n# x" not in text
    assert "\n# \\[a" not in text and "\n---\nb" not in text.replace("\\", "")


def test_exports_refuse_what_they_would_spoil(built: Path, pad: Pad, tmp_path: Path) -> None:
    """A folder with something else in it, an export of another kind, a run that is not finished; a second export of
    the same kind is the first."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("years of work")
    refused = pad("export", "coco", built, "--out", tmp_path / "mine")
    assert refused.code == 2 and "something else" in refused.err
    assert pad("export", "parquet", built, "--out", tmp_path / "out").code == 0
    first = (tmp_path / "out/regions.parquet").read_bytes()
    assert pad("export", "parquet", built, "--out", tmp_path / "out").code == 0
    assert (tmp_path / "out/regions.parquet").read_bytes() == first
    refused = pad("export", "coco", built, "--out", tmp_path / "out")
    assert refused.code == 2 and "another kind" in refused.err
    half = tmp_path / "half"
    shutil.copytree(built, half)
    (half / "pad-000001.parquet").unlink()
    refused = pad("export", "hub", half, "--out", tmp_path / "hub")
    assert refused.code == 2 and "not finished" in refused.err
    refused = pad("export", "coco", tmp_path / "nothing", "--out", tmp_path / "new")
    assert refused.code == 2 and not (tmp_path / "new").exists()


DAMAGE = [
    {"box": [0, 0, 1e9, 1]}, {"score": "high"}, {"alternates": 3}, {"prompt": None}, {"mask_box": [1, 2, 3]},
    {"mask_box": "wide"}, 7,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_under_pad_is_not_trusted(
    damage: Any, built: Path, models_toml: Path, pad: Pad, tmp_path: Path
) -> None:
    """An annotation file is outside data: a spoilt entry fails its image, and says which annotation."""
    from pad_pipeline.sources.coco import CocoSource
    from pad_pipeline.stages.annotate import HumanRegions
    from pad_pipeline.stages.decode import Decode

    assert pad("export", "coco", built, "--out", tmp_path / "coco").code == 0
    path = tmp_path / "coco/instances.json"
    data = json.loads(path.read_text())
    entry = data["annotations"][0]
    entry["pad"] = entry["pad"] | damage if isinstance(damage, dict) else damage
    path.write_text(json.dumps(data))
    from pad_pipeline.images import DecodeSettings
    from pad_pipeline.records import Place

    planned = next(one for one in CocoSource(path, tmp_path / "coco/images") if one.annotations)
    record = ImageRecord("key", planned.id, planned.source, annotations=list(planned.annotations))  # type: ignore[arg-type]
    record.place = Place(planned.source)
    shard = HumanRegions()(Decode(DecodeSettings(), str(tmp_path / "coco/images"))(Shard(0, [record])))
    assert shard.rows[0].status == "failed"
    assert f"annotation {entry['id']}" in shard.rows[0].reason and "`pad export`" in shard.rows[0].reason


def with_index(folder: Path, name: str, **values: Any) -> None:
    """Write a shard's index anew, with other values in its first row that is ok."""
    path = folder / f"{name}.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    next(row for row in rows if row["status"] == "ok").update(values)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)


@pytest.mark.parametrize("kind", ["coco", "fiftyone"])
@pytest.mark.parametrize("key", ["../../../evil", "below/evil", "a.b", "", "x" * 300])
def test_a_key_of_a_foreign_shard_is_no_path(kind: str, key: str, built: Path, pad: Pad, tmp_path: Path) -> None:
    """The key became a part of the image's path as it stood in the index: shards from anywhere wrote outside --out,
    over any file of the user's."""
    foreign = tmp_path / "a/b/foreign"
    shutil.copytree(built, foreign)
    with_index(foreign, "pad-000001", key=key)
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "a/b/c")}
    done = pad("export", kind, foreign, "--out", tmp_path / "a/b/c/out")
    assert done.code == 2 and done.err.count("\n") == 1 and "no key of pad's" in done.err, done.err
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "a/b/c")} == before
    checked = pad("verify", foreign)
    assert checked.code == 1 and "no key of pad's" in checked.out + checked.err


def test_keys_that_pad_makes_are_keys(models_toml: Path, pad: Pad, tmp_path: Path) -> None:
    """Ids of all kinds: in other scripts, long, repeated, with dots and slashes; nothing of them is refused. Catches a
    rule that is narrower than what `pad build` writes."""
    ids = ["../..", "été", "日本語" * 30, "x" * 500, "x" * 500, "a.b/c", "a.b/c", "", "\n", "\u0130.\u0301"]
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    images = [{"id": number, "file_name": "a.png", "pad": {"id": name}} for number, name in enumerate(ids)]
    (tmp_path / "coco.json").write_text(json.dumps({"images": images, "annotations": []}))
    command = ["import", "coco", "--annotations", tmp_path / "coco.json", "--images", tmp_path]
    done = pad(*command, "--models", models_toml, "--view-size", 112, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert pad("verify", tmp_path / "out").code == 0
    done = pad("export", "coco", tmp_path / "out", "--out", tmp_path / "coco")
    assert done.code == 0, done.err
    assert len(list((tmp_path / "coco/images").iterdir())) == len(ids)


@pytest.mark.parametrize("kind", [b'"/.."', b'"PNX"', b"12345", b"[3,4]", b"null "])
def test_a_format_of_a_foreign_shard_is_no_path(kind: bytes, built: Path, pad: Pad, tmp_path: Path) -> None:
    """It became the file's ending, whatever it was; one that is no text was a traceback."""
    foreign = tmp_path / "foreign"
    shutil.copytree(built, foreign)
    tar = foreign / "pad-000000.tar"
    assert tar.read_bytes().count(b'"format":"PNG"') == 4
    tar.write_bytes(tar.read_bytes().replace(b'"format":"PNG"', b'"format":' + kind))
    done = pad("export", "coco", foreign, "--out", tmp_path / "out")
    assert done.code == 2 and done.err.count("\n") == 1 and "no format of images" in done.err, done.err
    assert not list(tmp_path.glob("out/images/*"))


@pytest.mark.parametrize("kind", ["coco", "fiftyone", "parquet", "hub"])
@pytest.mark.parametrize("field", [b'"regions":', b'"label":', b'"box":', b'"score":', b'"caption":'])
def test_a_field_that_a_foreign_sample_lacks_is_told(
    kind: str, field: bytes, built: Path, pad: Pad, tmp_path: Path
) -> None:
    """One line and exit code 2, or nothing where the export has no use for it; never a traceback."""
    foreign = tmp_path / "foreign"
    shutil.copytree(built, foreign)
    tar = foreign / "pad-000000.tar"
    assert field in tar.read_bytes()
    tar.write_bytes(tar.read_bytes().replace(field, b'"' + field[2:-2] + b'_":'))  # as long as before
    done = pad("export", kind, foreign, "--out", tmp_path / "out")
    assert done.code in (0, 2) and "Traceback" not in done.err, done.err
    assert done.code == 2 or kind in ("parquet", "hub")
    assert done.err.count("\n") <= 1


DIVIDES = {"rle": {"size": [0, 5], "counts": "00"}}


@pytest.mark.parametrize("kind", ["coco", "fiftyone", "parquet"])
@pytest.mark.parametrize("damage", [DIVIDES, {"rle": {"counts": "11"}}, {"rle": 3}])
def test_a_mask_of_a_foreign_shard_kills_nothing(
    damage: dict[str, Any], kind: str, built: Path, pad: Pad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pycocotools divides by the height that a mask states, and 0 ended the process by a signal; where it reads beyond
    a mask's end, anything can happen. The sample is spoilt as it is read: its place in the tar stays the same."""
    read = ShardFolder.sample

    def spoilt(self: ShardFolder, name: str, row: dict[str, Any], image: bool = True) -> Sample:
        sample = read(self, name, row, image)
        sample.meta |= {"height": 0, "width": 5} if damage == DIVIDES else {}
        for region in sample.meta["regions"]:
            region |= damage
        return sample

    monkeypatch.setattr(ShardFolder, "sample", spoilt)
    done = pad("export", kind, built, "--out", tmp_path / "out")
    assert done.code == 2 and done.err.count("\n") == 1 and "mask 0 of" in done.err, done.err


def test_every_format_that_is_decoded_has_an_ending() -> None:
    """A format that a new Pillow opens would be built, and refused by the exports."""
    Image.init()
    assert set(Image.OPEN) <= ENDINGS.keys()
    assert all(re.fullmatch("[a-z0-9]+", ending) for ending in ENDINGS.values())


def test_nothing_is_written_outside_the_folder(built: Path, pad: Pad, tmp_path: Path) -> None:
    """Through a link in the folder of an earlier export, images went where the link leads."""
    assert pad("export", "coco", built, "--out", tmp_path / "out").code == 0
    (tmp_path / "mine").mkdir()
    shutil.rmtree(tmp_path / "out/images")
    (tmp_path / "out/images").symlink_to(tmp_path / "mine")
    refused = pad("export", "coco", built, "--out", tmp_path / "out")
    assert refused.code == 2 and "does not lie in the folder" in refused.err, refused.err
    assert not list((tmp_path / "mine").iterdir())
    target = Target(tmp_path / "new", "coco")
    for name in ("../evil", "images/../../evil", str(tmp_path / "evil"), "", "images/.."):
        with pytest.raises(UserError, match="does not lie in the folder"):
            target.write(name, b"evil")
    target.write("images/a.png", b"good")
    assert not (tmp_path / "evil").exists() and (tmp_path / "new/images/a.png").read_bytes() == b"good"


@pytest.fixture
def part(built: Path, pad: Pad, tmp_path: Path) -> Path:
    """Another run, of one shard."""
    assert pad("filter", built, "--status", "ok", "--limit", 2, "--out", tmp_path / "part").code == 0
    return tmp_path / "part"


def test_a_second_hub_export_is_of_the_second_run_alone(built: Path, part: Path, pad: Pad, tmp_path: Path) -> None:
    """Shards of the first stayed, and the card's pattern loaded both as one dataset. What others put there stays, and
    a run is not exported onto itself, for its run.json would go first."""
    from datasets import load_dataset

    out = tmp_path / "hub"
    assert pad("export", "hub", built, "--out", out).code == 0
    (out / "notes.md").write_text("mine")
    (out / ".pad-000002.tar.partial").write_bytes(b"of an export that was killed")
    assert pad("export", "hub", part, "--out", out).code == 0
    names = {"pad-000000.tar", "pad-000000.parquet", "run.json", "plan.parquet", "README.md", ".pad-export", "notes.md"}
    assert {path.name for path in out.iterdir()} == names
    assert {sample["json"]["id"] for sample in load_dataset(str(out), split="train", streaming=True)} == set(
        found(part)
    )
    assert pad("verify", out).code == 0
    before = data(out)
    refused = pad("export", "hub", out, "--out", out)
    assert refused.code == 2 and "these are the shards that are read" in refused.err
    assert data(out) == before


def test_half_a_hub_export_is_no_run(built: Path, part: Path, pad: Pad, tmp_path: Path) -> None:
    """One that breaks off over an earlier one left the earlier one's run.json and card beside shards of both."""
    out = tmp_path / "hub"
    assert pad("export", "hub", part, "--out", out).code == 0
    broken = tmp_path / "broken"
    shutil.copytree(built, broken)
    (broken / "pad-000001.tar").write_bytes(b"")
    assert pad("export", "hub", broken, "--out", out).code == 2
    assert pad("stats", out).code == 2 and not (out / "README.md").exists()
    assert pad("export", "hub", built, "--out", out).code == 0
    assert pad("verify", out).code == 0


def test_a_killed_hub_export_does_not_endanger_the_run(built: Path, pad: Pad, tmp_path: Path) -> None:
    """Killed between link and rename, it left a partial that is the run's own tar; the next one could not link over it,
    and truncated it to copy the tar onto itself."""
    run, out = tmp_path / "run", tmp_path / "hub"
    shutil.copytree(built, run)
    before = data(run)
    assert pad("export", "hub", run, "--out", out).code == 0
    for name in ("pad-000000.tar", "pad-000000.parquet", "run.json", "plan.parquet"):
        (out / name).unlink()
        os.link(run / name, out / f".{name}.partial")
    assert pad("export", "hub", run, "--out", out).code == 0
    assert data(run) == before
    assert {name: data(out)[name] for name in before} == before
    assert not list(out.glob("*.partial"))


def test_what_people_mend_in_a_hub_export_is_not_the_runs(built: Path, pad: Pad, tmp_path: Path) -> None:
    """run.json and plan.parquet were the run's own files under another name: whoever took his paths out of them before
    he published took them out of the run. Tars, which are large, are linked."""
    run, out = tmp_path / "run", tmp_path / "hub"
    shutil.copytree(built, run)
    before = data(run)
    assert pad("export", "hub", run, "--out", out).code == 0
    for path in out.iterdir():
        if path.suffix == ".tar":
            assert path.samefile(run / path.name)
        else:
            path.write_bytes(b"mended in place")
    assert data(run) == before


def test_where_files_cant_be_linked_they_are_copied(
    built: Path, pad: Pad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another disk."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert pad("export", "hub", built, "--out", tmp_path / "hub").code == 0
    assert not (tmp_path / "hub/pad-000000.tar").samefile(built / "pad-000000.tar")
    assert pad("verify", tmp_path / "hub").code == 0


class Repository(HfApi):
    """Stands in for the hub: one repository in memory. What `upload_folder` sends, and what it deletes, is decided by
    the hub's own client; its requests alone are answered here."""

    held: ClassVar[dict[str, bytes]] = {}

    def create_repo(self, repo_id: str, **_: Any) -> None:  # type: ignore[override]
        assert repo_id == "me/mine"

    def list_repo_files(self, *_: Any, **__: Any) -> list[str]:  # type: ignore[override]
        return list(self.held)

    def _validate_yaml(self, content: str, **_: Any) -> None:  # type: ignore[override]
        assert content.startswith("---\n")

    def create_commit(self, *_: Any, operations: Any, **__: Any) -> None:  # type: ignore[override]
        for operation in operations:
            if isinstance(operation, CommitOperationDelete):
                del self.held[operation.path_in_repo]
            else:
                self.held[operation.path_in_repo] = Path(operation.path_or_fileobj).read_bytes()


def test_a_push_is_of_the_second_run_alone(
    built: Path, part: Path, pad: Pad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards of the first stayed in the repository, and were loaded with those of the second. Here a stand-in for the
    hub's client is asked (`Repository`), and no server. What others put there stays; our mark is not sent. And the card
    said OWNER/NAME whatever the repository's name."""
    monkeypatch.setattr("huggingface_hub.HfApi", Repository)
    monkeypatch.setattr("huggingface_hub.hf_api.is_xet_available", lambda: False, raising=False)
    monkeypatch.setattr(Repository, "held", {"LICENSE": b"theirs", ".gitattributes": b"theirs"})
    refused = pad("export", "hub", built, "--out", tmp_path / "hub", "--push", "mine")
    assert refused.code == 2 and "OWNER/NAME" in refused.err and not Repository.held.get("run.json")
    for run in (built, part):
        out = tmp_path / f"hub-of-{run.name}"
        done = pad("export", "hub", run, "--out", out, "--push", "me/mine")
        assert done.code == 0 and "https://huggingface.co/datasets/me/mine" in done.out, done.err
        sent = {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".pad-export"}
        assert Repository.held == sent | {"LICENSE": b"theirs", ".gitattributes": b"theirs"}
        assert b'load_dataset("me/mine", ' in sent["README.md"]


@pytest.mark.parametrize("kind", ["coco", "fiftyone", "parquet", "hub"])
@pytest.mark.parametrize("out", ["s3://bucket/x", "hf://datasets/me/mine", "file:///x", ""])
def test_a_url_is_no_folder(
    kind: str, out: str, built: Path, pad: Pad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It became a local folder called `s3:`, and the user looked for his export in the bucket."""
    monkeypatch.chdir(tmp_path)
    refused = pad("export", kind, built, "--out", out)
    assert refused.code == 2 and refused.err.count("\n") == 1
    assert f"--out = {out}: an export is written to a disk; name a folder on this machine" in refused.err
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def grounded(world: World, models_toml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scenes, annotated by a grounder of the user's own and the small segmenter."""
    from pad_pipeline.sources.open import open_source
    from pad_pipeline.workflows.models.settings import load_models
    from pad_pipeline.workflows.runs.build import build
    from pad_pipeline.workflows.runs.options import RunOptions

    folder = tmp_path_factory.mktemp("grounded")
    toml = own_toml(
        folder / "own.toml", models_toml, '[grounder]\nclass = "tests.own_models:Grounder"\n', ("tagger", "detector")
    )
    models = load_models(str(toml))
    view = models.view.model_copy(update={"size": 112})
    build(open_source(world.images), folder / "out", models, view, RunOptions(threads=1, limit=3))
    return folder / "out"


def card_of(run: Path, pad: Pad, out: Path) -> tuple[str, dict[str, list[str]]]:
    """How it was made, as the card says; and of its table of models the rows, by their first cell."""
    done = pad("export", "hub", run, "--out", out)
    assert done.code == 0, done.err
    text = (out / "README.md").read_text()
    assert 'load_dataset("OWNER/NAME", ' in text
    made = text[text.index("## How it was made") : text.index("## How it is read")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in made.splitlines() if line[:2] == "| "]
    return made.replace("\\", ""), {first: [cell.replace("\\", "") for cell in rest] for first, *rest in rows[2:]}


def reported(run: Path, pad: Pad, out: Path) -> dict[str, str]:
    """The table of models of `pad report`."""
    assert pad("report", run, "--out", out, "--limit", 1, "--edge", 32).code == 0
    page = (out / "index.html").read_text()
    table = page[page.index("<h3>Models</h3>") :]
    return dict(re.findall(r"<th>(.*?)</th><td>(.*?)</td>", table[: table.index("</table>")]))


OWN = "tests.own_models:Grounder"
LLM = "word embeddings"
MODELS = "By models, as `pad build` runs them; no person"
FILE = "From an annotation file, which people made, or whatever wrote the file"


def test_models_of_the_users_own_are_named(grounded: Path, pad: Pad, tmp_path: Path) -> None:
    """A class is named by `class`, and a grounder by no section of pad's own models: card and report left them out."""
    made, rows = card_of(grounded, pad, tmp_path / "hub")
    assert MODELS in made
    assert list(rows) == ["grounder", "segmenter", LLM]
    assert rows["grounder"][:2] == [OWN, "see the model's own page"] and "nms_iou 1.0" in rows["grounder"][-1]
    shown = reported(grounded, pad, tmp_path / "report")
    assert list(shown) == list(rows) and shown["grounder"] == OWN


def test_a_merge_says_what_each_part_was_made_with(
    built: Path, grounded: Path, shards: Path, pad: Pad, tmp_path: Path
) -> None:
    """Two builds by models, once merged, were published as the work of people, with the LLM as their only model."""
    assert pad("merge", built, grounded, built, "--out", tmp_path / "both").code == 0
    made, rows = card_of(tmp_path / "both", pad, tmp_path / "hub")
    assert "made in 2 ways" in made and made.count(MODELS) == 2 and "people" not in made
    assert list(rows) == ["1: tagger", "1: detector", "1: segmenter", "2: grounder", "2: segmenter", LLM]
    settings = Run.read(Folder(built)).settings
    assert rows["1: tagger"][0] == settings["tagger"]["weights"] and rows["2: grounder"][0] == OWN
    assert rows["1: tagger"][2] == Run.read(Folder(built)).fingerprints["tagger"][:16]
    assert "box_threshold 0.3, text_threshold 0.2" in rows["1: detector"][-1]
    assert list(reported(tmp_path / "both", pad, tmp_path / "report")) == list(rows)
    assert pad("merge", tmp_path / "both", shards, "--out", tmp_path / "all").code == 0
    made, rows = card_of(tmp_path / "all", pad, tmp_path / "hub")
    assert "made in 3 ways" in made and f"2. {MODELS}" in made and f"3. {FILE}" in made
    assert len(rows) == 6


def test_an_import_is_an_annotation_files(shards: Path, pad: Pad, tmp_path: Path) -> None:
    """Whoever made the file: what pad exported and models found comes back by `pad import` too, and was "by people"."""
    made, rows = card_of(shards, pad, tmp_path / "hub")
    assert FILE in made and "By models" not in made and list(rows) == [LLM]


@pytest.mark.parametrize("stage", ["segment", "patchify"])
def test_what_a_build_kept_is_not_said_of_its_models(
    stage: str, shards: Path, models_toml: Path, pad: Pad, tmp_path: Path
) -> None:
    """`--redo-from` keeps what an import has: the card named a tagger and a detector that never ran, and said that no
    person had looked."""
    build = ["build", "--images", shards, "--models", models_toml, "--view-size", 112, "--engine", "local"]
    assert pad(*build, "--redo-from", stage, "--out", tmp_path / "again").code == 0
    made, rows = card_of(tmp_path / "again", pad, tmp_path / "hub")
    assert FILE in made and "no person" not in made
    assert list(rows) == (["segmenter", LLM] if stage == "segment" else [LLM])
    assert ("By models, as `pad build` runs them: masks." in made) == (stage == "segment")


def test_edits_and_what_was_left_out_are_told(built: Path, pad: Pad, tmp_path: Path) -> None:
    """Neither labels that were dropped or renamed since, nor other thresholds, nor images that were filtered out stood
    on the card."""
    (tmp_path / "drop.txt").write_text("house\ncar\n")
    (tmp_path / "map.json").write_text('{"sky": "the sky"}')
    edits = ["--min-score", 0.4, "--drop-labels", tmp_path / "drop.txt", "--label-map", tmp_path / "map.json"]
    assert pad("retarget", built, *edits, "--out", tmp_path / "edited").code == 0
    assert pad("retarget", tmp_path / "edited", "--nms-iou", 0.9, "--out", tmp_path / "twice").code == 0
    assert pad("filter", tmp_path / "twice", "--status", "ok", "--out", tmp_path / "few").code == 0
    made, _ = card_of(tmp_path / "few", pad, tmp_path / "hub")
    assert "regions: drop_labels of 2 labels, label_map of 1 label, min_score 0.4." in made
    assert "regions: nms_iou 0.9." in made
    left = Run.read(Folder(tmp_path / "few")).counts
    assert left == {"images left out": 1} and "left out of its source, or altered: images left out: 1." in made


def test_licenses_of_official_models_are_named(built: Path, pad: Pad, tmp_path: Path) -> None:
    """One sentence said that models have licenses. Known ones are known by name, and a file of one's own by its hash;
    of others nothing is claimed."""
    from pad_pipeline.workflows.models.catalog import OFFICIAL
    from pad_pipeline.workflows.models.settings import load_models

    run = Run.read(Folder(built))
    apache, llama, unknown = "Apache-2.0", "Llama 2 Community License", "see the model's own page"
    for preset in ("paper", "plus"):
        shutil.copytree(built, tmp_path / preset)
        run.settings = load_models(preset).model_dump(mode="json", exclude={"view"})
        run.write(Folder(tmp_path / preset))
        _, rows = card_of(tmp_path / preset, pad, tmp_path / f"hub-{preset}")
        assert [row[1] for row in rows.values()] == [apache, apache, apache, llama]
    run.settings |= {"segmenter": {"weights": "/data/sam.pth"}, "detector": {"model": "/data/fine-tuned.pth"}}
    run.fingerprints["segmenter"] = OFFICIAL["sam_vit_b"].sha256
    run.write(Folder(tmp_path / "plus"))
    _, rows = card_of(tmp_path / "plus", pad, tmp_path / "hub-plus")
    assert [rows[part][1] for part in ("detector", "segmenter")] == [unknown, apache]


ODD = [
    {"merged": 3}, {"merged": [3, {"settings": 4}, {"settings": {"merged": [None]}}]}, {"edits": {"a": 1}},
    {"edits": [1, {"min_score": None}]}, {"tagger": {"class": [3]}, "detector": [], "segmenter": {"weights": {}}},
    {"redo_from": ["tag"], "earlier": {"settings": {}}}, {"redo_from": "segment", "earlier": {"settings": 1}},
    {"redo_from": "segment", "earlier": 1}, {"llm": []},
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_run_json_is_no_traceback(odd: dict[str, Any], built: Path, pad: Pad, tmp_path: Path) -> None:
    """run.json of a foreign run can hold anything under `settings`."""
    shutil.copytree(built, tmp_path / "run")
    run = Run.read(Folder(built))
    run.settings |= odd
    run.write(Folder(tmp_path / "run"))
    card_of(tmp_path / "run", pad, tmp_path / "hub")
    reported(tmp_path / "run", pad, tmp_path / "report")
