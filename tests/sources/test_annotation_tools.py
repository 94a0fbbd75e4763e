"""The own files of annotation tools, in the exact form that each writes: Pascal VOC, CVAT, labelme, OpenImages."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from pad_pipeline.errors import UserError
from pad_pipeline.records import Planned
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.sources.annotated import AnnotatedSource
from pad_pipeline.sources.cvat import CvatSource
from pad_pipeline.sources.labelme import LabelmeSource
from pad_pipeline.sources.openimages import OpenImagesSource
from pad_pipeline.sources.voc import VocSource
from tests.sources.annotation_files import CVAT_IMAGE, DEVKIT, USUAL, cvat, draw, drawn, labelme, openimages, voc


def only(source: AnnotatedSource) -> Planned:
    (planned,) = source
    assert json.dumps(planned.annotations)
    return planned


def filled(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((20, 40), np.uint8)
    mask[y0:y1, x0:x1] = 1
    return mask


def png(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize(
    ("database", "left"), [(DEVKIT, 10.0), ("Unknown", 11.0)], ids=["pixels from 1", "edges, as labelImg and CVAT"]
)
def test_a_voc_box_has_the_pixels_that_its_writer_meant(tmp_path: Path, database: str, left: float) -> None:
    """Catches VOC's own boxes moved by a pixel: they count from 1, the last one is inside. A part is no object."""
    draw(tmp_path / "images/a.png")
    folder = voc(tmp_path, ("diningtable", 11, 6, 20, 15), ("potted_plant", 1, 1, 40, 20), database=database)
    first, second = only(VocSource(folder, tmp_path / "images")).annotations
    assert (first["label"], first["box"]) == ("diningtable", [left, left - 5, 20 - left, 20 - left])
    assert (second["label"], second["width"], second["height"]) == ("potted plant", 40, 20)


def test_voc_masks_are_those_of_their_objects(tmp_path: Path) -> None:
    """Pixels of value n are the n-th object's, 255 is nobody's; an object without pixels keeps its box."""
    draw(tmp_path / "images/a.png")
    ids = filled(0, 0, 10, 5) + 2 * filled(10, 5, 20, 15)
    ids[4, 9] = 255
    (tmp_path / "SegmentationObject").mkdir()
    file = Image.fromarray(ids)
    file.putpalette([value % 256 for value in range(768)])
    file.save(tmp_path / "SegmentationObject/a.png")
    folder = voc(tmp_path, ("cat", 1, 1, 10, 5), ("dog", 11, 6, 20, 15), ("cow", 1, 1, 9, 9))
    cat, dog, cow = only(VocSource(folder, tmp_path / "images")).annotations
    truth = filled(0, 0, 10, 5)
    truth[4, 9] = 0
    assert (coco_mask.decode(cat["segmentation"]) == truth).all()
    assert (coco_mask.decode(dog["segmentation"]) == filled(10, 5, 20, 15)).all()
    assert (cow["segmentation"], cow["box"]) == (None, [0, 0, 9, 9])
    file.convert("RGB").save(tmp_path / "SegmentationObject/a.png")
    source = VocSource(folder, tmp_path / "images")
    assert [one["segmentation"] for one in only(source).annotations] == [None] * 3
    assert "files of masks that can't be used" in next(iter(source.counts))


def test_voc_images_are_found_as_tools_name_them(tmp_path: Path) -> None:
    """ImageNet's names have no ending, labelImg's files were renamed, Roboflow's images lie beside the XML."""
    draw(tmp_path / "Annotations/a.png")
    for name in ("a", "old.jpg", "a.png", ""):
        found = only(VocSource(voc(tmp_path, ("cat", 1, 1, 9, 9), name=name), tmp_path / "Annotations"))
        assert (found.source, len(found.annotations)) == ("a.png", 1)


