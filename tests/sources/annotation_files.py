"""Files in the exact form that annotation tools write: Pascal VOC, CVAT, labelme, OpenImages."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from pad_pipeline.sources.cvat import CvatSource
from pad_pipeline.sources.labelme import LabelmeSource
from pad_pipeline.sources.openimages import OpenImagesSource

VOC = """<annotation>
	<folder>VOC2012</folder>
	<filename>{name}</filename>
	<source>
		<database>{database}</database>
		<annotation>PASCAL VOC2007</annotation>
		<image>flickr</image>
	</source>
	<size>
		<width>{width}</width>
		<height>20</height>
		<depth>3</depth>
	</size>
	<segmented>1</segmented>
{objects}</annotation>
"""
DEVKIT = "The VOC2007 Database"
VOC_OBJECT = """	<object>
		<name>{0}</name>
		<pose>Unspecified</pose>
		<truncated>0</truncated>
		<difficult>1</difficult>
		<bndbox>
			<xmin>{1}</xmin>
			<ymin>{2}</ymin>
			<xmax>{3}</xmax>
			<ymax>{4}</ymax>
		</bndbox>
		<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
	</object>
"""
CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta>
    <task>
      <id>4</id>
      <name>t</name>
      <labels><label><name>cat</name><color>#ff0000</color><type>any</type><attributes></attributes></label></labels>
    </task>
    <dumped>2024-01-01 00:00:00.000000+00:00</dumped>
  </meta>
  {images}
</annotations>
"""
CVAT_IMAGE = '<image id="0" name="sub/a.png" subset="default" task_id="4" width="40" height="20">{}</image>'
USUAL = 'label="fire_hydrant" source="manual" occluded="0" z_order="0"'
BOXES = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"


def draw(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 20)).save(path)


def voc(folder: Path, *objects: Iterable[Any], name: str = "a.png", database: str = DEVKIT, width: Any = 40) -> Path:
    written = "".join(VOC_OBJECT.format(*one) for one in objects)
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    text = VOC.format(name=name, database=database, width=width, objects=written)
    (folder / "Annotations/a.xml").write_text(text)
    return folder / "Annotations"


def cvat(folder: Path, *shapes: str, image: str = CVAT_IMAGE) -> CvatSource:
    draw(folder / "images/sub/a.png")
    (folder / "annotations.xml").write_text(CVAT.format(images=image.format("".join(shapes))))
    return CvatSource(folder, folder / "images")


def labelme(folder: Path, shapes: Any, image: Any = "..\\images\\a.png", **parts: Any) -> LabelmeSource:
    draw(folder / "images/a.png")
    (folder / "labels").mkdir(exist_ok=True)
    size = {"imageHeight": 20, "imageWidth": 40}
    data = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": image, "imageData": None} | size | parts
    (folder / "labels/a.json").write_text(json.dumps(data, indent=2))
    return LabelmeSource(folder / "labels", folder / "images")


def drawn(
    points: Any, kind: str = "polygon", group: Any = None, mask: Any = None, label: Any = "cat"
) -> dict[str, Any]:
    extra = {"group_id": group, "description": "", "shape_type": kind, "flags": {}, "mask": mask}
    return {"label": label, "points": points} | extra


def openimages(folder: Path, *rows: str) -> OpenImagesSource:
    draw(folder / "images/0001.png")
    (folder / "images/0001.png").rename(folder / "images/0001.jpg")
    (folder / "boxes.csv").write_text("\n".join([BOXES, *rows]) + "\n")
    (folder / "classes.csv").write_text('/m/0cmf2,Airplane\n/m/01g317,"Wine, red"\n')
    return OpenImagesSource(folder / "boxes.csv", folder / "images", folder / "classes.csv")
