"""The drawn world: exact truth, known to the pixel; the same for the same seed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pad_pipeline.geometry import View
from pad_pipeline.miniature.brush import Owner
from pad_pipeline.miniature.files import is_drawn, write_world
from pad_pipeline.miniature.kinds import PARTS, THINGS, Artist
from pad_pipeline.miniature.language import (
    NUMBERS,
    caption,
    is_caption,
    is_kind_of,
    llava_box,
    phrase,
    plural,
    questions,
    referring_expressions,
    side,
)
from pad_pipeline.miniature.score import Score, coverage_by_resizing
from pad_pipeline.miniature.world import COLORS, LABELS, MIN_PIXELS, SIZES, STUFF, TEXTURES, draw_scene
from pad_pipeline.sources.open import open_source
from pad_pipeline.stages.rle import encode_mask
from pad_pipeline.workflows.miniature.truth import score_names, single_labels

SCENES = [draw_scene(11, index) for index in range(150)]


def test_every_pixel_belongs_to_exactly_one_thing_or_stuff() -> None:
    """Painted over is gone: things and stuff tile the image, but for what is too small to have a name; an occluded
    pixel that stayed in a mask shows here."""
    for scene in SCENES:
        owners = sum(region.mask.astype(int) for region in scene.regions if region.kind != "part")
        assert owners.max() == 1
        assert (owners == 0).sum() < 3 * MIN_PIXELS


def parts_of(kind: str) -> set[str]:
    """The parts that a kind's own drawing has, over all ways to draw it."""
    found: set[str] = set()
    for seed in range(12):
        owners: list[Owner] = []
        blank = [ImageDraw.Draw(Image.new(mode, (40, 40))) for mode in ("RGB", "I")]
        rng = np.random.default_rng(seed)
        THINGS[kind].draw(Artist(*blank, owners, 0, rng, (20, 20), 15, 0, False, (9, 9, 9), False, 0.0))
        found |= {owner.part for owner in owners if owner.part}
    return found


def test_parts_belong_to_a_thing_of_their_kind() -> None:
    """A wheel lies inside the mask of a car, a bus or a truck, a sail inside a boat's, and nowhere else."""
    holders_of = {part: {kind for kind in THINGS if part in parts_of(kind)} for part in PARTS}
    assert holders_of["wheel"] == {"car", "bus", "truck"} and holders_of["sail"] == {"boat"}
    seen = set()
    for scene in SCENES:
        for part in (region for region in scene.regions if region.kind == "part"):
            holders = [thing for thing in scene.regions if thing.kind == "thing" and (thing.mask & part.mask).any()]
            assert len(holders) == 1
            assert (part.mask <= holders[0].mask).all()
            assert holders[0].label in holders_of[part.label]
            seen.add(part.label)
    assert seen == set(PARTS)


def test_masks_are_where_the_colors_are() -> None:
    """The image and the truth are drawn by the same strokes: a plain ball fits its mask better than its mask moved
    by a pixel or two. Swapped axes, or a shift of one against the other, shows."""
    checked = 0
    for scene in (draw_scene(12, index) for index in range(400)):
        for thing in scene.things:
            mask = scene.regions[thing.region].mask
            bands = [region.mask for region in scene.regions if region.label == "band"]
            inner = np.any([np.zeros_like(mask), *bands], 0)
            if thing.kind != "ball" or thing.texture or mask[[0, -1]].any() or mask[:, [0, -1]].any():
                continue
            body = mask & ~inner
            pixels = np.asarray(scene.image, int)
            usual = np.median(pixels[body], 0)
            strange = np.abs(pixels - usual).max(2) > 55
            wrong = {
                shift: strange[np.roll(mask, shift, (0, 1)) & ~np.roll(inner, shift, (0, 1))].sum()
                for shift in ((0, 0), (0, 2), (0, -2), (2, 0), (-2, 0))
            }
            flat = strange[body].mean() < 0.02  # neither shaded nor outlined
            if flat:
                assert wrong[0, 0] < min(wrong[shift] for shift in wrong if shift != (0, 0))
                checked += 1
    assert checked > 5


def test_variety() -> None:
    """Every label, sizes, aspects, occlusion, textures: without them the models would learn less than they claim."""
    assert len({scene.image.size for scene in SCENES}) > 50
    assert {region.label for scene in SCENES for region in scene.regions} == set(LABELS)
    assert set(LABELS) == {*THINGS, *PARTS, *STUFF} and len(LABELS) == len(THINGS) + len(PARTS) + len(STUFF)
    assert len(LABELS) >= 60 and len(THINGS) >= 25
    things = [thing for scene in SCENES for thing in scene.things]
    assert {thing.color for thing in things} >= set(COLORS)
    assert {thing.size for thing in things} == {"", *SIZES}
    assert {thing.texture for thing in things} == {"", *TEXTURES}
    assert max(len(scene.things) for scene in SCENES) == 5
    several = [np.sum([region.mask for region in scene.regions], 0).max() for scene in SCENES]
    assert max(several) >= 2, "a patch may truthfully have several words"


