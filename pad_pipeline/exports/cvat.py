"""Exports shards to CVAT: its own XML ("CVAT for images 1.1") with the regions, its labels, and the images.

An image is named by its key, and the attribute `pad` of each shape has the run and the number of the region.
`CvatCorrections` reads the corrections.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from pad_pipeline.choices import Shapes
from pad_pipeline.exports.samples import image_name, samples_by_shard
from pad_pipeline.exports.target import Target, drawable
from pad_pipeline.masks import decode_mask
from pad_pipeline.records import RegionJson
from pad_pipeline.shards.reader import ShardFolder
from pad_pipeline.sources.cvat import IDENTITY
from pad_pipeline.sources.handed import xml_text


def export_cvat(shards: ShardFolder, target: Target, shapes: Shapes = "masks") -> Iterator[Counter[str]]:
    """Write `annotations.xml`, `labels.json` and `images/`; arguments and counts as in `export_label_studio`."""
    counts: Counter[str] = Counter(images=0, regions=0)
    labels: dict[str, None] = {}
    # The labels stand before the images, which are read once: the images are written to a temporary file first.
    with target.file("annotations.xml") as partial, partial.open("wb") as out, tempfile.TemporaryFile() as later:
        for _, samples in samples_by_shard(shards, counts):
            for sample in samples:
                width, height = sample.meta["width"], sample.meta["height"]
                file = image_name(sample)
                target.write(f"images/{file}", sample.image)
                image = [_element("image", 2, id=counts["images"] - 1, name=file, width=width, height=height) + ">"]
                for number, region in enumerate(sample.checked_regions()):
                    counts["regions"] += 1
                    labels[xml_text(region["label"])] = None
                    identity = f'<attribute name="{IDENTITY}">{escape(shards.run.name)}/{number}</attribute>'
                    kind, shape = _shape(region, width, height, shapes)
                    image.append(f"{shape}>{identity}</{kind}>")
                later.write("\n".join([*image, "  </image>", ""]).encode())
            yield counts
        out.write(_head(labels).encode())
        later.seek(0)
        shutil.copyfileobj(later, out)
        out.write(b"</annotations>\n")
    attribute = {"name": IDENTITY, "input_type": "text", "mutable": False, "values": [""]}
    made = [{"name": label, "attributes": [attribute]} for label in labels]
    target.write("labels.json", json.dumps(made, ensure_ascii=False, indent=1).encode())


def _head(labels: dict[str, None]) -> str:
    """Return the start of the XML, with the labels as CVAT writes them, which Datumaro needs."""
    attribute = f"<attribute><name>{IDENTITY}</name><mutable>False</mutable><input_type>text</input_type></attribute>"
    named = [f"<label><name>{escape(one)}</name><attributes>{attribute}</attributes></label>" for one in labels]
    task = ["  <meta><task><labels>", *(f"    {one}" for one in named), "  </labels></task></meta>"]
    return "\n".join(['<?xml version="1.0" encoding="utf-8"?>', "<annotations>", "  <version>1.1</version>", *task, ""])


def _shape(region: RegionJson, width: int, height: int, shapes: Shapes) -> tuple[str, str]:
    """Return the kind of a region's element, and its start, without the closing bracket."""
    common: dict[str, object] = {"label": region["label"], "source": "auto", "occluded": 0}
    if drawable(region, shapes) == "boxes":
        x0, y0, x1, y1 = region["box"]
        return "box", _element("box", 4, **common, xtl=x0, ytl=y0, xbr=x1, ybr=y1, z_order=0)
    mask = decode_mask(region["rle"], width, height)
    rows, columns = np.flatnonzero(mask.any(1)).tolist(), np.flatnonzero(mask.any(0)).tolist()
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    flat = mask[top:bottom, left:right].ravel()
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    text = ", ".join(map(str, [0, *runs] if flat[0] else runs))  # row by row; the first run is background
    place = {"left": left, "top": top, "width": right - left, "height": bottom - top, "z_order": 0}
    return "mask", _element("mask", 4, **common, rle=text, **place)


def _element(tag: str, indent: int, **attributes: object) -> str:
    """Return the start of an XML element, without the closing bracket."""
    written = "".join(f" {name}={quoteattr(xml_text(str(value)))}" for name, value in attributes.items())
    return f"{' ' * indent}<{tag}{written}"