def test_polygons_of_voc_are_read(tmp_path: Path) -> None:
    """Roboflow and supervision write a polygon beside the box."""
    draw(tmp_path / "images/a.png")
    file = voc(tmp_path, ("cat", 2, 2, 9, 5), database="roboflow.ai") / "a.xml"
    corners = "<polygon><x1>2</x1><y1>2</y1><x2>10</x2><y2>2</y2><x3>10</x3><y3>6</y3></polygon>"
    file.write_text(file.read_text().replace("<part>", f"{corners}<part>"))
    (one,) = only(VocSource(file.parent, tmp_path / "images")).annotations
    assert (one["box"], one["segmentation"]) == ([1, 1, 8, 4], [[1, 1, 9, 1, 9, 5]])


def test_every_shape_of_cvat_with_an_area_is_read(tmp_path: Path) -> None:
    """Catches masks that are read column by column, boxes that lose their rotation, and shapes that vanish."""
    source = cvat(
        tmp_path,
        f'<box {USUAL} xtl="4.00" ytl="2.00" xbr="20.00" ybr="10.00"></box>',
        f'<box {USUAL} xtl="10.00" ytl="8.00" xbr="20.00" ybr="12.00" rotation="90.00"></box>',
        f'<polygon {USUAL} points="1.00,1.00;9.00,1.00;9.00,5.00"><attribute name="color">red</attribute></polygon>',
        f'<mask {USUAL} rle="0, 3, 2, 1" left="2" top="17" width="3" height="2"></mask>',
        f'<mask {USUAL} rle="1, 1" left="2" top="17" width="3" height="2"></mask>',
        f'<ellipse {USUAL} cx="20.00" cy="10.00" rx="8.00" ry="4.00"></ellipse>',
        f'<polyline {USUAL} points="1.00,1.00;5.00,5.00"></polyline>',
        f"<tag {USUAL}></tag>",
    )
    planned = only(source)
    box, turned, polygon, mask, short, ellipse = planned.annotations
    assert (planned.id, planned.source, box["label"]) == ("sub/a", "sub/a.png", "fire hydrant")
    assert (box["box"], box["segmentation"]) == ([4, 2, 16, 8], None)
    assert np.allclose(turned["segmentation"], [[17, 5, 17, 15, 13, 15, 13, 5]])
    assert polygon["segmentation"] == [[1, 1, 9, 1, 9, 5]]
    assert (coco_mask.decode(mask["segmentation"]) == filled(2, 17, 5, 18) + filled(4, 18, 5, 19)).all()
    assert (coco_mask.decode(short["segmentation"]) == filled(3, 17, 4, 18)).all()
    xs, ys = np.reshape(ellipse["segmentation"][0], (-1, 2)).T
    assert np.allclose(((xs - 20) / 8) ** 2 + ((ys - 10) / 4) ** 2, 1)
    assert source.counts == {
        f"annotations left out, because a <{tag}> is neither a box nor an area": 1 for tag in ("polyline", "tag")
    }


def test_images_of_a_cvat_project_lie_in_folders_of_subsets(tmp_path: Path) -> None:
    source = cvat(tmp_path, image=CVAT_IMAGE.replace("sub/a.png", "a.png").replace("default", "sub"))
    assert only(source).source == "sub/a.png"


