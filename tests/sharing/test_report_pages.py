"""A report shows every image of a run once, with its regions where they lie, and counts them right."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pad_pipeline.masks import decode_mask
from pad_pipeline.report.outline import REACH
from pad_pipeline.report.site import SCRIPTS
from pad_pipeline.shards.reader import open_shards
from tests.sharing.conftest import Pad
from tests.sharing.mixed_run import HOSTILE, ODD_FILE, import_run
from tests.sharing.report_files import area, cards_of, content, rings, table, totals


def test_every_image_stands_once_on_the_pages(pad: Pad, mixed_run: Path, tmp_path: Path) -> None:
    """In the run's order, failed ones too, each page and each block of the index a file of its own; a second report
    replaces the first. Catches a last page that is lost, an image under another's number, leftovers."""
    report = tmp_path / "report"
    shards = open_shards(mixed_run)
    keys = [row["key"] for _, row in shards.rows()]
    for size, pages in ((1, 13), (5, 3)):
        done = pad("report", mixed_run, "--out", report, "--page-size", size)
        assert done.code == 0, done.err
        assert (report / "index.html").as_uri() in done.out
        assert "report: 3 of 3 shards, 13 images" in done.err and "1 failed" in done.err
        assert len(list((report / "data").glob("page-*.js"))) == pages
        cards = cards_of(report)
        assert [card["key"] for card in cards] == keys
        for number, card in enumerate(cards):
            small = report / "images" / f"{number // size:06d}" / f"{number % size:03d}.jpg"
            assert small.exists() == (card["status"] != "failed")
            if small.exists():
                image = Image.open(small)
                assert image.format == "JPEG" and image.size == (card["width"], card["height"])
    index, facts = content(report, "index-000000"), content(report, "facts")
    assert (facts["images"], facts["page_size"]) == (13, 5)
    assert index["statuses"] == "oef" + "o" * 10
    rows = [region for card in cards for region in card.get("regions", [])]
    kinds = {"labels": "<u4", "score": "<u2", "label_score": "<u2", "iou": "<u2", "patches": "<u4"}
    columns = {name: np.frombuffer(base64.b64decode(index[name]), kind).tolist() for name, kind in kinds.items()}
    per_image = np.frombuffer(base64.b64decode(index["regions"]), "<u4").tolist()
    assert per_image == [len(card.get("regions", [])) for card in cards]
    assert [facts["labels"][number][0] for number in columns["labels"]] == [region["label"] for region in rows]
    for name in ("score", "label_score", "iou"):
        assert all(at / 1000 <= row[name] < (at + 1) / 1000 for at, row in zip(columns[name], rows, strict=True))
    assert columns["patches"] == [region["covered"] for region in rows]
    assert [sum(counts) for counts in facts["histograms"].values()] == [len(rows)] * 4
    assert (report / "failed-keys.txt").read_text() == f"{keys[2]}\n"
    (failed,) = map(json.loads, (report / "failed.jsonl").read_text().splitlines())
    assert failed == {name: cards[2][name] for name in ("key", "id", "source", "stage", "reason")}
    few = pad("report", mixed_run, "--out", report, "--limit", 4, "--edge", 32)
    assert few.code == 0, few.err
    assert len(cards_of(report)) == 4 and len(list(report.rglob("*.jpg"))) == 3
    assert max(Image.open(report / "images/000000/000.jpg").size) == 32


