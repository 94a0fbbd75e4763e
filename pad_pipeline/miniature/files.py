"""Drawn scenes as files: images, LLaVA JSON for both stages, exact regions as COCO JSON, referring expressions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from pad_pipeline.errors import UserError
from pad_pipeline.miniature.language import DESCRIBE, caption, questions, refer
from pad_pipeline.miniature.world import LABELS, Scene, draw_scene

WORLD = "world.json"
"""Says that the folder holds drawn scenes, and which."""
_TURNS = 6
"""Turns of a conversation, at most."""


class World(NamedTuple):
    """Where drawn scenes were written."""

    images: Path
    llava: Path
    """LLaVA JSON with captions, for stage 1 and `pad build`."""
    chat: Path
    """LLaVA JSON with conversations, for stage 2."""
    instances: Path
    """COCO JSON, for `pad import coco`."""
    refer: Path
    """Referring expressions: a list of `{"image", "phrase", "box": [x0, y0, x1, y1] in pixels, "label"}`."""


def key_of(index: int) -> str:
    """The id of a scene, the stem of its image and its key in shards."""
    return f"scene-{index:05d}"


def index_of(key: str) -> int:
    """The inverse of `key_of`."""
    return int(key.removeprefix("scene-"))


def write_world(out: Path, count: int, seed: int = 0, indices: Iterable[int] = ()) -> World:
    """Draw `count` scenes of world `seed` and write them below `out`.

    Args:
        out: new, empty, or drawn scenes that may be overwritten.
        count: how many.
        seed: of the world.
        indices: 0 to `count`, by way of a progress bar.

    Raises:
        UserError: the folder holds something else.
        OSError: it can't be written.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / WORLD).is_file())):
        raise UserError("out", out, "it holds something else than drawn scenes", "name a new folder")
    images = out / "images"
    images.mkdir(parents=True, exist_ok=True)
    for old in images.glob("scene-*.png"):  # of a larger world, or another
        old.unlink()
    (out / WORLD).write_text(json.dumps({"seed": seed, "count": count, "labels": LABELS}) + "\n", "utf-8")
    captions: list[dict[str, Any]] = []
    chats: list[dict[str, Any]] = []
    phrases: list[dict[str, Any]] = []
    coco: dict[str, Any] = {
        "info": {"description": f"{count} drawn scenes, seed {seed}"},
        "images": [],
        "annotations": [],
    }
    coco["categories"] = [{"id": number, "name": label} for number, label in enumerate(LABELS, 1)]
    for index in indices or range(count):
        scene = draw_scene(seed, index)
        name = f"{key_of(index)}.png"
        scene.image.save(images / name, compress_level=1)
        turns = questions(scene, np.random.default_rng((seed, index, 1)))[:_TURNS]
        captions.append(_record(index, name, [(DESCRIBE[index % len(DESCRIBE)], caption(scene))], index % 2 == 1))
        chats.append(_record(index, name, turns))
        for found in refer(scene):
            region = scene.regions[found.region]
            phrases.append({"image": name, "phrase": found.phrase, "box": region.box, "label": region.label})
        coco["images"].append(
            {"id": index, "file_name": name, "width": scene.image.width, "height": scene.image.height}
        )
        coco["annotations"] += _annotations(scene, index, len(coco["annotations"]))
    world = World(
        images,
        out / "llava.json",
        out / "llava_chat.json",
        out / "instances.json",
        out / "refer.json",
    )
    for path, content in ((world.llava, captions), (world.chat, chats), (world.refer, phrases)):
        path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    world.instances.write_text(json.dumps(coco) + "\n", "utf-8")
    return world


def is_drawn(path: Path) -> bool:
    """Whether a folder of images, or a JSON file, is part of a drawn world."""
    return any((folder / WORLD).is_file() for folder in (path, path.parent))


def _record(index: int, name: str, turns: list[tuple[str, str]], image_last: bool = False) -> dict[str, Any]:
    """A conversation in LLaVA's form; the image comes before or after the first question."""
    said = []
    for number, (question, answer) in enumerate(turns):
        if number == 0:
            question = f"{question}\n<image>" if image_last else f"<image>\n{question}"
        said += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": key_of(index), "image": name, "conversations": said}


def _annotations(scene: Scene, image: int, first: int) -> list[dict[str, Any]]:
    found = []
    for number, region in enumerate(scene.regions, first + 1):
        rle = coco_mask.encode(np.asfortranarray(region.mask, dtype=np.uint8))
        x0, y0, x1, y1 = region.box
        found.append(
            {
                "id": number,
                "image_id": image,
                "category_id": LABELS.index(region.label) + 1,
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": int(region.mask.sum()),
                "iscrowd": 0,
            }
        )
    return found