def test_every_shape_of_labelme_with_an_area_is_read(tmp_path: Path) -> None:
    """Catches groups that fall apart, masks at the wrong place, rectangles from corner to corner in any order."""
    pixels = np.zeros((4, 6), bool)
    pixels[1:3, 2:5] = True
    square = [[1, 10], [5, 10], [5, 14], [1, 14]]
    source = labelme(
        tmp_path,
        [
            drawn([[1, 1], [9, 1], [9, 5]]),
            drawn([[20, 10], [4, 2]], "rectangle"),
            drawn([[20, 10], [26, 10]], "circle"),
            drawn([[30, 10], [35, 13]], "mask", mask=png(pixels)),
            drawn(square, group=7),
            drawn([[7, 10], [9, 14]], "rectangle", group=7),
            drawn(square, group=7, label="fire_hydrant"),
            drawn(square, "oriented_rectangle"),
            drawn([[3, 3]], "point"),
        ],
    )
    polygon, box, circle, mask, group, other, oriented = only(source).annotations
    assert polygon["segmentation"] == [[1, 1, 9, 1, 9, 5]]
    assert (box["box"], box["segmentation"]) == ([4, 2, 16, 8], None)
    xs, ys = np.reshape(circle["segmentation"][0], (-1, 2)).T
    assert np.allclose(np.hypot(xs - 20, ys - 10), 6)
    assert (coco_mask.decode(mask["segmentation"]) == filled(32, 11, 35, 13)).all()
    flat = [1, 10, 5, 10, 5, 14, 1, 14]
    assert (group["box"], group["segmentation"]) == (None, [flat, [7, 10, 9, 10, 9, 14, 7, 14]])
    assert (other["label"], other["segmentation"], oriented["segmentation"]) == ("fire hydrant", [flat], [flat])
    assert source.counts == {"annotations left out, because a point is no area": 1}


@pytest.mark.parametrize(
    "image", ["..\\images\\a.png", "../images/a.png", "C:\\old\\a.png", "/old/a.png", "a.png", None]
)
def test_labelme_images_are_found_from_any_machine(tmp_path: Path, image: str | None) -> None:
    """Catches paths of Windows, and paths of the machine on which the image was annotated."""
    planned = only(labelme(tmp_path, [drawn([[20, 10], [4, 2]], "rectangle")], image))
    assert (planned.source, planned.problem, len(planned.annotations)) == ("a.png", "", 1)


def test_open_images_boxes_are_fractions_with_names(tmp_path: Path) -> None:
    """A class is its name and not its id; a group is a crowd; images that were not downloaded are left out."""
    source = openimages(
        tmp_path,
        "0001,xclick,/m/0cmf2,1,0.1,0.5,0.2,0.4,0,0,0,0,0",
        "0001,xclick,/m/01g317,1,0.25,0.75,0,1,0,0,1,0,0",
        "0001,xclick,/m/none,1,0.25,0.75,0,1,0,0,1,0,0",
        "0002,xclick,/m/0cmf2,1,0.1,0.5,0.2,0.4,0,0,0,0,0",
    )
    plane, wine = only(source).annotations
    assert (plane["label"], plane["crowd"], plane["fractions"]) == ("Airplane", False, True)
    assert np.allclose(plane["box"], [0.1, 0.2, 0.4, 0.2])
    assert (wine["label"], wine["box"], wine["crowd"]) == ("Wine, red", [0.25, 0, 0.5, 1], True)
    assert source.counts == {
        "annotations left out, because their class is not in the file of classes": 1,
        "images that are not in the folder, which are left out": 1,
    }


def test_rows_of_an_image_must_stand_together(tmp_path: Path) -> None:
    """Catches boxes that are lost without a word, because the file is read once from top to bottom."""
    row = "{},xclick,/m/0cmf2,1,0.1,0.5,0.2,0.4,0,0,0,0,0"
    with pytest.raises(UserError, match=r"image 0001 do not stand together; sort it"):
        list(openimages(tmp_path, *map(row.format, ("0001", "0002", "0001"))))


