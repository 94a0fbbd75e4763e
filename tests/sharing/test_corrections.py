"""Regions go to Label Studio and CVAT, are corrected there, come back with their identities, and win in a merge."""

from __future__ import annotations

import copy
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from pad_pipeline.miniature.files import World
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.sources.brush import decode_brush, encode_brush
from tests.sharing.conftest import Pad

SDK = [0, 0, 0, 48, 57, 27, 254, 19, 0, 159, 254, 112, 9, 255, 227, 0, 0]
"""A mask of 3 x 4 pixels as label-studio-sdk 2.1.2 writes it."""
Regions = dict[str, list[dict[str, Any]]]
"""Id of an image -> its regions."""


def regions_of(run: Path) -> Regions:
    shards = open_shards(run)
    return {
        row["id"]: copy.deepcopy(shards.sample(name, row).meta["regions"])
        for name, row in shards.rows()
        if row["status"] != "failed"
    }


def without_rows(regions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Regions without their rows of the label embeddings, which other labels of the image decide."""
    drop = {"embedding"}
    return [
        {name: value for name, value in region.items() if name not in drop}
        | {"alternates": [{n: v for n, v in other.items() if n not in drop} for other in region["alternates"]]}
        for region in regions
    ]


def label_studio_export(tasks: Path, edit: Callable[[int, list[dict[str, Any]]], None] = lambda *_: None) -> Path:
    """What Label Studio writes after all tasks were submitted: the predictions as annotations, with ids and times.
    `edit` changes the result of a task, which it gets with the task's number."""
    exported = json.loads(tasks.read_text())
    for number, task in enumerate(exported):
        result = copy.deepcopy(task["predictions"][0]["result"])
        for item in result:
            item["origin"] = "prediction"
        edit(number, result)
        times = {"created_at": "2026-01-02T10:00:00.5Z", "updated_at": "2026-01-02T11:00:00.5Z"}
        task |= {"id": 100 + number, "inner_id": number}
        task["annotations"] = [{"id": number, "was_cancelled": False, "completed_by": 1, "result": result, **times}]
    path = tasks.with_name("export.json")
    path.write_text(json.dumps(exported))
    return path


def cvat_export(written: Path, edit: Callable[[int, ET.Element], None] = lambda *_: None) -> Path:
    """What CVAT writes: coordinates with two digits, attributes in another order."""
    root = ET.parse(written).getroot()
    for number, image in enumerate(root.findall("image")):
        image.set("task_id", "7")
        for shape in image:
            for edge in ("xtl", "ytl", "xbr", "ybr"):
                if edge in shape.attrib:
                    shape.set(edge, f"{float(shape.get(edge, '')):.2f}")
            shape.attrib = dict(sorted(shape.attrib.items()))
        edit(number, image)
    path = written.with_name("export.xml")
    ET.ElementTree(root).write(path, "utf-8", xml_declaration=True)
    return path


def without_ids(number: int, result: list[dict[str, Any]]) -> None:
    for item in result:
        item["id"] = f"x{number}"


def imported(pad: Pad, kind: str, annotations: Path, run: Path, out: Path) -> Any:
    return pad("import", kind, "--annotations", annotations, "--shards", run, "--out", out)


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("label-studio", "masks"),
        ("cvat", "boxes"),
        pytest.param("label-studio", "boxes", marks=pytest.mark.long),
        pytest.param("cvat", "masks", marks=pytest.mark.long),
    ],
)
def test_what_nobody_changes_comes_back_as_the_models_made_it(
    kind: str, shapes: str, built: Path, pad: Pad, tmp_path: Path
) -> None:
    """Whole samples, to the byte: scores, alternates, masks, tags, captions. Catches boxes that a tool rounds, which
    would count as corrected, and masks that change on the way through the tools' run lengths."""
    done = pad("export", kind, built, "--out", tmp_path / "out", "--shapes", shapes)
    assert done.code == 0 and "1 failed images, left out" in done.out, done.err
    export = (
        label_studio_export(tmp_path / "out/tasks.json")
        if kind == "label-studio"
        else cvat_export(tmp_path / "out/annotations.xml")
    )
    done = imported(pad, kind, export, built, tmp_path / "back")
    assert done.code == 0, done.err
    assert "people" not in done.out and "regions that stay as the models made them" in done.out
    before, after = open_shards(built), open_shards(tmp_path / "back")
    kept = {row["key"]: (name, row) for name, row in after.rows()}
    for name, row in before.rows():
        if row["status"] != "failed":
            assert after.members(*kept[row["key"]]) == before.members(name, row)
    assert pad("verify", tmp_path / "back", "--deep").code == 0


