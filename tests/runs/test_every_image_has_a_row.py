"""Every image of a run ends in a row: ok, empty, or failed with a reason."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pad_pipeline.miniature.files import World
from pad_pipeline.shards.reader import open_shards
from tests.conftest import ROOT, SHARED, data, shared
from tests.runs.conftest import Pad


@pytest.fixture(scope="module")
def mixed(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good and bad files, of several formats, in subfolders, some with equal names."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "a" / "deep.er").mkdir(parents=True)
    scene = Image.open(world.images / "scene-00000.png")
    for name in ("a/one.jpg", "a/one.PNG", "a/deep.er/x.y.webp", "z.gif"):
        scene.save(folder / name)
    (folder / "broken.jpg").write_bytes((folder / "a/one.jpg").read_bytes()[:900])
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    Image.new("L", (9000, 3)).save(folder / "thin.png")
    return folder


def test_no_image_is_lost_and_bad_ones_have_a_reason(
    pad: Pad, mixed: Path, common: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = pad("build", "--images", mixed, *common, "--engine", "local", "--out", out, "--shard-size", 3)
    assert done.code == 0, done.err
    assert "1 files that are no images" in done.out
    rows = {row["source"]: row for _, row in open_shards(out).rows()}
    assert sorted(rows) == [
        "a/deep.er/x.y.webp",
        "a/one.PNG",
        "a/one.jpg",
        "broken.jpg",
        "empty.png",
        "thin.png",
        "z.gif",
    ]
    keys = [row["key"] for row in rows.values()]
    assert len(set(keys)) == 7
    assert not any("." in key or "/" in key for key in keys)
    failed = {source: (row["stage"], row["reason"]) for source, row in rows.items() if row["status"] == "failed"}
    assert sorted(failed) == ["broken.jpg", "empty.png", "thin.png"]
    assert all(stage == "decode" for stage, _ in failed.values())
    assert "max_aspect" in failed["thin.png"][1]
    assert pad("verify", out).code == 0
    stats = json.loads(pad("stats", out, "--json").out)
    assert stats["statuses"] == {"ok": 4, "failed": 3}
    assert stats["left_out"] == {"files that are no images": 1, "repeated ids, kept under keys of their own": 1}
    for name, row in open_shards(out).rows():
        if row["status"] == "ok":  # the bytes are the file's own, whatever the format
            assert open_shards(out).sample(name, row).image == (mixed / row["source"]).read_bytes()


def test_llava_records_are_kept_apart_and_bad_ones_fail_by_name(
    pad: Pad, world: World, common: list[object], tmp_path: Path
) -> None:
    """Text-only records are counted, repeated ids kept apart, bad records fail by name; `<image>` at either end."""
    question = {"from": "human", "value": "What?\n<image>"}
    good = {"id": "x", "image": "scene-00000.png", "conversations": [question, {"from": "gpt", "value": " a house. "}]}
    records = [
        good,
        good | {"conversations": [question | {"value": "<image>\nWhat?"}, {"from": "gpt", "value": "a car"}]},
        {"id": "text", "conversations": [{"from": "human", "value": "hi"}]},
        {"id": "missing", "image": "nowhere.jpg", "conversations": []},
        {"id": "up", "image": "../secret.png", "conversations": []},
        {"id": "abs", "image": str(tmp_path / "secret.png"), "conversations": []},
        {"id": "below", "image": str(world.images / "scene-00001.png"), "conversations": []},
        {"id": "two", "image": ["scene-00001.png", "scene-00002.png"], "conversations": good["conversations"]},
        {"id": "turns", "image": "scene-00001.png", "conversations": [{"from": "human"}]},
        {"id": 7, "image": "scene-00001.png"},
        "not a record",
        {"id": "lone \ud800.v1", "image": "scene-00002.png", "conversations": [{"from": "gpt", "value": "\ud800!"}]},
        {"id": "path", "image": "scene-\udcff.png"},
    ]  # fmt: skip
    path = tmp_path / "records.json"
    path.write_text(json.dumps(records))
    shutil.copy(world.images / "scene-00000.png", tmp_path / "secret.png")
    out = tmp_path / "out"
    done = pad("build", "--images", path, "--image-root", world.images, *common, "--engine", "local", "--out", out)
    assert done.code == 0, done.err
    assert "1 records without an image" in done.out
    assert "1 repeated ids" in done.out
    shards = open_shards(out)
    rows = {row["key"]: row for _, row in shards.rows()}
    assert list(rows) == [
        "x",
        "x-2",
        "missing",
        "up",
        "abs",
        "below",
        "two-0",
        "two-1",
        "turns",
        "7",
        "record-10",
        "lone___v1",
        "path",
    ]
    reasons = {key: row["reason"] for key, row in rows.items() if row["status"] == "failed"}
    assert list(reasons) == ["missing", "up", "abs", "turns", "record-10", "path"]
    assert "no such file" in reasons["missing"]
    assert "climbs out of the image root" in reasons["up"]
    assert "absolute" in reasons["abs"]
    assert "record 8: each turn of conversations" in reasons["turns"]
    captions = [
        shards.sample("pad-000000", rows[key]).meta["caption"] for key in ("x", "x-2", "two-0", "7", "lone___v1")
    ]
    assert captions == [" a house. ", "a car", "", "", "\ufffd!"]


def test_nothing_found_is_told_from_failed(pad: Pad, common: list[object], tmp_path: Path) -> None:
    """A run with an empty image: statuses apart, statistics and verify work; and twice the same bytes, reasons too."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (1, 1)).save(tmp_path / "images" / "dot.png")
    (tmp_path / "images" / "junk.jpg").write_bytes(b"junk")
    coco = {"images": [{"id": n, "file_name": name} for n, name in enumerate(("dot.png", "junk.jpg"))]}
    (tmp_path / "coco.json").write_text(json.dumps(coco | {"annotations": [], "categories": []}))
    options = ["--annotations", tmp_path / "coco.json", "--images", tmp_path / "images", *common[:4]]
    for out in ("one", "two"):
        assert pad("import", "coco", *options, "--out", tmp_path / out).code == 0
        assert pad("verify", tmp_path / out).code == 0
        stats = json.loads(pad("stats", tmp_path / out, "--json").out)
        assert stats["statuses"] == {"empty": 1, "failed": 1}
    assert data(tmp_path / "one") == data(tmp_path / "two")


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "data/odd_images").exists(), reason="no check data at shared/data/odd_images")
def test_odd_images_fail_without_harm_to_good_ones(
    pad: Pad, world: World, common: list[object], tmp_path: Path
) -> None:
    """The 43 odd files through the whole command: rejected ones are failed rows, the rest reach the shard."""
    folder = tmp_path / "images"
    shutil.copytree(shared("odd_images"), folder)
    shutil.copy(world.images / "scene-00000.png", folder)
    out = tmp_path / "out"
    done = pad("build", "--images", folder, *common, "--engine", "local", "--out", out)
    assert done.code == 0, done.err
    rows = {row["source"]: row for _, row in open_shards(out).rows()}
    table = [line.split("\t") for line in shared("odd_images/TABLE.tsv").read_text().splitlines()[1:]]
    assert len(rows) == 44
    assert rows["scene-00000.png"]["status"] == "ok"
    for name, _, wanted, _ in table:
        assert (rows[name]["status"] == "failed") == wanted.startswith("REJECT"), (name, rows[name]["reason"])
        assert rows[name]["stage"] in ("", "decode"), rows[name]
    assert pad("verify", out).code == 0