BAD_CVAT = [
    f'<box {USUAL} xtl="x" ytl="2" xbr="20" ybr="10"/>',
    f'<box {USUAL} ytl="2" xbr="20" ybr="10"/>',
    f'<box {USUAL} xtl="30" ytl="2" xbr="20" ybr="10"/>',
    '<box label="" xtl="1" ytl="2" xbr="20" ybr="10"/>',
    f'<polygon {USUAL} points="1,1;2,2"/>',
    f'<polygon {USUAL} points="1,1;2,nan;5,5"/>',
    f'<mask {USUAL} rle="1, 99" left="2" top="2" width="3" height="2"/>',
    f'<mask {USUAL} rle="-1, 3" left="2" top="2" width="3" height="2"/>',
    f'<mask {USUAL} rle="0, 6" left="39" top="2" width="3" height="2"/>',
    f'<mask {USUAL} rle="0, 100000000000" left="0" top="0" width="100000000000" height="1"/>',
    f'<mask {USUAL} rle="" left="2" top="2" width="3" height="2"/>',
    f'<ellipse {USUAL} cx="1" cy="1" rx="-1" ry="1"/>',
]
BAD_LABELME = [
    7,
    drawn([[1, "x"], [9, 1], [9, 5]]),
    drawn([[1, 1], [9, 1]]),
    drawn([[1, 1, 1], [9, 1, 1], [9, 5, 1]]),
    drawn(None),
    drawn([[1, 1], [9, float("inf")], [9, 5]]),
    drawn([[1, 1], [9, 1], [9, 5]], label=None),
    drawn([[1, 1]], "circle"),
    drawn([[1, 1], [4, 4]], "mask", mask="no PNG"),
    drawn([[38, 1], [41, 4]], "mask", mask=png(np.ones((4, 4), bool))),
    drawn([[1, 1], [4, 4]], "mask", mask=png(np.zeros((4, 4), bool))),
]
BAD_VOC = [("", 1, 1, 9, 9), ("cat", "x", 1, 9, 9), ("cat", 9, 1, 2, 9), ("cat", "inf", 1, 9, 9), ("cat", "", 1, 9, 9)]


def test_a_bad_annotation_costs_itself_and_not_its_image(tmp_path: Path) -> None:
    """Catches a data set that is refused, or an image that is lost, for one shape. Each one is counted."""
    good = f'<box {USUAL} xtl="4.00" ytl="2.00" xbr="20.00" ybr="10.00"/>'
    rows = ["0001,xclick,/m/0cmf2,1,x,0.5,0.2,0.4", "0001", "0001,xclick,/m/0cmf2,1,0.1,0.5,0.2,0.4,0,0,0,0,0"]
    draw(tmp_path / "voc/a.png")
    sources: list[tuple[AnnotatedSource, int]] = [
        (cvat(tmp_path / "c", *BAD_CVAT, good), len(BAD_CVAT)),
        (labelme(tmp_path / "c", [*BAD_LABELME, drawn([[20, 10], [4, 2]], "rectangle")]), len(BAD_LABELME)),
        (VocSource(voc(tmp_path, *BAD_VOC, ("cat", 1, 1, 9, 9)), tmp_path / "voc"), len(BAD_VOC)),
        (openimages(tmp_path, *rows), 2),
    ]
    for source, bad in sources:
        planned = only(source)
        (kept,) = planned.annotations
        assert kept["box"] and kept["id"].endswith(f": {bad + 1}") and not planned.problem
        assert source.counts.total() == bad
        assert all(re.search(r": \d+$", example) for example in source.counts.examples.values())


@pytest.mark.parametrize("width", ["0", "-1", "", "wide", "nan"])
def test_an_unknown_size_is_unknown(tmp_path: Path, width: str) -> None:
    """Catches a size of 0, which old tools write, against which every image would be of another size."""
    draw(tmp_path / "images/a.png")
    (one,) = only(VocSource(voc(tmp_path, ("cat", 1, 1, 9, 9), width=width), tmp_path / "images")).annotations
    assert (one["width"], one["height"]) == (None, 20)
    (one,) = only(labelme(tmp_path, [drawn([[20, 10], [4, 2]], "rectangle")], imageWidth=width)).annotations
    assert one["width"] is None


BOMB = '<!DOCTYPE a [<!ENTITY b "lol">' + "".join(
    f'<!ENTITY {name} "{f"&{last};" * 10}">' for last, name in zip("bcdefghij", "cdefghijk", strict=True)
)