def test_statistics_are_those_counted_by_hand(pad: Pad, mixed_run: Path, tmp_path: Path) -> None:
    """Of three images, on paper; of all, by another way through the shards. Catches a failed image that is counted as
    empty, an area of the view taken for one of the image, a bin next to the right one."""
    assert pad("report", mixed_run, "--out", tmp_path / "three", "--limit", 3).code == 0
    assert totals(tmp_path / "three") == {
        "images": 3, "ok": 1, "empty": 1, "failed": 1, "with a caption": 1, "tags": 2, "regions": 2, "labels": 2,
        "regions outside the view": 1,
    }  # fmt: skip
    assert table(tmp_path / "three", 'data-table="area"')["teal square"] == ["", "12.5%", "0.1"]
    assert table(tmp_path / "three", 'data-table="area"')[HOSTILE] == ["", "25.0%", "0.2"]

    def bins(title: str, report: str = "three") -> dict[str, int]:
        found = table(tmp_path / report, f'data-histogram="{title}"')
        return {name: int(count.replace(",", "")) for name, (count,) in found.items() if count != "0"}

    assert bins("Regions per image") == {"0 regions": 1, "2 regions": 1}
    assert bins("Score of regions") == {"0.25 to 0.3": 1, "0.3 to 0.35": 1}
    assert bins("Predicted IoU of masks") == {"0.9 to 0.95": 2}
    assert bins("Share of the image under a mask") == {"0.1 to 0.15": 1, "0.25 to 0.3": 1}
    assert bins("Share of the view under a mask") == {"0 to 0.05": 1, "0.25 to 0.3": 1}
    assert bins("Coverage of touched patches") == {"240 to 255 of 255": 16}
    assert bins("Long edge of images") == {"0 to 128 px": 2}
    assert bins("Width over height") == {"2 or more": 2}
    failures = (tmp_path / "three/index.html").read_text()
    assert "there is no such file" in failures and html.escape(ODD_FILE) in failures and ODD_FILE not in failures

    assert pad("report", mixed_run, "--out", tmp_path / "all").code == 0
    stats = json.loads(pad("stats", mixed_run, "--json").out)
    found = totals(tmp_path / "all")
    assert (found["images"], found["tags"], found["regions"]) == (13, stats["tags"], stats["regions"])
    assert found["regions outside the view"] == stats["regions_out_of_view"]
    counts = table(tmp_path / "all", 'data-table="count"')
    assert {label: int(cells[-1]) for label, cells in counts.items() if label != "label"}.items() <= stats[
        "labels"
    ].items()
    assert dict(content(tmp_path / "all", "facts")["labels"]) == stats["labels"]
    touched: Counter[int] = Counter()
    shards = open_shards(mixed_run)
    for name, row in shards.rows():
        if row["status"] != "failed":
            coverage = shards.sample(name, row).coverage
            touched.update((coverage[coverage > 0] // 16).tolist())
    assert list(bins("Coverage of touched patches", "all").values()) == [touched[n] for n in sorted(touched)]
    facts = (tmp_path / "all/index.html").read_text()
    for value in (*shards.run.fingerprints.values(), shards.run.settings["llm"]["llm"], "112 x 112 pixels, crop"):
        assert value in facts


@pytest.mark.parametrize(
    ("fit", "grid", "patches"),
    [
        # 112 x 56 pixels, a view of 8 x 8 patches; the teal square is 28 x 28 pixels at (28, 0).
        ("crop", [28, 0, 7, 7], [0, 0, 4, 4]),  # 56 x 56 pixels in the middle
        ("pad", [0, -28, 14, 14], [2, 2, 2, 2]),  # 112 x 112 pixels, 28 of them above the image
        ("stretch", [0, 0, 14, 7], [0, 2, 4, 2]),
    ],
)
def test_the_grid_lies_where_the_view_is(
    pad: Pad, mixed_run: Path, models_toml: Path, tmp_path: Path, fit: str, grid: list[float], patches: list[int]
) -> None:
    """In pixels of the original, for each fit, worked out by hand: the square's edges are edges of patches. Catches a
    grid over the image where the view is cut or bordered, and x for y."""
    source = mixed_run if fit == "crop" else import_run(mixed_run.parent, models_toml, fit)
    assert pad("report", source, "--out", tmp_path / "r", "--limit", 1).code == 0
    (card,) = cards_of(tmp_path / "r")
    assert card["grid"] == grid
    square = next(region for region in card["regions"] if region["label"] == "teal square")
    assert square["box"] == [28, 0, 56, 28]
    assert square["patches"][:4] == patches
    assert set(base64.b64decode(square["patches"][4])) == {255}
    x, y, width, height = grid
    row, column, rows, columns = patches
    corners = [x + column * width, y + row * height, x + (column + columns) * width, y + (row + rows) * height]
    assert corners == square["box"]
    points = rings(square["path"])[0] * 112 / REACH
    assert np.allclose([*points.min(0), *points.max(0)], square["box"], atol=0.15)


def test_outlines_are_those_of_the_masks(pad: Pad, mixed_run: Path, tmp_path: Path) -> None:
    """Area and place of each outline against its mask, holes taken out. Catches x for y, half a pixel's shift, a hole
    that is filled, parts that are lost."""
    assert pad("report", mixed_run, "--out", tmp_path / "r").code == 0
    shards, seen = open_shards(mixed_run), 0
    rows = [row for row in shards.rows() if row[1]["status"] != "failed"]
    cards = [card for card in cards_of(tmp_path / "r") if card["status"] != "failed"]
    for (name, row), card in zip(rows, cards, strict=True):
        for region, drawn in zip(shards.sample(name, row).meta["regions"], card["regions"], strict=True):
            mask = decode_mask(region["rle"], card["width"], card["height"])
            scale = max(card["width"], card["height"]) / REACH
            lines = [line * scale for line in rings(drawn["path"])]
            signed = [area(line) for line in lines]  # a hole runs the other way round
            edges = sum(np.abs(np.diff(line, axis=0, append=line[:1])).sum() for line in lines)
            assert abs(abs(sum(signed)) - mask.sum()) <= 0.4 * edges + 2, (card["key"], drawn["label"])
            ys, xs = np.nonzero(mask)
            points = np.vstack(lines)
            assert np.abs(points.min(0) - [xs.min(), ys.min()]).max() <= 1.5
            assert np.abs(points.max(0) - [xs.max() + 1, ys.max() + 1]).max() <= 1.5
            seen += 1
    assert seen > 30


def test_images_turn_as_exif_says(pad: Pad, models_toml: Path, tmp_path: Path) -> None:
    """An image from a phone, on its side in the file: the report's is upright, as the boxes are."""
    images = tmp_path / "images"
    images.mkdir()
    upright = Image.new("RGB", (40, 80), "navy")
    upright.paste("orange", (0, 0, 40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    written = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(written, "JPEG", exif=exif, quality=95)
    (images / "phone.jpg").write_bytes(written.getvalue())
    coco = {"images": [{"id": 1, "file_name": "phone.jpg"}], "categories": [{"id": 1, "name": "top"}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 40, 20]}]}  # fmt: skip
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    command = ["import", "coco", "--annotations", tmp_path / "coco.json", "--images", images, "--models", models_toml]
    assert pad(*command, "--out", tmp_path / "run").code == 0
    assert pad("report", tmp_path / "run", "--out", tmp_path / "r").code == 0
    (card,) = cards_of(tmp_path / "r")
    small = Image.open(tmp_path / "r/images/000000/000.jpg").convert("RGB")
    assert small.size == (card["width"], card["height"]) == (40, 80)
    red, _, blue = small.getpixel((20, 8))  # type: ignore[misc]
    assert red > 200 > 100 > blue


def test_whatever_a_text_holds_it_stays_text(pad: Pad, mixed_run: Path, tmp_path: Path) -> None:
    """Label, caption and file name with markup in them: nowhere as markup, and nothing of them is lost."""
    assert pad("report", mixed_run, "--out", tmp_path / "r").code == 0
    page = (tmp_path / "r/index.html").read_text()
    assert "onerror=" in page and "<img" not in page and "<b " not in page
    assert re.findall(r"<script[^>]*>", page) == [f'<script src="assets/{name}.js">' for name in SCRIPTS]
    assert "default-src 'none'" in page and not re.search(r'(src|href)="(https?:)?//', page)
    card = cards_of(tmp_path / "r")[0]
    assert HOSTILE in [region["label"] for region in card["regions"]]
    assert card["caption"].startswith("A caption. <img")
    for script in (tmp_path / "r/assets").glob("*.js"):
        assert "innerHTML" not in script.read_text()


def test_drawings_as_words_stand_with_their_images(pad: Pad, mixed_run: Path, tmp_path: Path) -> None:
    """Those of `pad analyze`, by the image's key; a second report without them has none. Catches a drawing under
    another image, and a folder without drawings that is taken in silence."""
    keys = [row["key"] for _, row in open_shards(mixed_run).rows()]
    drawings = tmp_path / "analysis"
    drawings.mkdir()
    done = pad("report", mixed_run, "--words", drawings, "--out", tmp_path / "report")
    assert done.code == 2 and "there is no drawing in it" in done.err
    assert not (tmp_path / "report").exists(), "it is found before the pages are made"
    for number in (4, 3):
        Image.new("RGB", (8, number)).save(drawings / f"words-{keys[number]}.png")
    assert pad("report", mixed_run, "--words", drawings, "--out", tmp_path / "report").code == 0
    words = content(tmp_path / "report", "facts")["words"]
    assert set(words) == {keys[3], keys[4]}
    assert [Image.open(tmp_path / "report" / words[keys[number]]).height for number in (3, 4)] == [3, 4]
    done = pad("report", mixed_run, "--words", tmp_path / "report/words", "--out", tmp_path / "report")
    assert done.code == 2 and len(list((tmp_path / "report/words").iterdir())) == 2
    assert pad("report", mixed_run, "--out", tmp_path / "report").code == 0
    assert not content(tmp_path / "report", "facts")["words"] and not list((tmp_path / "report/words").iterdir())


def test_a_sample_says_what_all_images_would_give(pad: Pad, models_toml: Path, tmp_path: Path) -> None:
    """In the facts of a run whose sample alone is finished; not of one that is whole. Catches numbers of a part that
    look like those of all."""
    from pad_pipeline.miniature.files import write_world

    world = write_world(tmp_path / "world", 8, 4)
    build = ["build", "--images", world.images, "--models", models_toml, "--view-size", 112, "--engine", "local",
             "--shard-size", 2, "--threads", 1, "--out", tmp_path / "run"]  # fmt: skip
    assert pad(*build, "--sample", 4).code == 0
    assert pad("report", tmp_path / "run", "--out", tmp_path / "part").code == 0
    page = (tmp_path / "part/index.html").read_text()
    assert "extrapolated from the random sample" in page and "distinct labels" in page
    assert pad(*build).code == 0 and pad("report", tmp_path / "run", "--out", tmp_path / "whole").code == 0
    assert "extrapolated" not in (tmp_path / "whole/index.html").read_text()