def test_a_tool_may_give_the_regions_other_ids(built: Path, pad: Pad, tmp_path: Path) -> None:
    """Then what is as it was exported is found by its shape, also if it was renamed, and in any order."""
    assert pad("export", "label-studio", built, "--out", tmp_path / "out", "--shapes", "boxes").code == 0

    def edit(number: int, result: list[dict[str, Any]]) -> None:
        without_ids(number, result)
        result.reverse()
        if number == 0:
            result[0]["value"]["rectanglelabels"] = ["zebra"]

    done = imported(
        pad, "label-studio", label_studio_export(tmp_path / "out/tasks.json", edit), built, tmp_path / "back"
    )
    assert done.code == 0 and "1 regions that people renamed" in done.out
    assert "people drew" not in done.out and "people deleted" not in done.out
    before, after = regions_of(built), regions_of(tmp_path / "back")
    for number, name in enumerate(before):
        kept = slice(None, -1 if number == 0 else None)
        assert without_rows(after[name][kept]) == without_rows(before[name][kept])


def test_corrections_from_label_studio_win_in_a_merge(built: Path, pad: Pad, tmp_path: Path) -> None:
    """A moved box, a deleted region, a renamed one and a new one; a skipped task; an older annotation, which does not
    count. All else is as it was, and run.json and the last lines say which images came from where."""
    before = regions_of(built)
    first = next(name for name, regions in before.items() if len(regions) > 3)
    skipped = next(name for name in before if name != first)
    assert pad("export", "label-studio", built, "--out", tmp_path / "out", "--shapes", "boxes").code == 0
    tasks = json.loads((tmp_path / "out/tasks.json").read_text())
    ids = [task["data"]["pad_id"] for task in tasks]

    def edit(number: int, result: list[dict[str, Any]]) -> None:
        if ids[number] == first:
            result[0]["value"] |= {"x": 10.0, "y": 20.0, "width": 25.0, "height": 30.0}
            result[2]["value"]["rectanglelabels"] = ["zebra"]
            new = copy.deepcopy(result[0]) | {"id": "Xy_12", "type": "brushlabels"}
            width, height = new["original_width"], new["original_height"]
            mask = np.zeros((height, width), np.uint8)
            mask[3:9, 5:20] = 1
            new["value"] = {"format": "rle", "rle": encode_brush(mask), "brushlabels": ["new thing"]}
            result.append(new)
            del result[1]

    export = label_studio_export(tmp_path / "out/tasks.json", edit)
    tasks = json.loads(export.read_text())
    tasks[ids.index(skipped)]["annotations"][0]["was_cancelled"] = True
    older = {"id": 99, "was_cancelled": False, "result": [], "updated_at": "2026-01-01T00:00:00Z"}
    tasks[ids.index(first)]["annotations"].append(older)
    newer = {"id": 98, "was_cancelled": True, "result": [], "updated_at": "2026-02-01T00:00:00Z"}
    tasks[ids.index(first)]["annotations"].append(newer)
    export.write_text(json.dumps(tasks))
    done = imported(pad, "label-studio", export, built, tmp_path / "corrected")
    assert done.code == 0, done.err
    for said in (
        "1 skipped tasks, which are left out",
        "1 regions of which people changed the shape",
        "1 regions that people renamed",
        "1 regions that people deleted",
        "1 regions that people drew",
    ):
        assert said in done.out
    after = regions_of(tmp_path / "corrected")
    assert skipped not in after and len(after) == len(before) - 1
    moved, renamed, *rest, drawn = after[first]
    width, height = open_shards(built).sample(*row_of(built, first)).meta["width"], size_of(built, first)[1]
    box = [width * 0.1, height * 0.2, width * 0.35, height * 0.5]
    assert np.allclose(moved["box"], box, atol=1e-3) and moved["label"] == before[first][0]["label"]
    assert coco_mask.area(moved["rle"]) == pytest.approx(width * height * 0.25 * 0.3, rel=0.1)
    assert (renamed["label"], renamed["rle"], renamed["box"]) == (
        "zebra",
        before[first][2]["rle"],
        before[first][2]["box"],
    )
    assert (drawn["label"], drawn["box"]) == ("new thing", [5, 3, 20, 9])
    for human in (moved, renamed, drawn):
        assert (human["score"], human["label_score"], human["predicted_iou"]) == (1, 1, 1) and not human["alternates"]
    assert without_rows(rest) == without_rows(before[first][3:])
    # The merge: the corrected image from the second run, all others as they were.
    done = pad("merge", built, tmp_path / "corrected", "--corrections", "--out", tmp_path / "merged")
    assert done.code == 0, done.err
    assert regions_of(tmp_path / "merged") == before | after
    run = open_shards(tmp_path / "merged").run
    said = {what: number for what, number in run.counts.items() if what.startswith("images with the regions of run")}
    assert [*said.values()] == [2, 9] and all(what in done.out for what in said)  # the failed and the skipped one
    assert "(build)" in next(iter(said)) and "corrected (import-label-studio)" in [*said][1]
    assert run.settings["corrections"] == ["import-label-studio"]
    assert [row["key"] for _, row in open_shards(tmp_path / "merged").rows()] == [
        row["key"] for _, row in open_shards(built).rows()
    ]
    assert pad("verify", tmp_path / "merged", "--deep").code == 0
    refused = pad("merge", tmp_path / "corrected", built, "--corrections", "--out", tmp_path / "reversed")
    assert refused.code == 2 and "the run of the models first" in refused.err
    # The card of the merged run names both: the models, and what people did.
    assert pad("export", "hub", tmp_path / "merged", "--out", tmp_path / "hub").code == 0
    card = (tmp_path / "hub/README.md").read_text()
    assert "By models" in card and "From an annotation file" in card