def test_entities_are_not_expanded_and_paths_stay_below_the_folder(tmp_path: Path) -> None:
    """Catches a file of 1 kB that becomes gigabytes, a file that reads others, and images outside the folder."""
    for entities in (BOMB, '<!DOCTYPE a [<!ENTITY k SYSTEM "file:///etc/passwd">'):
        draw(tmp_path / "images/a.png")
        folder = voc(tmp_path, ("&k;", 1, 1, 9, 9))
        (folder / "a.xml").write_text(f"{entities}]>\n{(folder / 'a.xml').read_text()}")
        planned = only(VocSource(folder, tmp_path / "images"))
        assert "it has a DOCTYPE" in planned.problem and not planned.annotations
        source = cvat(tmp_path)
        (tmp_path / "annotations.xml").write_text(f"{entities}]><annotations>&k;</annotations>")
        with pytest.raises(UserError, match="it has a DOCTYPE"):
            list(source)
    draw(tmp_path / "secret.png")
    for path in ("../secret.png", str(tmp_path / "secret.png")):
        outside = cvat(
            tmp_path, f'<box {USUAL} xtl="4" ytl="2" xbr="9" ybr="9"/>', image=CVAT_IMAGE.replace("sub/a.png", path)
        )
        planned = only(outside)
        assert re.search("climbs out|is absolute", planned.problem) and not planned.annotations
        (tmp_path / "labels/a.json").unlink(missing_ok=True)
        source = labelme(tmp_path, [], f"../{path}")
        assert only(source).source == "a.png"  # the image that is called like the JSON file
        (tmp_path / "images/a.png").unlink()
        assert "climbs out" in only(source).problem


def test_a_file_that_can_not_be_read_fails_its_image(tmp_path: Path) -> None:
    """Catches an image whose annotations are gone without a word; and other files among labelme's."""
    draw(tmp_path / "images/a.png", tmp_path / "images/b.png")
    folder = voc(tmp_path, ("cat", 1, 1, 9, 9))
    (folder / "b.xml").write_text("<annotation><object>")
    (folder / "._a.xml").write_bytes(b"\0")
    good, bad = VocSource(folder, tmp_path / "images")
    assert len(good.annotations) == 1 and bad.source == "b.png" and "it is not valid XML" in bad.problem
    source = labelme(tmp_path, [])
    (tmp_path / "labels/b.json").write_text("{")
    (tmp_path / "labels/coco.json").write_text('{"images": []}')
    _, bad = source
    assert bad.source == "b.png" and "its annotation file can't be used" in bad.problem
    assert source.counts.examples == {"JSON files that are not labelme's, which are left out": "coco.json"}


def test_an_image_has_one_entry(tmp_path: Path) -> None:
    """Catches an image that is trained on twice, because a copy of its JSON lies there."""
    source = labelme(tmp_path, [])
    (tmp_path / "labels/b.json").write_text((tmp_path / "labels/a.json").read_text())
    assert only(source).source == "a.png"
    assert source.counts.examples == {"entries of images that have one already, which are left out": "b.json"}


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda folder: VocSource(folder / "none", folder), "there is no such folder"),
        (lambda folder: VocSource(folder, folder, folder / "none"), "masks = .*there is no such folder"),
        (lambda folder: CvatSource(folder, folder), "there is no such file"),
        (lambda folder: CvatSource(folder / "a.txt", folder), "not valid XML"),
        (lambda folder: CvatSource(folder / "b.xml", folder), "first element is <annotation>"),
        (lambda folder: LabelmeSource(folder / "a.txt", folder), "this is not a folder"),
        (lambda folder: OpenImagesSource(folder / "a.txt", folder, folder / "a.txt"), "no column ImageID"),
        (lambda folder: OpenImagesSource(folder / "a.txt", folder, folder / "none"), "classes = .*no such file"),
    ],
)
def test_what_is_no_annotation_is_refused(tmp_path: Path, make: Callable[[Path], AnnotatedSource], rule: str) -> None:
    (tmp_path / "a.txt").write_text("a,b\n")
    (tmp_path / "b.xml").write_text("<annotation></annotation>")
    with pytest.raises(UserError, match=rule) as error:
        list(make(tmp_path))
    assert "\n" not in str(error.value)


