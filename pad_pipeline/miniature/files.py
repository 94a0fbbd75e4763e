"""Drawn scenes as files: pictures, a LLaVA JSON with their captions, a COCO JSON with their exact regions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from pad_pipeline.miniature.world import LABELS, Scene, draw_scene

QUESTIONS = ("<image>\nDescribe the picture briefly.", "Give a short caption of the image.\n<image>")


class World(NamedTuple):
    """Where drawn scenes were written."""

    images: Path
    llava: Path
    """LLaVA JSON, for `pad build --images`."""
    instances: Path
    """COCO JSON, for `pad import coco --annotations`."""


def write_world(folder: Path, count: int, seed: int = 0) -> World:
    """Draw `count` scenes of world `seed` and write them below `folder`."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    coco: dict[str, Any] = {
        "info": {"description": f"{count} drawn scenes, seed {seed}"},
        "images": [],
        "annotations": [],
    }
    coco["categories"] = [{"id": number, "name": label} for number, label in enumerate(LABELS, 1)]
    for index in range(count):
        scene = draw_scene(seed, index)
        name = f"scene-{index:05d}.png"
        scene.image.save(images / name)
        records.append(_record(index, name, scene.caption))
        coco["images"].append(
            {"id": index, "file_name": name, "width": scene.image.width, "height": scene.image.height}
        )
        coco["annotations"] += _annotations(scene, index, len(coco["annotations"]))
    world = World(images, folder / "llava.json", folder / "instances.json")
    world.llava.write_text(json.dumps(records, indent=1), "utf-8")
    world.instances.write_text(json.dumps(coco), "utf-8")
    return world


def _record(index: int, name: str, caption: str) -> dict[str, Any]:
    question = {"from": "human", "value": QUESTIONS[index % len(QUESTIONS)]}
    return {"id": f"scene-{index:05d}", "image": name, "conversations": [question, {"from": "gpt", "value": caption}]}


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