def test_things_point_at_their_regions() -> None:
    for scene in SCENES:
        for thing in scene.things:
            assert scene.regions[thing.region].label == thing.kind
            assert scene.regions[thing.region].kind == "thing"


def test_captions_name_what_can_be_seen_and_parse() -> None:
    """Grammar and captions are written separately: each caption is a sentence of the grammar, and damaged ones are
    not. A grammar that takes anything would make the LLM's score worthless."""
    for scene in SCENES:
        said = caption(scene)
        assert is_caption(said), said
        assert sum(said.count(phrase(thing)) >= 1 for thing in scene.things) == len(scene.things)
        assert scene.ground in said
        words = said.split()
        assert not is_caption(" ".join([*words[:-1], words[0], words[-1]])), said
        assert not is_caption(said.replace("the ", "", 1)), said
        assert not is_caption(said[:-1]), said
    assert not is_caption("a red red car on the road under the sky.")
    assert not is_caption("a car on the road at noon.")
    for wrong in (
        "an car on the road under the sky.",
        "a apple on the road under the sky.",
        "on the road under the sky are a red car.",
        "on the road under the sky is a red car and a blue car.",
        "a pink snowman on the sea at night.",
        "a red car on the sea at night, with a blue car above.",
        "a red car on the floor under the sky.",
    ):
        assert not is_caption(wrong), wrong
    assert is_caption("an orange ball and a small red car on the road under the sky, with a sun above.")


def test_referring_expressions_fit_one_thing_only() -> None:
    """A phrase that fits two things would be answered wrongly half of the time."""
    found = 0
    for scene in SCENES:
        for phrase_, region in referring_expressions(scene):
            kind = scene.regions[region].label
            assert phrase_.startswith("the ") and kind in phrase_
            words = set(phrase_.split())
            fitting = [
                thing
                for thing in scene.things
                if is_kind_of(thing.kind, kind)
                and all(
                    word in {thing.size, thing.color, thing.texture} for word in words & {*COLORS, *SIZES, *TEXTURES}
                )
                and ((" on the " not in phrase_ and " in the " not in phrase_) or phrase_.endswith(side(scene, thing)))
            ]
            assert [thing.region for thing in fitting] == [region], phrase_
            found += 1
    assert found > len(SCENES)