def test_commands_make_regions_of_the_drawn_pixels(pad: Callable[..., Any], models_toml: Path, tmp_path: Path) -> None:
    """From the files of each tool to the masks of a shard."""
    draw(tmp_path / "images/a.png")
    voc(tmp_path, ("cat", 5, 3, 20, 10))
    cvat(tmp_path, f'<mask {USUAL} rle="0, 128" left="4" top="2" width="16" height="8"></mask>')
    labelme(tmp_path, [drawn([[4, 2], [20, 2], [20, 10], [4, 10]])])
    openimages(tmp_path, "0001,xclick,/m/0cmf2,1,0.1,0.5,0.1,0.5,0,0,0,0,0")
    given = {
        "voc": ["--annotations", tmp_path / "Annotations"],
        "cvat": ["--annotations", tmp_path],
        "labelme": ["--annotations", tmp_path / "labels"],
        "openimages": ["--annotations", tmp_path / "boxes.csv", "--classes", tmp_path / "classes.csv"],
    }
    for kind, options in given.items():
        command = ["import", kind, *options, "--images", tmp_path / "images", "--models", models_toml]
        done = pad(*command, "--view-size", 112, "--out", tmp_path / kind)
        assert done.code == 0, done.err
        shards = open_shards(tmp_path / kind)
        ((name, row),) = shards.rows()
        (region,) = shards.sample(name, row).meta["regions"]
        assert (shards.run.kind, region["box"]) == (f"import-{kind}", [4, 2, 20, 10])
        assert (coco_mask.decode(region["rle"]) == filled(4, 2, 20, 10)).all()


def test_names_that_no_file_can_have_cost_their_own_records(tmp_path: Path) -> None:
    """Catches a row without the column of the image that ends in a traceback, and one name of 300 letters that stops a
    whole import, because the system refuses to look it up."""
    draw(tmp_path / "images/a.jpg")
    source = openimages(
        tmp_path, "a,xclick,/m/0cmf2,1,0.1,0.2,0.3,0.4,0,0,0,0,0", f"{'b' * 300},xclick,/m/0cmf2,1,0,1,0,1"
    )
    assert [one.id for one in source] == ["a"]
    text = (tmp_path / "boxes.csv").read_text().splitlines()
    swapped = [",".join([*line.split(",")[1:], line.split(",")[0]]) for line in text]
    (tmp_path / "boxes.csv").write_text("\n".join([*swapped, "xclick,/m/0cmf2"]) + "\n")
    source = OpenImagesSource(tmp_path / "boxes.csv", tmp_path / "images", tmp_path / "classes.csv")
    assert [one.id for one in source] == ["a"]
    assert source.counts["rows without an ImageID, which are left out"] == 2


def test_a_labelme_file_belongs_to_the_image_beside_it(tmp_path: Path) -> None:
    """Catches the shapes of `x/a.json` on `a.jpg`, where a folder above has an image of the same name."""
    for name in ("a.jpg", "x/a.jpg"):
        draw(tmp_path / "images" / name)
    (tmp_path / "labels/x").mkdir(parents=True)
    shape = {"label": "dog", "shape_type": "rectangle", "points": [[1, 1], [4, 4]], "group_id": None, "flags": {}}
    text = json.dumps({"imagePath": "a.jpg", "imageWidth": 30, "imageHeight": 20, "shapes": [shape]})
    (tmp_path / "labels/x/a.json").write_text(text)
    found = {one.source: len(one.annotations) for one in LabelmeSource(tmp_path / "labels", tmp_path / "images")}
    assert found["x/a.jpg"] == 1 and not found.get("a.jpg")
