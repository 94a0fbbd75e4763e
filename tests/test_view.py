"""`pad report`: a report that opens from disk, looked at as files and in a real browser. `pad show`: one image."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pad_pipeline.masks import decode_mask
from pad_pipeline.miniature.files import World
from pad_pipeline.records import ImageRecord, Shard
from pad_pipeline.report import site
from pad_pipeline.report.outline import REACH
from pad_pipeline.shards.reader import ShardFolder, open_shards
from pad_pipeline.shards.run import RUN_NAME
from pad_pipeline.shards.writer import write_shard
from pad_pipeline.storage import Folder

Pad = Callable[..., Any]
HOSTILE = "<img src=x onerror=window.hacked=1> </script><script>window.hacked=1</script>"
ODD_FILE = "<b onclick=window.hacked=1>.png"


@pytest.fixture(scope="module")
def run(world: World, models_toml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """13 images: a wide one with two regions, one of them with a hostile label, which the crop cuts off; a blank one;
    one that is missing; ten scenes. Scores differ."""
    folder = tmp_path_factory.mktemp("view")
    write_coco(folder, world)
    scored(import_run(folder, models_toml, "crop"), folder / "run")
    return folder / "run"


def write_coco(folder: Path, world: World) -> None:
    images = folder / "images"
    shutil.copytree(world.images, images)
    Image.new("RGB", (112, 56), "teal").save(images / "wide.png")
    Image.new("RGB", (112, 56), "grey").save(images / "blank.png")
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
    shards = open_shards(source)
    target.mkdir()
    shutil.copyfile(source / RUN_NAME, target / RUN_NAME)
    for number, name in enumerate(shards.names):
        records = []
        for row in shards.index(name):
            record = ImageRecord(row["key"], row["id"], row["source"])
            if row["status"] == "failed":
                record.fail(row["stage"], row["reason"])
            else:
                sample = shards.sample(name, row)
                record.restore(sample.meta)
                record.status = row["status"]
                record.data, record.coverage, record.embeds = sample.image, sample.coverage, sample.embeds
            for place, region in enumerate(record.regions):
                region.score, region.predicted_iou = 0.25 + 0.07 * (place % 10), 0.9
            records.append(record)
        write_shard(Shard(number, records), Folder(target), shards.run.identity)


def content(report: Path, name: str) -> Any:
    """What a data file gives the page."""
    text = (report / "data" / f"{name}.js").read_text("ascii")
    found = re.fullmatch(rf'padData\("{name}",(.*)\);\n', text)
    assert found and "<" not in text, name
    return json.loads(found[1])


def cards_of(report: Path) -> list[dict[str, Any]]:
    names = sorted(path.stem for path in (report / "data").glob("page-*.js"))
    return [card for name in names for card in content(report, name)]


def table(report: Path, mark: str) -> dict[str, list[str]]:
    """The rows of a table of index.html: first cell -> the others."""
    text = (report / "index.html").read_text()
    body = text[text.index(mark) :]
    rows = re.findall(r"<tr>(.*?)</tr>", body[: body.index("</table>")], re.DOTALL)
    cells = [[html.unescape(re.sub("<[^>]*>", "", cell)) for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)]
             for row in rows]  # fmt: skip
    return {first: rest for first, *rest in cells}


def totals(report: Path) -> dict[str, int]:
    found = re.findall(r'<dd data-total="(.*?)">(.*?)</dd>', (report / "index.html").read_text())
    return {name: int(count.replace(",", "")) for name, count in found}


def test_every_image_stands_once_on_the_pages(pad: Pad, run: Path, tmp_path: Path) -> None:
    """In the run's order, failed ones too, each page and each block of the index a file of its own; a second report
    replaces the first. Catches a last page that is lost, an image under another's number, leftovers."""
    report = tmp_path / "report"
    shards = open_shards(run)
    keys = [row["key"] for _, row in shards.rows()]
    for size, pages in ((1, 13), (5, 3)):
        done = pad("report", run, "--out", report, "--page-size", size)
        assert done.code == 0, done.err
        assert (report / "index.html").as_uri() in done.out
        assert "view: 3 of 3 shards, 13 images" in done.err and "1 failed" in done.err
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
    for card, entry in zip(cards, index["labels"], strict=True):
        best: dict[str, float] = {}
        for region in card.get("regions", []):
            best[region["label"]] = max(best.get(region["label"], 0), region["score"])
        named = {facts["labels"][number][0]: percent for number, percent in zip(entry[::2], entry[1::2], strict=True)}
        assert named == {label: round(100 * score) for label, score in best.items()}
    few = pad("report", run, "--out", report, "--limit", 4, "--edge", 32)
    assert few.code == 0, few.err
    assert len(cards_of(report)) == 4 and len(list(report.rglob("*.jpg"))) == 3
    assert max(Image.open(report / "images/000000/000.jpg").size) == 32