def test_boxes_in_conversations_are_parts_of_the_padded_square() -> None:
    """LLaVA-1.5 answers with coordinates of the image padded to a square; those of the image itself would be off
    by up to a quarter."""
    scene = next(scene for scene in SCENES if scene.image.width > scene.image.height + 40 and scene.things)
    region = scene.regions[scene.things[0].region]
    x0, y0, x1, y1 = json.loads(llava_box(scene, scene.things[0].region))
    width, height = scene.image.size
    expected = (region.box[0] / width, (region.box[1] + (width - height) // 2) / width)
    assert (x0, y0) == pytest.approx(expected, abs=0.0051)
    assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1


def test_questions_have_true_answers() -> None:
    """Counted and looked up again from the regions."""
    for scene in SCENES:
        kinds = [region.label for region in scene.regions if region.kind == "thing"]
        for question, answer in questions(scene, np.random.default_rng(1)):
            if question.startswith("Is there a"):
                kind = question.removesuffix("?").split(" ", 3)[3]
                assert answer == ("yes." if any(is_kind_of(other, kind) for other in kinds) else "no.")
            if question.startswith("How many"):
                named = question.removeprefix("How many ").removesuffix(" are there?")
                kind = next(kind for kind in THINGS if plural(kind) == named)
                assert answer.split()[2] == NUMBERS[sum(is_kind_of(other, kind) for other in kinds)]
                assert (kind, scene.backdrop) != ("star", "night"), "who counts the stars of a night sky?"
            if question.startswith("What colour"):
                kind = question.removeprefix("What colour is the ").removesuffix("?")
                color = next(thing.color for thing in scene.things if thing.kind == kind)
                assert answer == f"the {kind} is {color}."


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
    assert len(contents[0]) == 9
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


def test_the_drawn_folder_serves_both_stages(pad: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    """`pad miniature draw`: captions for stage 1, conversations for stage 2, boxes for referring expressions; the
    images and both JSON files are what `pad build` reads."""
    assert pad("miniature", "draw", "--count", 5, "--out", tmp_path / "w", "--seed", 11).code == 0
    for name in ("llava.json", "llava_chat.json", "llava_refer.json"):
        rows = list(open_source(tmp_path / "w" / name, tmp_path / "w/images"))
        assert [row.id for row in rows] == [f"scene-{index:05d}" for index in range(5)]
    records = json.loads((tmp_path / "w/llava.json").read_text())
    assert [record["conversations"][1]["value"] for record in records] == [caption(scene) for scene in SCENES[:5]]
    chats = json.loads((tmp_path / "w/llava_chat.json").read_text())
    assert max(len(record["conversations"]) for record in chats) > 4
    assert all("<image>" in record["conversations"][0]["value"] for record in chats)
    for entry in json.loads((tmp_path / "w/refer.json").read_text()):
        scene = SCENES[int(entry["image"][6:11])]
        assert tuple(entry["box"]) in {region.box for region in scene.regions if region.label == entry["label"]}
    assert is_drawn(tmp_path / "w/images") and is_drawn(tmp_path / "w/llava.json") and not is_drawn(tmp_path)
    again = pad("miniature", "draw", "--count", 5, "--out", tmp_path)
    assert again.code == 2 and "holds something else (" in again.err


def test_single_label_patches_show_one_label_alone() -> None:
    """Patch accuracy is counted on them; judged by a second way of cutting masks into patches. A house's door has two
    labels, house and door, and is none."""
    view = View(size=112, patch=8)
    for scene in SCENES[:40]:
        labels = single_labels(scene, view)
        assert (labels >= 0).sum() > 20
        shares = {}
        for region in scene.regions:
            share = coverage_by_resizing(region.mask, view).flatten()
            shares[region.label] = np.maximum(shares.get(region.label, 0), share)
        for patch in np.flatnonzero(labels >= 0):
            for label, share in shares.items():
                assert share[patch] == pytest.approx(float(label == LABELS[labels[patch]]), abs=0.02)


def test_names_of_patches_are_scored_apart_for_things_parts_and_grounds() -> None:
    """Names that are right for one kind alone are right for that kind alone. Catches a score in which grounds, which
    show in most patches, stand for things; and a part that may be named by its thing."""
    view = View(size=112, patch=8)
    alone = np.stack([single_labels(scene, view) for scene in SCENES[:40]])
    parts = len(THINGS) + len(PARTS)
    found = score_names(alone, SCENES[:40], view)
    assert found[:3] == (1, 1, 1) and found.parts == 0
    stuff_alone = score_names(np.where(alone >= parts, alone, -2), SCENES[:40], view)
    assert stuff_alone[1:3] == (0, 1) and stuff_alone.all == pytest.approx((alone >= parts).sum() / (alone >= 0).sum())
    names = np.full_like(alone, -2)
    for number, scene in enumerate(SCENES[:40]):
        for region in scene.regions:
            if region.kind == "part":
                names[number][coverage_by_resizing(region.mask, view).flatten() >= 0.51] = LABELS.index(region.label)
    found = score_names(names, SCENES[:40], view)
    assert found.parts > 0.9 and found.things == found.stuff == 0


def test_a_score_falls_with_every_kind_of_mistake() -> None:
    """Perfect findings score 1 everywhere; a wrong label, a missed thing, a doubled box, a moved mask each cost the
    number that they should cost, and only that."""
    scene = next(scene for scene in SCENES if len({thing.kind for thing in scene.things}) == len(scene.things) == 3)
    view = View(size=112, patch=8)

    def score(change: Callable[[dict[str, Any]], None] = lambda meta: None, shift: int = 0) -> Score:
        regions = [
            {"label": region.label, "box": region.box, "rle": encode_mask(np.roll(region.mask, shift, 1))}
            for region in scene.regions
        ]
        labels = dict.fromkeys(region.label for region in scene.regions)
        meta: dict[str, Any] = {"tags": [{"label": label} for label in labels], "regions": regions}
        change(meta)
        found = Score()
        masks = [coco_mask.decode(region["rle"]).astype(bool) for region in meta["regions"]]
        found.add(scene, meta, np.stack([view.coverage(mask) for mask in masks]), view)
        return found

    perfect = score()
    assert (perfect.tag_f1, perfect.mask_iou, perfect.label_accuracy) == (1, 1, 1)
    assert perfect.things.recall == perfect.things.precision == perfect.parts.recall == perfect.parts.precision == 1
    assert perfect.patch_iou > 0.97
    other = next(kind for kind in THINGS if kind not in {thing.kind for thing in scene.things})
    renamed = score(lambda meta: meta["regions"][0].update(label=other))
    assert renamed.things.recall == renamed.things.precision == renamed.label_accuracy == pytest.approx(2 / 3)
    doubled = score(lambda meta: meta["regions"].append(meta["regions"][0]))
    assert doubled.things.recall == 1 and doubled.things.precision == pytest.approx(3 / 4)
    assert score(lambda meta: meta["regions"].pop(0)).things.recall == pytest.approx(2 / 3)
    assert score(lambda meta: meta["tags"].pop(0)).tag_f1 < 1
    moved = score(shift=4)
    assert moved.things.recall == 1 and moved.mask_iou < 0.9 and moved.patch_iou < 0.92


def test_a_smaller_world_replaces_a_larger_one(tmp_path: Path) -> None:
    """Images of the old one that stayed would be built with the truth of the new one."""
    write_world(tmp_path / "w", 4, seed=1)
    write_world(tmp_path / "w", 2, seed=2)
    assert sorted(path.name for path in (tmp_path / "w/images").iterdir()) == ["scene-00000.png", "scene-00001.png"]