def row_of(run: Path, id: str) -> tuple[str, dict[str, Any]]:
    return next((name, row) for name, row in open_shards(run).rows() if row["id"] == id)


def size_of(run: Path, id: str) -> tuple[int, int]:
    _, row = row_of(run, id)
    return row["width"], row["height"]


def test_corrections_from_cvat_win_in_a_merge(built: Path, pad: Pad, tmp_path: Path) -> None:
    """The same edits with masks, in CVAT's XML; and an image of which all regions were deleted."""
    before = regions_of(built)
    first = next(name for name, regions in before.items() if len(regions) > 3)
    emptied = next(name for name, regions in before.items() if name != first and regions)
    assert pad("export", "cvat", built, "--out", tmp_path / "out").code == 0
    labels = json.loads((tmp_path / "out/labels.json").read_text())
    assert {label["name"] for label in labels} == {one["label"] for its in before.values() for one in its}
    keys = {row_of(built, name)[1]["key"]: name for name in before}

    def edit(number: int, image: ET.Element) -> None:
        name = keys[image.get("name", "").partition(".")[0]]
        shapes = list(image)
        if name == emptied:
            for shape in shapes:
                image.remove(shape)
        if name == first:
            shapes[0].attrib = {"label": shapes[0].get("label", ""), "left": "2", "top": "1", "rle": "0, 6"}
            shapes[0].attrib |= {"width": "3", "height": "2"}
            image.remove(shapes[1])
            shapes[2].set("label", "zebra")
            copied = copy.deepcopy(shapes[3])  # a copy has the number of its original
            copied.set("label", "again")
            image.append(copied)

    export = cvat_export(tmp_path / "out/annotations.xml", edit)
    done = imported(pad, "cvat", export, built, tmp_path / "corrected")
    assert done.code == 0, done.err
    assert open_shards(tmp_path / "corrected").run.shard_size == open_shards(built).run.shard_size != 512
    command = ["import", "cvat", "--annotations", export, "--shards", built, "--out", tmp_path / "refused"]
    refused = pad(*command, "--models", "miniature")
    assert refused.code == 2 and "--models = miniature: it does not go with --shards" in refused.err
    after = regions_of(tmp_path / "corrected")
    redrawn, renamed, *rest, copied = after[first]
    assert (redrawn["box"], coco_mask.area(redrawn["rle"])) == ([2, 1, 5, 3], 6)
    assert (renamed["label"], renamed["rle"], renamed["score"]) == ("zebra", before[first][2]["rle"], 1)
    assert (copied["label"], copied["rle"], copied["score"]) == ("again", before[first][3]["rle"], 1)
    assert without_rows(rest) == without_rows(before[first][3:])
    assert after[emptied] == []
    others = before.keys() - {first, emptied}
    assert {name: after[name] for name in others} == {name: before[name] for name in others}
    done = pad("merge", built, tmp_path / "corrected", "--corrections", "--out", tmp_path / "merged")
    assert done.code == 0, done.err
    assert regions_of(tmp_path / "merged") == before | after
    # A second round: in the image without a region, somebody draws one.
    assert pad("export", "cvat", tmp_path / "corrected", "--out", tmp_path / "second", "--shapes", "boxes").code == 0

    def draw(number: int, image: ET.Element) -> None:
        if keys[image.get("name", "").partition(".")[0]] == emptied:
            ET.SubElement(image, "box", {"label": "new", "xtl": "1", "ytl": "2", "xbr": "9", "ybr": "8"})

    export = cvat_export(tmp_path / "second/annotations.xml", draw)
    assert imported(pad, "cvat", export, tmp_path / "corrected", tmp_path / "drawn").code == 0
    (region,) = regions_of(tmp_path / "drawn")[emptied]
    assert (region["label"], region["box"], row_of(tmp_path / "drawn", emptied)[1]["status"]) == (
        "new",
        [1, 2, 9, 8],
        "ok",
    )


