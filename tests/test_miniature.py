"""The drawn world: exact truth, known to the pixel; the same for the same seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from pad_pipeline.miniature.files import write_world
from pad_pipeline.miniature.world import COLOURS, LABELS, PARTS, STUFF, THINGS, draw_scene

SCENES = [draw_scene(11, index) for index in range(60)]


def test_every_pixel_belongs_to_exactly_one_thing_or_stuff() -> None:
    """Painted over is gone: things and stuff tile the picture; an occluded pixel that stayed in a mask shows here."""
    for scene in SCENES:
        owners = sum(region.mask.astype(int) for region in scene.regions if region.kind != "part")
        assert (owners == 1).all()


def test_parts_belong_to_a_thing_of_their_kind() -> None:
    """A wheel lies inside a car's mask, a sail inside a boat's, and nowhere else."""
    whole = {"wheel": "car", "sail": "boat", "mast": "boat", "roof": "house", "trunk": "tree", "petal": "flower"}
    seen = set()
    for scene in SCENES:
        for part in (region for region in scene.regions if region.kind == "part"):
            holders = [thing for thing in scene.regions if thing.kind == "thing" and (thing.mask & part.mask).any()]
            assert len(holders) == 1
            assert (part.mask <= holders[0].mask).all()
            assert holders[0].label == whole.get(part.label, holders[0].label)
            seen.add(part.label)
    assert seen == set(PARTS)


def test_masks_are_where_the_colours_are() -> None:
    """The picture and the truth are drawn by the same strokes: a ball's body has the colour that the caption names.
    A shift of one against the other by a pixel, or swapped axes, shows in the rim."""
    checked = 0
    for scene in SCENES:
        pixels = np.asarray(scene.image, int)
        balls = [region for region in scene.regions if region.label == "ball"]
        if len(balls) != 1:
            continue
        stripe = np.zeros_like(balls[0].mask)
        for region in scene.regions:
            if region.label == "stripe":
                stripe |= region.mask
        body = pixels[balls[0].mask & ~stripe]
        name = next(colour for colour in COLOURS if f"{colour} ball" in scene.caption)
        if len(body) > 50:
            assert np.abs(body - COLOURS[name]).max(1).mean() < 25
            assert (np.abs(body - COLOURS[name]).max(1) < 60).mean() > 0.99
            checked += 1
    assert checked > 5


def test_occlusion_and_variety() -> None:
    """Sizes, aspects, grounds, several things that hide each other: without them the tests above prove little."""
    assert len({scene.image.size for scene in SCENES}) > 50
    assert {label for scene in SCENES for label in (region.label for region in scene.regions)} == set(LABELS)
    assert set(LABELS) == {*THINGS, *PARTS, *STUFF}
    things = [sum(region.kind == "thing" for region in scene.regions) for scene in SCENES]
    hidden = sum(scene.caption.count(" a") > count for scene, count in zip(SCENES, things, strict=True))
    assert hidden == 0, "a caption names only what can be seen"
    assert max(things) >= 3


def test_boxes_are_tight() -> None:
    for region in SCENES[0].regions:
        x0, y0, x1, y1 = region.box
        inside = np.zeros_like(region.mask)
        inside[y0:y1, x0:x1] = True
        assert (region.mask <= inside).all()
        assert region.mask[y0].any() and region.mask[y1 - 1].any()
        assert region.mask[:, x0].any() and region.mask[:, x1 - 1].any()


def test_the_same_seed_draws_the_same_world(tmp_path: Path) -> None:
    """Files too, byte for byte; another seed draws another."""
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_world(tmp_path / name, 3, seed)
    contents = [
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        for name in "abc"
    ]
    assert contents[0] == contents[1]
    assert len(contents[0]) == 5
    assert contents[0] != contents[2]


@pytest.mark.parametrize("count", [4])
def test_the_coco_file_is_read_by_pycocotools(tmp_path: Path, count: int) -> None:
    """The written truth in the field's own reader: masks, boxes and areas of the scenes."""
    world = write_world(tmp_path, count, seed=11)
    coco = COCO(str(world.instances))
    for index in range(count):
        annotations = coco.loadAnns(coco.getAnnIds(index))
        for annotation, region in zip(annotations, SCENES[index].regions, strict=True):
            assert (coco.annToMask(annotation) == region.mask).all()
            assert annotation["area"] == region.mask.sum()
            assert coco.cats[annotation["category_id"]]["name"] == region.label
    questions = [record["conversations"][0]["value"] for record in json.loads(world.llava.read_text())]
    assert {question.startswith("<image>") for question in questions} == {True, False}
