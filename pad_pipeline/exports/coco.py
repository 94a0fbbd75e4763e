"""Exports shards to COCO: `instances.json` with masks as compressed RLE, and a folder of images.

Fields that COCO does not have (scores, alternates, the exact box, tags, dialogues) are under the key `pad`, so that
`pad import coco` restores the same regions.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pycocotools import mask as coco_mask

from pad_pipeline.exports.samples import image_name, samples_by_shard
from pad_pipeline.exports.target import Target
from pad_pipeline.records import RegionJson
from pad_pipeline.shards.reader import Sample, ShardFolder


def export_coco(shards: ShardFolder, target: Target, fiftyone: bool = False) -> Iterator[Counter[str]]:
    """Write the images that did not fail, in the order of the plan. Memory does not grow with the number of images.

    The bytes of the images are not changed. With `fiftyone`, the layout is that of FiftyOne's `COCODetectionDataset`:
    `data/` and `labels.json`. FiftyOne cuts a mask at its `bbox`. Therefore, `bbox` is then the smallest box around the
    mask, not the detected box.

    Yields:
        After each shard, the counts so far: images, regions, and failed images, which are left out.

    Raises:
        UserError: a shard is damaged, or a file of it would lie outside the folder.
    """
    images, annotations = ("data", "labels.json") if fiftyone else ("images", "instances.json")
    if fiftyone:  # it needs the folder even without images
        target.path_of(images).mkdir(exist_ok=True)
    counts: Counter[str] = Counter(images=0, regions=0)
    categories: dict[str, int] = {}
    # Images and annotations are written while they are read: annotations to a temporary file, which is appended last.
    with target.file(annotations) as partial, partial.open("wb") as out, tempfile.TemporaryFile() as later:
        info = {"description": "Patch-Aligned Dataset, exported by pad", "version": str(shards.run.schema_version)}
        out.write(_json({"info": info})[:-1] + b',"licenses":[],"images":[')
        for _, samples in samples_by_shard(shards, counts):
            for sample in samples:
                image, file = counts["images"], image_name(sample)
                target.write(f"{images}/{file}", sample.image)
                write_item(out, _image(image, file, sample), image)
                for region in sample.checked_regions():
                    counts["regions"] += 1
                    category = categories.setdefault(region["label"], len(categories) + 1)
                    entry = _annotation(counts["regions"], image, category, region, fiftyone)
                    write_item(later, entry, counts["regions"])
            yield counts
        # The second half of the JSON: the annotations, then the categories that they have.
        out.write(b'],"annotations":[')
        later.seek(0)
        shutil.copyfileobj(later, out)
        named = [{"id": number, "name": label, "supercategory": ""} for label, number in categories.items()]
        out.write(b'],"categories":' + _json(named) + b"}\n")


def _image(number: int, file: str, sample: Sample) -> dict[str, Any]:
    meta = sample.meta
    extra = {name: meta[name] for name in ("id", "source", "conversations", "tags")}
    size = {"width": meta["width"], "height": meta["height"]}
    return {"id": number, "file_name": file, **size, "caption": meta["caption"], "pad": extra}


def _annotation(number: int, image: int, category: int, region: RegionJson, enclosing: bool) -> dict[str, Any]:
    x0, y0, x1, y1 = region["box"]
    mask_box = coco_mask.toBbox(region["rle"]).tolist()
    extra = {name: region[name] for name in ("box", "score", "label_score", "prompt", "predicted_iou")}
    extra["mask_box"] = mask_box  # an import regards a `bbox` as edited if it is neither `mask_box` nor `box`
    others = [{name: other[name] for name in ("label", "score", "label_score")} for other in region["alternates"]]
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": mask_box if enclosing else [x0, y0, x1 - x0, y1 - y0],
        "area": int(coco_mask.area(region["rle"])),
        "iscrowd": int(region["crowd"]),
        "segmentation": region["rle"],
        "score": region["score"],
        "pad": extra | {"alternates": others},
    }


def write_item(stream: IO[bytes], entry: dict[str, Any], number: int) -> None:
    """Append entry `number`, counted from 1, to a JSON list, after a comma if it is not the first one."""
    stream.write((b"\n" if number == 1 else b",\n") + _json(entry))


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def how_fiftyone_opens(path: Path) -> str:
    """Return the Python code that opens the exported folder in FiftyOne."""
    return (
        "import fiftyone as fo  # pip install fiftyone pycocotools\n"
        f"dataset = fo.Dataset.from_dir({str(path)!r}, dataset_type=fo.types.COCODetectionDataset,\n"
        "                              label_types='segmentations', include_id=True)\n"
        "fo.launch_app(dataset)\n"
    )
