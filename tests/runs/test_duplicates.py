"""Copies of images are found by file and by appearance, within a run and against an evaluation set, and are dropped."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pad_pipeline.duplicates import near
from pad_pipeline.duplicates.hashes import hash_image
from pad_pipeline.duplicates.near import near_pairs
from pad_pipeline.duplicates.settings import DuplicateSettings
from pad_pipeline.shards.reader import open_shards
from tests.conftest import shared
from tests.runs.test_rewrite import Pad


def drawn(seed: int, width: int = 240, height: int = 160) -> Image.Image:
    """Soft spots of random colors, as different from each other as photographs are."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six different images; of the first, a copy, a JPEG, one of half the size and one that is cropped; odd ones."""
    folder = tmp_path_factory.mktemp("copies") / "images"
    folder.mkdir()
    for number in range(6):
        drawn(number).save(folder / f"image-{number}.png")
    first = drawn(0)
    (folder / "same.png").write_bytes((folder / "image-0.png").read_bytes())
    first.save(folder / "again.jpg", quality=40)
    first.resize((120, 80)).save(folder / "half.png")
    first.crop((2, 2, 238, 158)).save(folder / "cropped.png")
    drawn(0, 480, 320).save(folder / "large.png")
    # Odd images: almost uniform ones with one copy, a pixel, a file that is no image, and a gray and a clear copy.
    for number in range(4):
        Image.new("RGB", (60 + number, 40), (120, 120, 120 + number)).save(folder / f"plain-{number}.png")
    (folder / "plain-9.png").write_bytes((folder / "plain-0.png").read_bytes())
    Image.new("L", (1, 1), 7).save(folder / "pixel.png")
    drawn(1).convert("L").save(folder / "gray.png")
    clear = drawn(2).convert("RGBA")
    clear.putalpha(254)
    clear.save(folder / "clear.png")
    turned = drawn(3).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[274] = 6  # it is shown turned back by 90 degrees
    turned.save(folder / "turned.jpg", exif=exif)
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def imported(images: Path, models_toml: Path, pad: Pad, out: Path) -> Path:
    """A run of all images of a folder, without a region."""
    entries = [{"id": n, "file_name": path.name} for n, path in enumerate(sorted(images.iterdir()))]
    listed = out.with_suffix(".json")
    listed.write_text(json.dumps({"images": entries, "annotations": [], "categories": []}))
    command = ["import", "coco", "--annotations", listed, "--images", images, "--models", models_toml]
    done = pad(*command, "--view-size", 112, "--shard-size", 4, "--out", out)
    assert done.code == 0, done.err
    return out


def found(pad: Pad, *words: object) -> dict[str, Any]:
    done = pad("duplicates", *words, "--json")
    assert done.code == 0, done.err
    result: dict[str, Any] = json.loads(done.out)
    return result


def test_near_pairs_are_those_of_a_full_comparison() -> None:
    """Bands that miss pairs, give them twice, or take a pair of which the second hash differs."""
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, (200, 2), np.uint64)
    copies = hashes[random.integers(0, 200, 300)].copy()
    for copy in copies:
        for column in range(2):
            for bit in random.choice(64, random.integers(0, 14), replace=False):
                copy[column] ^= np.uint64(1) << np.uint64(bit)
    hashes = np.concatenate([hashes, copies, hashes[:9]])
    apart = np.bitwise_count(hashes[:, None] ^ hashes[None]).max(-1)
    for distance in (0, 1, 3, 8, 10, 16):
        first, second, distances = near_pairs(hashes, distance)
        pairs = [*zip(first.tolist(), second.tolist(), strict=True)]
        assert sorted(pairs) == [(i, j) for i, j in np.argwhere(apart <= distance).tolist() if i < j]
        assert (apart[first, second] == distances).all()
        first, second, _ = near_pairs(hashes, distance, hashes[::3])
        pairs = [*zip(first.tolist(), second.tolist(), strict=True)]
        assert sorted(pairs) == [tuple(pair) for pair in np.argwhere(apart[:, ::3] <= distance).tolist()]


def test_the_default_distance_finds_the_copies_of_photographs_alone() -> None:
    """Each recompressed, of half the size and cropped copy is nearest to its own photograph and within the default
    distance; no two of the photographs are."""
    distance = DuplicateSettings().distance
    photographs = sorted(shared("photos/images").iterdir())
    looks = {kind: np.array([looks_of(path, kind) for path in photographs], np.uint64) for kind in KINDS}
    first = looks["as it is"]
    assert len(near_pairs(first, distance)[0]) == 0 and len(first) > 50
    for kind, others in looks.items():
        found, of, _ = near_pairs(first, distance, others)
        assert (found == of).all() and len(found) == len(first), kind


