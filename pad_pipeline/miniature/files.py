"""Write drawn scenes to files: images, LLaVA JSON for both training stages, COCO JSON, referring expressions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from pad_pipeline.miniature.language import DESCRIBE_PROMPTS, REFER_PROMPT, caption, questions, referring_expressions
from pad_pipeline.miniature.world import LABELS, Scene, draw_scene
from pad_pipeline.storage import claim_folder

WORLD = "world.json"
"""The file that marks a folder of drawn scenes, with their seed, number and labels."""
_TURNS = 6
"""The largest number of questions in a conversation of `World.chat`."""


class World(NamedTuple):
    """The paths of the files of drawn scenes."""

    images: Path
    llava: Path
    """LLaVA JSON with captions, for training stage 1 and `pad build`."""
    chat: Path
    """LLaVA JSON with conversations, for training stage 2."""
    instances: Path
    """COCO JSON with the exact regions, for `pad import coco`."""
    refer: Path
    """JSON with referring expressions: a list of `{"image", "phrase", "box": [x0, y0, x1, y1] in pixels, "label"}`."""
    llava_refer: Path
    """LLaVA JSON with all referring expressions of each scene and one other question, for a training stage 2 about
    boxes. From the one or two in `chat`, a short training learns how to write a box, and not where things are."""


def key_of(index: int) -> str:
    """Return the id of scene `index`: its key in shards, and its image's file name without the ending."""
    return f"scene-{index:05d}"


def index_of(key: str) -> int:
    """Return the index of the scene with the id `key`, as the inverse of `key_of`."""
    return int(key.removeprefix("scene-"))


def write_world(out: Path, count: int, seed: int = 0, indices: Iterable[int] = ()) -> World:
    """Draw `count` scenes of the world `seed`, and write them to `out`, a new, empty or earlier folder of scenes.

    `indices` are 0 to `count - 1`, for a caller that wraps them into a progress bar. Raise `UserError` if the folder
    holds anything else, and `OSError` if a file can't be written.
    """
    claim_folder(out, WORLD)
    images = out / "images"
    images.mkdir(parents=True, exist_ok=True)
    for old in images.glob("scene-*.png"):  # images of an earlier world, which may have had more scenes
        old.unlink()
    files = ("llava.json", "llava_chat.json", "instances.json", "refer.json", "llava_refer.json")
    world = World(images, *(out / name for name in files))
    # Draw scene after scene, and collect the contents of the JSON files.
    (out / WORLD).write_text(json.dumps({"seed": seed, "count": count, "labels": LABELS}) + "\n", "utf-8")
    lists = (world.llava, world.chat, world.refer, world.llava_refer)
    contents: dict[Path, list[dict[str, Any]]] = {path: [] for path in lists}
    about = {"description": f"{count} drawn scenes, seed {seed}"}
    coco: dict[str, Any] = {"info": about, "images": [], "annotations": []}
    coco["categories"] = [{"id": number, "name": label} for number, label in enumerate(LABELS, 1)]
    for index in indices or range(count):
        scene = draw_scene(seed, index)
        name = f"{key_of(index)}.png"
        scene.image.save(images / name, compress_level=1)
        turns = questions(scene, np.random.default_rng((seed, index, 1)))
        other = next(turn for turn in turns if not turn[0].startswith(REFER_PROMPT))
        described = [(DESCRIBE_PROMPTS[index % len(DESCRIBE_PROMPTS)], caption(scene))]
        boxes = [turn for turn in turns if turn[0].startswith(REFER_PROMPT) or turn == other]
        contents[world.llava].append(_record(index, name, described, index % 2 == 1))
        contents[world.chat].append(_record(index, name, turns[:_TURNS]))
        contents[world.llava_refer].append(_record(index, name, boxes))
        for phrase, number in referring_expressions(scene):
            region = scene.regions[number]
            contents[world.refer].append({"image": name, "phrase": phrase, "box": region.box, "label": region.label})
        width, height = scene.image.size
        coco["images"].append({"id": index, "file_name": name, "width": width, "height": height})
        coco["annotations"] += _annotations(scene, index, len(coco["annotations"]))
    # Write the JSON files.
    for path, content in contents.items():
        path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    world.instances.write_text(json.dumps(coco) + "\n", "utf-8")
    return world


def is_drawn(path: Path) -> bool:
    """Return whether `path`, a folder of images or a JSON file, comes from `write_world`."""
    return any((folder / WORLD).is_file() for folder in (path, path.parent))


def _record(index: int, name: str, turns: list[tuple[str, str]], image_last: bool = False) -> dict[str, Any]:
    """Return a conversation in LLaVA's format, with the image before or after the first question."""
    messages = []
    for number, (question, answer) in enumerate(turns):
        if number == 0:
            question = f"{question}\n<image>" if image_last else f"<image>\n{question}"
        messages += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": key_of(index), "image": name, "conversations": messages}


def _annotations(scene: Scene, image: int, first: int) -> list[dict[str, Any]]:
    """Return a COCO annotation for each region of a scene, with ids from `first + 1` on."""
    annotations = []
    for number, region in enumerate(scene.regions, first + 1):
        rle = coco_mask.encode(np.asfortranarray(region.mask, dtype=np.uint8))
        x0, y0, x1, y1 = region.box
        annotations.append(
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
    return annotations