def test_corrections_through_coco_win_too(built: Path, models_toml: Path, pad: Pad, tmp_path: Path) -> None:
    """Their paths differ from those of the build, so ids and sizes identify the images."""
    assert pad("export", "coco", built, "--out", tmp_path / "coco").code == 0
    path = tmp_path / "coco/instances.json"
    content = json.loads(path.read_text())
    gone = content["annotations"].pop(0)
    path.write_text(json.dumps(content))
    command = ["import", "coco", "--annotations", path, "--images", tmp_path / "coco/images", "--models", models_toml]
    assert pad(*command, "--view-size", 112, "--out", tmp_path / "corrected").code == 0
    done = pad("merge", built, tmp_path / "corrected", "--corrections", "--out", tmp_path / "merged")
    assert done.code == 0, done.err
    before, merged = regions_of(built), regions_of(tmp_path / "merged")
    name = content["images"][gone["image_id"] - 1]["pad"]["id"]
    assert len(merged[name]) == len(before[name]) - 1
    assert merged.keys() == before.keys() and "10 images with the regions of run 2" in done.out


def test_of_images_that_are_alike_the_paths_decide(mixed_run: Path, pad: Pad, tmp_path: Path) -> None:
    """Two copies of a run in one: ids, sizes and paths are all there twice, so no image can be chosen, and none is
    replaced without a word."""
    assert pad("merge", mixed_run, mixed_run, "--out", tmp_path / "twice").code == 0
    done = pad("merge", tmp_path / "twice", mixed_run, "--corrections", "--out", tmp_path / "merged")
    assert done.code == 0, done.err
    assert "12 corrected images that the first run does not have, or not only once" in done.out
    assert "1 corrected images that failed" in done.out
    assert len([*open_shards(tmp_path / "merged").rows()]) == 26 + 12
    refused = pad("merge", mixed_run, "--corrections", "--out", tmp_path / "alone")
    assert refused.code == 2 and "--corrections" in refused.err


@pytest.mark.parametrize("kind", ["label-studio", pytest.param("cvat", marks=pytest.mark.long)])
def test_a_region_with_an_empty_mask_stays(
    kind: str, world: World, models_toml: Path, pad: Pad, tmp_path: Path
) -> None:
    """No tool shows an empty mask, so the region would come back as deleted."""
    image = next(world.images.iterdir())
    width, height = Image.open(image).size
    empty = {"size": [height, width], "counts": [height * width]}
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 3, 10, 12], "segmentation": empty}
    content = {"images": [{"id": 1, "file_name": image.name}], "categories": [{"id": 1, "name": "ghost"}]}
    (tmp_path / "coco.json").write_text(json.dumps(content | {"annotations": [annotation]}))
    command = ["import", "coco", "--annotations", tmp_path / "coco.json", "--images", world.images]
    assert pad(*command, "--models", models_toml, "--view-size", 112, "--out", tmp_path / "run").code == 0
    assert len(regions_of(tmp_path / "run")[image.stem]) == 1
    assert pad("export", kind, tmp_path / "run", "--out", tmp_path / "out").code == 0
    export = (
        label_studio_export(tmp_path / "out/tasks.json")
        if kind == "label-studio"
        else cvat_export(tmp_path / "out/annotations.xml")
    )
    assert imported(pad, kind, export, tmp_path / "run", tmp_path / "back").code == 0
    assert regions_of(tmp_path / "back") == regions_of(tmp_path / "run")