def test_statistics_are_those_counted_by_hand(pad: Pad, run: Path, tmp_path: Path) -> None:
    """Of three images, on paper; of all, by another way through the shards. Catches a failed image that is counted as
    empty, an area of the view taken for one of the image, a bin next to the right one."""
    assert pad("report", run, "--out", tmp_path / "three", "--limit", 3).code == 0
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

    assert pad("report", run, "--out", tmp_path / "all").code == 0
    stats = json.loads(pad("stats", run, "--json").out)
    found = totals(tmp_path / "all")
    assert (found["images"], found["tags"], found["regions"]) == (13, stats["tags"], stats["regions"])
    assert found["regions outside the view"] == stats["regions_out_of_view"]
    counts = table(tmp_path / "all", 'data-table="count"')
    assert {label: int(cells[-1]) for label, cells in counts.items() if label != "label"}.items() <= stats[
        "labels"
    ].items()
    assert dict(content(tmp_path / "all", "facts")["labels"]) == stats["labels"]
    touched: Counter[int] = Counter()
    shards = open_shards(run)
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
    pad: Pad, run: Path, models_toml: Path, tmp_path: Path, fit: str, grid: list[float], patches: list[int]
) -> None:
    """In pixels of the original, for each fit, worked out by hand: the square's edges are edges of patches. Catches a
    grid over the image where the view is cut or bordered, and x for y."""
    source = run if fit == "crop" else import_run(run.parent, models_toml, fit)
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


def rings(path: str) -> list[np.ndarray]:
    """The closed lines of an outline, `[N, 2]` each."""
    found = []
    for ring in path.split("M")[1:]:
        start, steps = (np.array(part.split(), int).reshape(-1, 2) for part in ring.removesuffix("z").split("l"))
        found.append(np.vstack([start, start + steps.cumsum(0)]))
    return found


def test_outlines_are_those_of_the_masks(pad: Pad, run: Path, tmp_path: Path) -> None:
    """Area and place of each outline against its mask, holes taken out. Catches x for y, half a pixel's shift, a hole
    that is filled, parts that are lost."""
    assert pad("report", run, "--out", tmp_path / "r").code == 0
    shards, seen = open_shards(run), 0
    rows = [row for row in shards.rows() if row[1]["status"] != "failed"]
    cards = [card for card in cards_of(tmp_path / "r") if card["status"] != "failed"]
    for (name, row), card in zip(rows, cards, strict=True):
        for region, drawn in zip(shards.sample(name, row).meta["regions"], card["regions"], strict=True):
            mask = decode_mask(region["rle"], card["width"], card["height"])
            scale = max(card["width"], card["height"]) / REACH
            lines = [line * scale for line in rings(drawn["path"])]
            signed = [_area(line) for line in lines]  # a hole runs the other way round
            edges = sum(np.abs(np.diff(line, axis=0, append=line[:1])).sum() for line in lines)
            assert abs(abs(sum(signed)) - mask.sum()) <= 0.4 * edges + 2, (card["key"], drawn["label"])
            ys, xs = np.nonzero(mask)
            points = np.vstack(lines)
            assert np.abs(points.min(0) - [xs.min(), ys.min()]).max() <= 1.5
            assert np.abs(points.max(0) - [xs.max() + 1, ys.max() + 1]).max() <= 1.5
            seen += 1
    assert seen > 30