@pytest.mark.skipif(not (SHARED / "data/odd_images").exists(), reason="no check data at shared/data/odd_images")
def test_odd_images_cost_no_memory(world: World, tmp_path: Path) -> None:
    """Files of some bytes that claim gigapixels: what they claim is never allocated. Peak memory of reading them all
    stays within 300 MB of reading ten good ones."""

    def peak(folder: Path) -> int:
        code = (
            "import resource, sys; from pathlib import Path\n"
            "from pad_pipeline.images import DecodeSettings, BadImage, decode\n"
            "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
            "    try: decode(path.read_bytes(), DecodeSettings())\n"
            "    except BadImage: pass\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, folder], capture_output=True, text=True, cwd=ROOT, check=True
        )
        return int(done.stdout)

    assert peak(shared("odd_images")) - peak(world.images) < 300_000


def test_all_photographs_come_through_the_whole_chain(pad: Pad, common: list[object], tmp_path: Path) -> None:
    """The 51 photographs through the whole chain: every row accounted for, with its caption, regions and masks."""
    photos, out = shared("photos"), tmp_path / "out"
    command = ["build", "--images", photos / "llava.json", "--image-root", photos / "images", *common]
    done = pad(*command, "--engine", "local", "--shard-size", 20, "--out", out)
    assert done.code == 0, done.err
    assert pad("verify", out).code == 0
    stats = json.loads(pad("stats", out, "--json").out)
    assert stats["statuses"] == {"ok": 51}
    assert (stats["images"], stats["captions"], stats["shards"]) == (51, 51, {"finished": 3, "planned": 3})
    assert stats["regions"] > 51
    keys = [row["key"] for _, row in open_shards(out).rows()]
    assert keys == [record["id"] for record in json.loads((photos / "llava.json").read_text())]