@pytest.mark.parametrize("kind", ["label-studio", "cvat"])
def test_hostile_labels_go_both_ways(kind: str, mixed_run: Path, pad: Pad, tmp_path: Path) -> None:
    """Markup, quotes and control characters in labels: the files stay valid, no tag of ours appears in them, and the
    regions come back unchanged. XML can't hold all characters, so what is written differs from the label."""
    labels = {region["label"] for regions in regions_of(mixed_run).values() for region in regions}
    assert any("<" in label for label in labels)
    assert pad("export", kind, mixed_run, "--out", tmp_path / "out").code == 0
    for path in (tmp_path / "out").glob("*.xml"):
        tags = {element.tag for element in ET.parse(path).iter()}
        assert tags <= {
            "View", "Image", "RectangleLabels", "BrushLabels", "PolygonLabels", "Label",
            "annotations", "version", "meta", "task", "labels", "label", "name", "attributes", "mutable", "input_type",
            "image", "mask", "attribute",
        }  # fmt: skip
    export = (
        label_studio_export(tmp_path / "out/tasks.json")
        if kind == "label-studio"
        else cvat_export(tmp_path / "out/annotations.xml")
    )
    done = imported(pad, kind, export, mixed_run, tmp_path / "back")
    assert done.code == 0 and "people" not in done.out, done.out
    assert regions_of(tmp_path / "back") == regions_of(mixed_run)


def test_files_of_another_run_and_unknown_images_are_left_out(
    built: Path, mixed_run: Path, pad: Pad, tmp_path: Path
) -> None:
    """Keys of two runs are often the same names for other images: the corrections of one would land on the other.
    Each is counted and named; where nothing is left, it is an error of one line that names the file's option."""
    for kind in ("label-studio", "cvat"):
        assert pad("export", kind, built, "--out", tmp_path / kind, "--shapes", "boxes").code == 0
    tasks = label_studio_export(tmp_path / "label-studio/tasks.json")
    xml = cvat_export(tmp_path / "cvat/annotations.xml")
    for kind, path in (("label-studio", tasks), ("cvat", xml)):
        refused = imported(pad, kind, path, mixed_run, tmp_path / "wrong")
        assert refused.code == 2 and "images of another run" in refused.err and "--annotations" in refused.err
        assert not (tmp_path / "wrong").exists()
    content = json.loads(tasks.read_text())
    content[0]["data"]["pad_key"] = "../../etc/passwd"
    content[1]["data"]["pad_id"] = "another image"
    content[2]["data"] = {"image": "x.jpg"}
    content[3]["annotations"] = []
    content[5]["data"]["pad_key"] = content[4]["data"]["pad_key"]
    tasks.write_text(json.dumps(content))
    done = imported(pad, "label-studio", tasks, built, tmp_path / "some")
    assert done.code == 0, done.err
    for said in (
        "2 images that are not in the run, which are left out (the first: task 100)",
        "1 tasks that no `pad export` wrote, which are left out (the first: task 102)",
        "1 tasks without a completed annotation, which are left out (the first: task 103)",
        "1 entries of images that have one already, which are left out (the first: task 105)",
    ):
        assert said in done.out, done.out
    assert len([*open_shards(tmp_path / "some").rows()]) == 5


HOSTILE_ITEMS: list[Any] = [
    7,
    {"type": "rectanglelabels", "value": "x"},
    {"type": "rectanglelabels", "value": {"x": "nan", "y": 0, "width": 1, "height": 1, "rectanglelabels": ["a"]}},
    {"type": "rectanglelabels", "value": {"x": 1, "y": 0, "width": -1, "height": 1, "rectanglelabels": ["a"]}},
    {"type": "rectanglelabels", "value": {"x": 1, "y": 0, "width": 1, "height": 1, "rectanglelabels": []}},
    {"type": "rectanglelabels", "value": {"x": 1, "y": 0, "width": 1, "height": 1, "rectanglelabels": ["a", "b"]}},
    {"type": "polygonlabels", "value": {"points": [[1, 2], 3], "polygonlabels": ["a"]}},
    {"type": "brushlabels", "value": {"format": "rle", "rle": [255] * 99, "brushlabels": ["a"]}},
    {"type": "brushlabels", "value": {"format": "rle", "rle": "x" * 99, "brushlabels": ["a"]}},
    {"type": "choices", "value": {"choices": ["a"]}},
    {"type": "relation", "from_id": "a", "to_id": "b"},
    {"id": "pad-0", "type": ["x"], "value": {}},
]