def _area(line: np.ndarray) -> float:
    x, y = line.T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2)


def test_whatever_a_text_holds_it_stays_text(pad: Pad, run: Path, tmp_path: Path) -> None:
    """Label, caption and file name with markup in them: nowhere as markup, and nothing of them is lost."""
    assert pad("report", run, "--out", tmp_path / "r").code == 0
    page = (tmp_path / "r/index.html").read_text()
    assert "onerror=" in page and "<img" not in page and "<b " not in page
    assert re.findall(r"<script[^>]*>", page) == ['<script src="assets/overlay.js">', '<script src="assets/report.js">']
    assert "default-src 'none'" in page and not re.search(r'(src|href)="(https?:)?//', page)
    card = cards_of(tmp_path / "r")[0]
    assert HOSTILE in [region["label"] for region in card["regions"]]
    assert card["caption"].startswith("A caption. <img")
    for script in (tmp_path / "r/assets").glob("*.js"):
        assert "innerHTML" not in script.read_text()


def test_memory_does_not_grow_with_the_run(
    pad: Pad, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 65 images, few are taken from the shards ahead of those that are written. Catches a report that is gathered
    before it is written, and threads that run ahead of the disk."""
    large = tmp_path / "large"
    large.mkdir()
    facts = json.loads((run / RUN_NAME).read_text()) | {"images": 75, "shards": 15}
    (large / RUN_NAME).write_text(json.dumps(facts))
    for number in range(15):
        for ending in ("tar", "parquet"):
            os.link(run / f"pad-{number % 3:06d}.{ending}", large / f"pad-{number:06d}.{ending}")
    taken = failed = most = 0
    rows = ShardFolder.rows

    def watched(shards: ShardFolder) -> Iterator[tuple[str, dict[str, Any]]]:
        nonlocal taken, failed, most
        for name, row in rows(shards):
            most = max(most, taken - failed - len(list((tmp_path / "r/images").rglob("*.jpg"))))
            taken, failed = taken + 1, failed + (row["status"] == "failed")
            yield name, row

    monkeypatch.setattr(ShardFolder, "rows", watched)
    done = pad("report", large, "--out", tmp_path / "r")
    assert done.code == 0 and "65 images" in done.out, done.err
    assert 0 < most <= 2 * 8 + 1


def test_what_goes_wrong_is_told_in_one_line(pad: Pad, run: Path, tmp_path: Path) -> None:
    """Field, value, rule, remedy; and nothing of somebody else's is touched."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.doc").write_text("mine")
    (tmp_path / "file").write_text("x")
    for arguments, told in (
        ([run, "--out", mine], "--out = .*holds something else .thesis.doc.; name a folder"),
        ([run, "--out", run], "--out = .*holds something else"),
        ([run, "--out", tmp_path / "file"], "this is a file"),
        ([run, "--out", "s3://bucket/report"], "a report opens from disk"),
        ([run, "--out", "/proc/report"], "can't be written"),
        ([tmp_path / "nowhere", "--out", tmp_path / "r"], "there is no run.json"),
    ):
        done = pad("report", *arguments)
        assert done.code == 2 and done.err.startswith("error: ") and done.err.count("\n") == 1, done.err
        assert re.search(told, done.err), done.err
    assert (mine / "thesis.doc").read_text() == "mine" and not (tmp_path / "r").exists()


def test_a_report_that_was_broken_off_is_made_anew(pad: Pad, run: Path, tmp_path: Path) -> None:
    """Half a report does not open as if it were whole, and the same command finishes it."""
    shards, report = tmp_path / "shards", tmp_path / "r"
    shutil.copytree(run, shards)
    assert pad("report", shards, "--out", report, "--page-size", 2).code == 0
    whole = (shards / "pad-000002.tar").read_bytes()
    (shards / "pad-000002.tar").write_bytes(whole[:2000])
    broken = pad("report", shards, "--out", report, "--page-size", 2)
    assert broken.code == 2 and "pad-000002.tar: it is damaged" in broken.err, broken.err
    assert (report / "data/page-000000.js").exists() and not (report / "index.html").exists()
    (shards / "pad-000002.tar").write_bytes(whole)
    assert pad("report", shards, "--out", report, "--page-size", 2).code == 0
    assert len(cards_of(report)) == 13 and (report / "index.html").exists()


def test_open_opens_what_was_written(pad: Pad, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("typer.launch", opened.append)
    assert pad("report", run, "--out", tmp_path / "r", "--limit", 1, "--open").code == 0
    assert opened == [str(tmp_path / "r/index.html")]


def test_show_draws_what_a_build_finds(
    pad: Pad, world: World, models_toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same tags and regions as in the shards of a build of that image. Catches stages in another order, settings
    that are not passed on."""
    opened: list[str] = []
    monkeypatch.setattr("typer.launch", opened.append)
    image = tmp_path / "images" / "a.png"
    image.parent.mkdir()
    shutil.copyfile(sorted(world.images.iterdir())[0], image)
    own = tmp_path / "pad.toml"
    text = models_toml.read_text()
    own.write_text(text)
    for name in ("tagger.safetensors", "tags.txt", "segmenter.safetensors", "detector", "llm"):
        (tmp_path / name).symlink_to(models_toml.parent / name)
    done = pad("show", image, "--models", own, "--out", tmp_path / "found.png", "--open")
    assert done.code == 0, done.err
    command = ["build", "--images", image.parent, "--models", own, "--engine", "local", "--out", tmp_path / "out"]
    assert pad(*command).code == 0
    (row,) = (row for _, row in open_shards(tmp_path / "out").rows())
    assert f"{row['tags']} tags, {row['regions']} regions: {tmp_path / 'found.png'}" in done.out
    drawn = Image.open(tmp_path / "found.png")
    assert drawn.width > 1000 and np.asarray(drawn).std() > 10
    assert opened == [str(tmp_path / "found.png")]


def test_show_refuses_in_one_line(pad: Pad, world: World, models_toml: Path, tmp_path: Path) -> None:
    """No image, a broken one, an output that is none or is the image itself; before any model is loaded."""
    image = tmp_path / "a.png"
    shutil.copyfile(sorted(world.images.iterdir())[0], image)
    before = image.read_bytes()
    (tmp_path / "cut.png").write_bytes(before[: len(before) // 2])
    (tmp_path / "text.png").write_text("no image")
    for arguments, told in (
        ([tmp_path / "none.png"], "IMAGE = .*there is no such file"),
        ([tmp_path], "IMAGE = .*this is no ordinary file"),
        ([tmp_path / "cut.png"], "no readable image"),
        ([tmp_path / "text.png"], "no readable image"),
        ([image, "--out", tmp_path / "a.txt"], "--out = .*PNG or JPEG"),
        ([image, "--out", tmp_path / "x/a.png"], "--out = .*no such folder"),
        ([image, "--out", image], "--out = .*IMAGE itself"),
    ):
        done = pad("show", *arguments, "--models", models_toml)
        assert done.code == 2 and done.err.startswith("error: ") and done.err.count("\n") == 1, done.err
        assert re.search(told, done.err), done.err
    assert image.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "cut.png", "text.png"]


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


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images a page, four in a block of the index: so that what is found lies across both."""
    out = tmp_path_factory.mktemp("report") / "r"
    for _ in site.write_report(open_shards(run), out, site.ReportSettings(page_size=3, block=4)):
        pass
    return out


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Chromium without a window; a skip where there is none."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver_path = shutil.which("chromedriver")
    if not browser or not driver_path:
        pytest.skip("no chromium with chromedriver here (Debian: apt install chromium chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    profile = tmp_path_factory.mktemp("profile")
    flags = "headless no-sandbox disable-gpu disable-dev-shm-usage no-first-run"
    flags += " disable-quic disable-background-networking disable-component-update disable-sync"
    for flag in [*flags.split(), f"user-data-dir={profile}"]:
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options=options, service=Service(driver_path))
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """A report in the browser."""

    def __init__(self, driver: Any, report: Path) -> None:
        self.driver, self.url = driver, (report / "index.html").as_uri()

    def visit(self, place: str = "", width: int = 1200, height: int = 900) -> None:
        """Open it anew at a place behind #, and wait for the cards."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get("about:blank")
        self.driver.get_log("browser")
        self.driver.get(self.url + place)
        if "tab=" not in place:
            self.until(lambda: self("return document.body.dataset.ready !== undefined"))

    def __call__(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def until(self, happens: Callable[[], Any]) -> None:
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 30, 0.02, [StaleElementReferenceException]).until(lambda _: happens())

    def all(self, css: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", css))

    def count(self, css: str) -> int:
        return len(self.all(css))

    def ids(self) -> list[str]:
        return list(self("return [...document.querySelectorAll('.card .id')].map(e => e.textContent)"))

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def point(self, target: Any) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).move_to_element(target).perform()

    def asked(self) -> list[str]:
        """The addresses that were asked for since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture
def page(chromium: Any, report: Path) -> Page:
    return Page(chromium, report)


@pytest.fixture(scope="module")
def ids(run: Path) -> list[str]:
    """Of all images, in the run's order."""
    return [row["id"] for _, row in open_shards(run).rows()]


@pytest.mark.browser
def test_toggles_show_and_hide(page: Page) -> None:
    """Each of tags, boxes, masks, patches by itself, by mouse and by key; the address keeps them. Catches a toggle that
    does nothing, and one that takes another along."""
    layers = {"tags": ".card .tags", "boxes": ".boxes", "masks": ".masks", "patches": ".patches"}
    page.visit()
    assert [page.count(css) > 0 for css in layers.values()] == [True, True, True, False]
    for name, css in layers.items():
        before = {other: page.count(other) > 0 for other in layers.values()}
        page.all(f'[data-show="{name}"]')[0].click()
        page.until(lambda css=css, before=before: (page.count(css) > 0) != before[css])
        page.driver.execute_script("document.activeElement.blur()")
        assert {o: page.count(o) > 0 for o in layers.values()} == before | {css: not before[css]}
        page.press(name[0])
        page.until(lambda css=css, before=before: (page.count(css) > 0) == before[css])
    page.visit("#show=patches")
    assert [page.count(css) > 0 for css in layers.values()] == [False, False, False, True]
    assert page.complaints() == []


@pytest.mark.browser
def test_overlays_lie_on_the_image(page: Page) -> None:
    """On the screen: the box, the mask and the patches of the teal square on one another, at its place in the image,
    for a view that is cut. Catches an overlay that is scaled otherwise than the image."""
    page.visit("#show=boxes,masks,patches")
    places = page("""
      const rect = (e) => { const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
      const card = document.querySelector(".card"), texts = [...card.querySelectorAll("text")];
      const number = texts.find((t) => t.textContent === "teal square").dataset.region;
      const of = (layer) => [...card.querySelectorAll(`.${layer} [data-region="${number}"]`)].map(rect);
      return {image: rect(card.querySelector("image")), box: of("boxes")[0], mask: of("masks")[0], cells: of("cells")};
    """)
    cells = np.array(places["cells"])
    places["patches"] = [*cells.min(0)[:2], *cells.max(0)[2:]]
    left, top, right, bottom = places["image"]
    expected = [left + (right - left) / 4, top, left + (right - left) / 2, top + (bottom - top) / 2]
    assert right - left > 200 and abs((right - left) / (bottom - top) - 2) < 0.01
    for what in ("box", "mask", "patches"):
        assert np.allclose(places[what], expected, atol=1.5), (what, places)
    assert len(cells) == 16


@pytest.mark.browser
def test_scores_on_hover(page: Page) -> None:
    """What is pointed at says its label and score, and the rest steps back; in the patch grid, the patch's coverage."""
    page.visit("#show=boxes")
    card = page.all(".card")[0]
    names = page(
        "return [...document.querySelectorAll('.card:first-child text')].map(t => [t.textContent, t.dataset.region])"
    )
    number = dict(names)["teal square"]
    square = card.find_element("css selector", f'.boxes [data-region="{number}"]')
    page.point(square)
    page.until(lambda: "teal square · score 0." in card.find_element("css selector", ".readout").text)
    assert page.count(".card:first-child .pointed .hot") >= 2
    page.visit("#show=patches")
    page.point(page.all(".card:first-child .cells rect")[0])
    page.until(lambda: "patch 1.00" in page.all(".card:first-child .readout")[0].text)


@pytest.mark.browser
def test_filter_and_search(page: Page, run: Path, ids: list[str]) -> None:
    """By label, score, status and words, over blocks of the index and pages: what remains is what a loop over the
    shards says, in order. Catches a block that is left out, a score of another label, a stale result."""
    shards = open_shards(run)
    rows = [(row, shards.sample(n, row).meta if row["status"] != "failed" else None) for n, row in shards.rows()]
    label = Counter(
        label for _, meta in rows if meta for label in {region["label"] for region in meta["regions"]}
    ).most_common(1)[0][0]

    def having(label: str | None, score: float) -> list[str]:
        return [
            row["id"]
            for row, meta in rows
            if meta and any(label in (None, r["label"]) and r["score"] >= score - 1e-6 for r in meta["regions"])
        ]

    page.visit()
    field = page.all("#label")[0]
    field.send_keys(label)
    page.until(lambda: page.ids() == having(label, 0)[:3])
    assert f"of {len(having(label, 0))} match" in page.all("#found")[0].text and len(having(label, 0)) > 3
    page.all("#next")[0].click()
    page.until(lambda: page.ids() == having(label, 0)[3:6])
    page("const s = document.getElementById('score'); s.value = 46; s.dispatchEvent(new Event('change'))")
    assert having(label, 0.46) != having(label, 0)
    page.until(lambda: page.ids() == having(label, 0.46)[:3])
    page.all("#clear")[0].click()
    page.until(lambda: page.ids() == ids[:3])
    for status, expected in (("failed", [ids[2]]), ("empty", [ids[1]])):
        page(f"const s = document.getElementById('status'); s.value = '{status}'; s.dispatchEvent(new Event('change'))")
        page.until(lambda expected=expected: page.ids() == expected)
        page.until(lambda: "1 match in 13" in page.all("#found")[0].text)
    assert page.count(".card .frame svg") == 1
    page.all("#clear")[0].click()
    page.until(lambda: page.ids() == ids[:3])
    words = rows[7][1]["caption"].upper()  # type: ignore[index]
    page.all("#q")[0].send_keys(words)
    page.until(
        lambda: page.ids() == [row["id"] for row, meta in rows if meta and words.lower() in meta["caption"].lower()]
    )
    page.visit("#q=teal+squ")
    assert page.ids() == [ids[0]]
    page.visit("#label=no+such+label")
    assert page.ids() == [] and "0 matches" in page.all("#found")[0].text
    page.visit("#tab=statistics")
    page.all(f'[data-table="count"] a[href="#label={label}"]')[0].click()
    page.until(lambda: page.ids() == having(label, 0)[:3])


@pytest.mark.browser
def test_paging_loads_what_it_shows(page: Page, ids: list[str]) -> None:
    """Forward, back, by number, with the browser's back button, to the last page; and of the data only the pages that
    were looked at are loaded. Catches a gallery that holds everything."""
    from selenium.webdriver.common.keys import Keys

    page.asked()
    page.visit()
    shown: list[str] = []
    for number in range(5):
        page.until(lambda number=number: page.ids() == ids[3 * number : 3 * number + 3])
        shown += page.ids()
        loaded = [url.rpartition("/")[2] for url in page.asked() if "/data/page-" in url]
        assert loaded == [f"page-{number:06d}.js"]
        assert page.count("#previous:disabled") == (number == 0) and page.count("#next:disabled") == (number == 4)
        if number < 4:
            page.all("#next")[0].click()
    assert shown == ids
    page.driver.back()
    page.until(lambda: page.ids() == ids[9:12])
    page.all("#page")[0].send_keys(Keys.CONTROL, "a", Keys.NULL, "1", Keys.ENTER)
    page.until(lambda: page.ids() == ids[:3])
    page.visit("#page=99")
    assert page.ids() == ids[12:]


@pytest.mark.browser
def test_it_works_by_keyboard(page: Page, ids: list[str]) -> None:
    """Arrows turn pages, / goes to the search, Enter enlarges, arrows go on to the next image, Escape comes back to
    where one was. Catches keys that act while somebody types."""
    from selenium.webdriver.common.keys import Keys

    page.visit()
    page.press(Keys.ARROW_RIGHT)
    page.until(lambda: page.ids() == ids[3:6])
    page.press(Keys.ARROW_LEFT)
    page.until(lambda: page.ids() == ids[:3])
    page("document.querySelectorAll('.enlarge')[0].focus()")
    page.press(Keys.ENTER)
    page.until(lambda: page.all("dialog h2") and page.all("dialog h2")[0].text == ids[0])
    page("document.querySelector('.regions button').focus()")
    page.until(lambda: "score" in page.all("dialog .readout")[0].text)
    page.press(Keys.ARROW_RIGHT)
    page.until(lambda: page.all("dialog h2")[0].text == ids[1])
    page.press(Keys.ESCAPE)
    page.until(lambda: page.count("dialog[open]") == 0)
    page.until(lambda: page("return [...document.querySelectorAll('.enlarge')].indexOf(document.activeElement)") == 1)
    page.press("/")
    assert page("return document.activeElement.id") == "q"
    page.press("bmt")
    page.until(lambda: page.ids() == [])
    assert page("return document.getElementById('q').value") == "bmt" and page.count('[data-show="boxes"]:checked') == 1


@pytest.mark.browser
def test_a_narrow_screen_shows_everything(page: Page) -> None:
    """360 pixels wide, nothing sticks out to the side, on any part and with an image enlarged."""
    sideways = "return document.documentElement.scrollWidth > innerWidth || document.body.scrollWidth > innerWidth"
    for place in ("", "#show=patches", "#tab=statistics", "#tab=run"):
        page.visit(place, 360, 740)
        assert not page(sideways), place
    page.visit("", 360, 740)
    page.all(".enlarge")[0].click()
    page.until(lambda: page.count("dialog[open] .regions") == 1)
    assert not page(sideways)
    assert not page("const d = document.querySelector('.side'); return d.scrollWidth > d.clientWidth")


@pytest.mark.browser
def test_a_hostile_label_is_only_text(page: Page) -> None:
    """As label, caption and file name, on every part of the report: it is read and never run, and nothing is asked of
    the network. The page's own rule would stop it too. Catches innerHTML."""
    for place in (
        "",
        "#show=tags,boxes,masks,patches",
        f"#label={HOSTILE}",
        "#status=failed",
        "#tab=statistics",
        "#tab=run",
    ):
        page.visit(place)
        assert page("return window.hacked") is None
        assert page.count("main img, main b, main script") == 0
        asked = page.asked()
        assert len(asked) > 3 and all(url.startswith("file:") or url == "about:blank" for url in asked)
        assert page.complaints() == []
    page.visit()
    page.all(".enlarge")[0].click()
    page.until(lambda: page.count("dialog[open] .regions") == 1)
    assert HOSTILE in page("return [...document.querySelectorAll('.regions bdi')].map(e => e.textContent)")
    assert "<img" in page.all("dialog .caption")[0].text
    page("const s = document.createElement('script'); s.textContent = 'window.hacked = 2'; document.body.append(s)")
    assert page("return window.hacked") is None


@pytest.mark.browser
def test_a_report_with_a_part_missing_says_so(page: Page, report: Path, chromium: Any, tmp_path: Path) -> None:
    """Somebody copied index.html without its folders, or lost a file. Catches an empty page without a word."""
    half = tmp_path / "half"
    shutil.copytree(report, half)
    (half / "data/page-000001.js").unlink()
    torn = Page(chromium, half)
    torn.visit()
    torn.all("#next")[0].click()
    torn.until(lambda: "data/page-000001.js can't be read" in torn.all("#found")[0].text)