KINDS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as it is": lambda image: image,
    "half": lambda image: image.resize((image.width // 2, image.height // 2)),
    "cropped": lambda image: image.crop((image.width // 50, 0, image.width, image.height)),
}
"""Copies of a photograph. Each is written as JPEG of low quality."""


def looks_of(path: Path, kind: str) -> tuple[int, int]:
    data = io.BytesIO()
    with Image.open(path) as image:
        KINDS[kind](image.convert("RGB")).save(data, "JPEG", quality=50)
    return hash_image("", "", data.getvalue()).looks


def test_of_each_group_the_largest_image_stays(images: Path, models_toml: Path, pad: Pad, tmp_path: Path) -> None:
    """Copies as JPEG, at half size, cropped, gray, almost opaque, and turned by EXIF; none of the images that differ.
    Almost uniform ones would all match each other by their hashes: only those with the same bytes are copies."""
    run = imported(images, models_toml, pad, tmp_path / "run")
    copies = tmp_path / "copies.jsonl"
    result = found(pad, run, "--out", copies)
    by_key = {one["key"]: one for one in result["copies"]}
    assert {key: one["of"] for key, one in by_key.items()} == {
        **dict.fromkeys(("image-0", "same", "again", "half", "cropped"), "large"),
        "image-1": "gray",
        "image-2": "clear",
        "turned": "image-3",
        "plain-9": "plain-0",
    }
    assert [key for key, one in by_key.items() if one["exact"]] == ["plain-9"]
    apart = result["not_compared"]["the run"]
    assert apart == {"failed": ["broken"], "uniform": ["pixel", *(f"plain-{n}" for n in (0, 1, 2, 3, 9))]}
    # `pad filter` takes the copies away, and nothing is left to find.
    done = pad("filter", run, "--drop-keys", copies, "--out", tmp_path / "once")
    assert done.code == 0, done.err
    kept = {row["key"] for _, row in open_shards(tmp_path / "once").rows()}
    assert kept == {row["key"] for _, row in open_shards(run).rows()} - by_key.keys()
    assert not found(pad, tmp_path / "once")["copies"]
    # In a table, and with keys as text.
    shown = pad("duplicates", run)
    assert "1 exact and 8 near copies" in shown.out and "large" in shown.out
    assert "6 images of the run are almost uniform" in shown.err and "pixel" in shown.err
    (tmp_path / "keys.txt").write_text("half\nof-no-run\n")
    done = pad("filter", run, "--drop-keys", tmp_path / "keys.txt", "--out", tmp_path / "text")
    assert "1 keys that no finished shard has" in done.out
    # In another run, the same keys would be other images.
    refused = pad("filter", tmp_path / "once", "--drop-keys", copies, "--out", tmp_path / "other")
    assert refused.code == 2 and "another run" in refused.err and "--drop-keys" in refused.err


@pytest.mark.long
def test_processes_and_ray_find_the_same(images: Path, models_toml: Path, pad: Pad, tmp_path: Path) -> None:
    """The hashes, and the images that a source planned, go from process to process."""
    run = imported(images, models_toml, pad, tmp_path / "run")
    words = [run, "--against", images]
    result = found(pad, *words)
    assert result["copies"] and found(pad, *words, "--workers", 2) == result
    assert found(pad, *words, "--engine", "ray") == result


def test_every_image_of_the_evaluation_set_is_found(images: Path, models_toml: Path, pad: Pad, tmp_path: Path) -> None:
    """A leak is listed even where it is the only one or the best of its group, and it takes no other image's place as
    the one that stays. Against a folder, a COCO JSON and a run."""
    run = imported(images, models_toml, pad, tmp_path / "run")
    held = tmp_path / "held"
    held.mkdir()
    drawn(5).save(held / "[red]five.jpg", quality=60)
    (held / "zero.png").write_bytes((images / "large.png").read_bytes())
    (held / "broken.png").write_bytes(b"no image at all")
    drawn(77).save(held / "other.png")
    (held / "notes.txt").write_text("no image")
    listed = {"images": [{"id": 1, "file_name": "[red]five.jpg"}, {"id": 2, "file_name": "zero.png"}]}
    (tmp_path / "coco.json").write_text(json.dumps(listed | {"annotations": [], "categories": []}))
    for against in (
        [held],
        [tmp_path / "coco.json", "--image-root", held],
        [imported(held, models_toml, pad, tmp_path / "evaluation")],
    ):
        copies = found(pad, run, "--against", *against)["copies"]
        leaks = {one["key"]: one["of"] for one in copies if one["leak"]}
        assert leaks.keys() == {"image-5", "image-0", "same", "again", "half", "cropped", "large"}
        assert [one["key"] for one in copies if one["leak"] and one["exact"]] == ["large"]
        assert not {one["of"] for one in copies if not one["leak"]} & leaks.keys()
    shown = pad("duplicates", run, "--against", held)
    said = shown.err
    assert "[red]five.jpg" in shown.out  # markup in names is text
    assert "1 image of the evaluation set can't be read" in said and "broken.png" in said
    assert "1 files that are no images (the first: notes.txt)" in said


def test_mistakes_with_duplicates_are_answered_in_one_line(
    images: Path, models_toml: Path, pad: Pad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each names its option. An evaluation set whose images are not there would find no leak, and look clean. Memory
    would run out if most images were near to each other."""
    monkeypatch.setattr(near, "_MOST_PAIRS", 0)
    run = imported(images, models_toml, pad, tmp_path / "run")
    (tmp_path / "coco.json").write_text('{"images": [{"id": 1, "file_name": "../x.png"}], "annotations": []}')
    (tmp_path / "bad.jsonl").write_text('{"id": 3}\n')
    for said, *words in (
        ("--against", "duplicates", run, "--against", tmp_path / "nowhere"),
        ("--image-root", "duplicates", run, "--against", tmp_path / "coco.json"),
        ("--against", "duplicates", run, "--image-root", images),
        ("--out", "duplicates", run, "--out", tmp_path / "no/file.jsonl"),
        ("SHARDS", "duplicates", images),
        ("--distance", "duplicates", run),
        ("--drop-keys", "filter", run, "--drop-keys", tmp_path / "bad.jsonl", "--out", tmp_path / "new"),
    ):
        refused = pad(*words)
        assert refused.code == 2, words
        assert said in refused.err and "Traceback" not in refused.err, refused.err
