"""A run of images that differ in size, outcome and text, some of it hostile, and whose scores differ."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from PIL import Image

from pad_pipeline.miniature.files import World
from pad_pipeline.records import ImageRecord
from tests.changed_run import changed_run

HOSTILE = "<img src=x onerror=window.hacked=1> </script><script>window.hacked=1</script>"
ODD_FILE = "<b onclick=window.hacked=1>.png"


def write_coco(folder: Path, world: World) -> None:
    images = folder / "images"
    shutil.copytree(world.images, images)
    Image.new("RGB", (112, 56), "teal").save(images / "wide.png")
    Image.new("RGB", (112, 56), "gray").save(images / "blank.png")
    coco = json.loads(world.instances.read_text())
    for entry in coco["images"]:
        entry["id"] += 100
    for entry in coco["annotations"]:
        entry["image_id"] += 100
    sizes = {"width": 112, "height": 56}
    names = ["wide.png", "blank.png", ODD_FILE]
    coco["images"] += [{"id": n, "file_name": name, **sizes} for n, name in enumerate(names, 1)]
    coco["categories"] += [{"id": 901, "name": HOSTILE}, {"id": 902, "name": "teal square"}]
    boxes = {901: [0, 0, 28, 56], 902: [28, 0, 28, 28]}
    for category, (x, y, w, h) in boxes.items():
        outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        entry = {"id": 10**6 + category, "image_id": 1, "category_id": category, "bbox": [x, y, w, h], "iscrowd": 0}
        coco["annotations"].append(entry | {"area": w * h, "segmentation": outline})
    (folder / "coco.json").write_text(json.dumps(coco))
    captions = json.loads(world.llava.read_text())
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": f"A caption. {HOSTILE}"}]
    (folder / "llava.json").write_text(
        json.dumps([*captions, {"id": "w", "image": "wide.png", "conversations": turns}])
    )


def import_run(folder: Path, models_toml: Path, fit: str) -> Path:
    from pad_pipeline.geometry import View
    from pad_pipeline.sources.coco import CocoSource
    from pad_pipeline.workflows.models.settings import load_models
    from pad_pipeline.workflows.runs.build import import_coco
    from pad_pipeline.workflows.runs.options import RunOptions

    models, out = load_models(str(models_toml)), folder / f"imported-{fit}"
    source = CocoSource(folder / "coco.json", folder / "images", folder / "llava.json")
    view = View.model_validate({"size": 112, "fit": fit})
    import_coco(
        source, out, models.llm, models.decode, view, RunOptions(shard_size=5, limit=3 if fit != "crop" else None)
    )
    return out


def scored(source: Path, target: Path) -> None:
    """The same run with scores that differ: people's regions all have 1."""

    def change(record: ImageRecord) -> None:
        for place, region in enumerate(record.regions):
            region.score, region.label_score = 0.25 + 0.07 * (place % 10), 0.2 + 0.11 * (place % 7)
            region.predicted_iou = 0.9 - 0.1 * (place // 2 % 5)

    changed_run(source, target, change)
