"""Exports shards to Label Studio: tasks with the regions as predictions, its labeling configuration, and the images.

Each task has the run, key and id of its image, and each region its number. `LabelStudioSource` reads the corrections.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from pad_pipeline.choices import Shapes
from pad_pipeline.exports.coco import write_item
from pad_pipeline.exports.samples import image_name, samples_by_shard
from pad_pipeline.exports.target import Target, drawable
from pad_pipeline.masks import decode_mask
from pad_pipeline.records import RegionJson
from pad_pipeline.shards.reader import Sample, ShardFolder
from pad_pipeline.sources.brush import encode_brush
from pad_pipeline.sources.handed import xml_text
from pad_pipeline.sources.label_studio import ID, KEY, RUN, region_id

_LOCAL = "/data/local-files/?d=images/"
"""Where Label Studio serves the files of a local storage whose root is the exported folder."""
_CONTROLS = {"boxes": ("box", "RectangleLabels", "rectanglelabels"), "masks": ("mask", "BrushLabels", "brushlabels")}
"""Shapes -> name of the control, its tag in the configuration, its type in a result."""


def export_label_studio(
    shards: ShardFolder, target: Target, shapes: Shapes = "masks", image_url: str = ""
) -> Iterator[Counter[str]]:
    """Write `tasks.json`, `config.xml` and `images/`, and yield the counts so far, as `export_coco` does.

    Args:
        shards: the run.
        target: the folder.
        shapes: what people correct, one shape for each region: its box or its mask.
        image_url: the URL of the folder of the images in the tasks; by default that of a local storage.
    """
    counts: Counter[str] = Counter(images=0, regions=0)
    labels: dict[str, None] = {}
    prefix = image_url.rstrip("/") + "/" if image_url else _LOCAL
    with target.file("tasks.json") as partial, partial.open("wb") as out:
        out.write(b"[")
        for _, samples in samples_by_shard(shards, counts):
            for sample in samples:
                file = image_name(sample)
                target.write(f"images/{file}", sample.image)
                regions = sample.checked_regions()
                counts["regions"] += len(regions)
                labels |= dict.fromkeys(xml_text(region["label"]) for region in regions)
                write_item(
                    out, _task(shards.run.name, sample, regions, f"{prefix}{quote(file)}", shapes), counts["images"]
                )
            yield counts
        out.write(b"]\n")
    with target.file("config.xml") as partial:
        partial.write_text(_config(labels, shapes), "utf-8")


def _task(run: str, sample: Sample, regions: list[RegionJson], image: str, shapes: Shapes) -> dict[str, Any]:
    data = {"image": image, RUN: run, KEY: sample.key, ID: sample.meta["id"]}
    size = sample.meta["width"], sample.meta["height"]
    results = [_result(number, region, *size, shapes) for number, region in enumerate(regions)]
    scores = [region["score"] for region in regions]
    predicted = {"model_version": "pad", "score": sum(scores) / len(scores) if scores else 0.0, "result": results}
    return {"data": data, "predictions": [predicted]}


def _result(number: int, region: RegionJson, width: int, height: int, shapes: Shapes) -> dict[str, Any]:
    shapes = drawable(region, shapes)
    control, _, kind = _CONTROLS[shapes]
    if shapes == "masks":
        value: dict[str, Any] = {"format": "rle", "rle": encode_brush(decode_mask(region["rle"], width, height))}
    else:
        x0, y0, x1, y1 = region["box"]
        edges = (x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height)
        value = {"rotation": 0} | dict(zip(("x", "y", "width", "height"), (100 * one for one in edges), strict=True))
    return {
        "id": region_id(number),
        "type": kind,
        "from_name": control,
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": region["score"],
        "value": value | {kind: [xml_text(region["label"])]},
    }


def _config(labels: dict[str, None], shapes: Shapes) -> str:
    """Return the labeling configuration, in which people also find the other kinds of shapes."""
    own = _CONTROLS[shapes]
    controls = [own, *(one for one in _CONTROLS.values() if one != own), ("polygon", "PolygonLabels", "polygonlabels")]
    lines = ["<View>", '  <Image name="image" value="$image" zoom="true"/>']
    for name, tag, _ in controls:
        lines += [f'  <{tag} name="{name}" toName="image">']
        lines += [f"    <Label value={quoteattr(label)}/>" for label in labels]
        lines += [f"  </{tag}>"]
    return "\n".join([*lines, "</View>", ""])