def test_hostile_results_cost_their_shape_alone(built: Path, pad: Pad, tmp_path: Path) -> None:
    """Wrong types, numbers that are none, a mask of another size: each is counted, and the other regions stay."""
    assert pad("export", "label-studio", built, "--out", tmp_path / "out", "--shapes", "boxes").code == 0

    def edit(number: int, result: list[Any]) -> None:
        if number == 0:
            result += HOSTILE_ITEMS
        if number == 1:
            points = [[-900, 0], [900, 0], [900, 900]]
            result.append({"type": "polygonlabels", "value": {"points": points, "polygonlabels": ["far"]}})

    export = label_studio_export(tmp_path / "out/tasks.json", edit)
    done = imported(pad, "label-studio", export, built, tmp_path / "back")
    assert done.code == 0, done.err
    left_out = sum(int(line.split()[0]) for line in done.out.splitlines() if "annotations left out" in line)
    assert left_out == len(HOSTILE_ITEMS), done.out
    assert "1 images of which annotations are left out" in done.out and "extends beyond the image" in done.out
    assert regions_of(tmp_path / "back") == regions_of(built)


def test_mistakes_in_corrections_are_answered_in_one_line(built: Path, pad: Pad, tmp_path: Path) -> None:
    """Each names its option, and leaves no folder behind."""
    out = ["--out", tmp_path / "new"]
    for name, text in {
        "no.json": "{",
        "object.json": "{}",
        "min.json": '[{"image": "x", "pad_key": "y"}]',
        "bomb.xml": '<!DOCTYPE a [<!ENTITY b "c">]><annotations/>',
        "other.xml": "<html/>",
    }.items():
        (tmp_path / name).write_text(text)
    for said, *words in (
        ("--annotations", "import", "label-studio", "--annotations", tmp_path / "gone.json", "--shards", built, *out),
        ("JSON", "import", "label-studio", "--annotations", tmp_path / "no.json", "--shards", built, *out),
        ("list of tasks", "import", "label-studio", "--annotations", tmp_path / "object.json", "--shards", built, *out),
        ("JSON-MIN", "import", "label-studio", "--annotations", tmp_path / "min.json", "--shards", built, *out),
        ("DOCTYPE", "import", "cvat", "--annotations", tmp_path / "bomb.xml", "--shards", built, *out),
        ("--annotations", "import", "cvat", "--annotations", tmp_path / "other.xml", "--shards", built, *out),
        ("--images", "import", "cvat", "--annotations", tmp_path / "other.xml", *out),
        ("--shards", "import", "label-studio", "--annotations", tmp_path / "no.json", "--shards", tmp_path, *out),
        ("--strict", "import", "cvat", "--annotations", tmp_path / "other.xml", "--shards", built, "--strict", *out),
    ):
        refused = pad(*words)
        assert refused.code == 2, words
        assert said in refused.err and "Traceback" not in refused.err, refused.err
        assert not (tmp_path / "new").exists()


def test_the_brush_of_label_studio() -> None:
    """Bytes that the SDK's own `encode_rle` wrote for a mask of 3 x 4 pixels (label-studio-sdk 2.1.2), and masks of
    many shapes through both directions. A mask whose size is a lie takes no memory."""
    mask = np.zeros((3, 4), np.uint8)
    mask[1:, 1:3] = 1
    assert decode_brush(SDK, 4, 3).tolist() == mask.tolist()
    random = np.random.default_rng(2)
    for _ in range(40):
        height, width = random.integers(1, 50, 2)
        mask = (random.random((height, width)) < random.random()).astype(np.uint8)
        assert (decode_brush(encode_brush(mask), width, height) == mask).all()
    full = np.ones((300, 400), np.uint8)
    assert len(encode_brush(full)) < 50 and decode_brush(encode_brush(full), 400, 300).all()
    for width, height in ((5, 3), (100_000, 100_000)):
        with pytest.raises(ValueError, match="size"):
            decode_brush(SDK, width, height)
    with pytest.raises(ValueError, match="ends inside"):
        decode_brush(SDK[:-3], 4, 3)
