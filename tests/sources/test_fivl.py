"""FiVL's records and grids: they become regions with the coverage that the grids say, and no file of theirs runs."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pad_pipeline.shards.reader import open_shards
from pad_pipeline.sources.fivl import VIEW
from pad_pipeline.stages.patch_grid import mask_of

TURNS = [{"from": "human", "value": "<image>\nWhat is on the table?"}, {"from": "gpt", "value": "A cup."}]


class Touch:
    """A pickle that runs code when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def an_ellipse(size: tuple[int, int], center: tuple[float, float], radii: tuple[float, float]) -> np.ndarray:
    y, x = np.mgrid[: size[1], : size[0]] + 0.5
    inside: np.ndarray = ((x - center[0]) / radii[0]) ** 2 + ((y - center[1]) / radii[1]) ** 2 < 1
    return inside


def grid_of(mask: np.ndarray) -> np.ndarray:
    """FiVL's grid of a mask: the padded square in 336 x 336 pixels, the mean of each 14 x 14, 0..255, as float64."""
    square = max(mask.shape)
    top, left = (square - mask.shape[0]) // 2, (square - mask.shape[1]) // 2
    whole = np.zeros((square, square), np.uint8)
    whole[top : top + mask.shape[0], left : left + mask.shape[1]] = 255 * mask
    small = np.asarray(Image.fromarray(whole).resize((336, 336), Image.Resampling.BOX), np.float64)
    grid: np.ndarray = small.reshape(24, 14, 24, 14).mean((1, 3))
    return grid


def write(folder: Path, records: list[dict[str, Any]], grids: dict[str, np.ndarray]) -> dict[str, Path]:
    """A FiVL data set: the JSON, the grids, and an image for each record."""
    for name, grid in grids.items():
        path = folder / "dataset_grounded" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(torch.tensor(grid), path)
    for record in records:
        path = folder / "images" / record["image"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", record.pop("size", (60, 40)), (90, 120, 40)).save(path)
    (folder / "fivl.json").write_text(json.dumps(records))
    paths = {"annotations": "fivl.json", "grids": "dataset_grounded", "images": "images"}
    return {name: folder / path for name, path in paths.items()}


def options(paths: dict[str, Path]) -> list[object]:
    return [part for name, path in paths.items() for part in (f"--{name}", path)]


def phrases(*named: tuple[Any, Any]) -> list[dict[str, Any]]:
    prompts = [{"prompt": text, "mask_img": "a.png", "mask_rel": grid, "bbox": [[0, 0, 9, 9]]} for text, grid in named]
    return [{"turn": 1, "prompts": prompts}]


def test_a_region_has_the_coverage_of_its_grid(pad: Callable[..., Any], models_toml: Path, tmp_path: Path) -> None:
    """On images of several shapes and sizes, whose patches have from 1 to 800 pixels. Tolerance: one of 255, and half a
    pixel where patches have whole pixels, or a row and a column of pixels where they do not. Catches rows
    taken for columns, a wrong padding, a grid of 0..1, and conversations that are lost."""
    records, grids, wanted = [], {}, {}
    for name, size in {"wide": (640, 427), "tall": (120, 333), "square": (672, 672), "tiny": (31, 24)}.items():
        center, radii = (size[0] * 0.4, size[1] * 0.6), (size[0] * 0.3, size[1] * 0.25)
        grid = grid_of(an_ellipse(size, center, radii))
        path = f"coco_segmented/train2017/{name}/{name}_0000.pt"
        grids[path] = grid
        wanted[name] = (grid, max(size))
        records.append({"id": name, "image": f"coco/train2017/{name}.png", "size": size, "conversations": TURNS,
                        "segment": phrases(("cup", path), ("cup", path), ("the_table", path))})  # fmt: skip
    paths = write(tmp_path, records, grids)
    done = pad("import", "fivl", *options(paths), "--models", models_toml, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    shards = open_shards(tmp_path / "out")
    assert shards.run.view == VIEW
    for shard, row in shards.rows():
        sample = shards.sample(shard, row)
        assert [region["label"] for region in sample.meta["regions"]] == ["cup", "the table"]
        assert sample.meta["conversations"] == TURNS
        grid, square = wanted[sample.meta["id"]]
        pixel = 255 / (square / 24) ** 2  # what one pixel adds to a patch
        # Patches of the image's edge are cut by whole pixels, which View counts exactly and FiVL's resize does not.
        allowed = 1 + pixel * (0.5 if square % 24 == 0 else 1 + 2 * square / 24)
        difference = np.abs(sample.coverage[0].astype(float) - grid)
        assert difference.max() <= allowed, (sample.meta["id"], difference.max(), allowed)
        assert difference.mean() < 6 * max(pixel, 0.1), (sample.meta["id"], difference.mean())


def test_a_bad_phrase_costs_itself_and_no_file_runs(pad: Callable[..., Any], models_toml: Path, tmp_path: Path) -> None:
    """Catches a pickle that is executed, a path out of the folder, a grid of another shape or of other values that is
    taken, and an image that is lost with its phrase."""
    good = grid_of(an_ellipse((60, 40), (20, 20), (9, 9)))
    grids = {"good.pt": good, "thin.pt": good[:, :23], "large.pt": good * 2, "none.pt": good * 0}
    named = [("cup", name) for name in ("../out.pt", "/etc/passwd", 5, "lost.pt", "code.pt", "text.pt", *grids)]
    bad = [*named, ("", "good.pt"), (None, "good.pt")]
    odd = [{"turn": 1, "prompts": [7, None]}, 9, {"prompts": "x"}]
    records = [{"id": "a", "image": "a.png", "conversations": TURNS, "segment": phrases(*bad) + odd},
               {"id": "b", "image": "b.png", "conversations": TURNS, "segment": {}}]  # fmt: skip
    paths = write(tmp_path, records, grids)
    (tmp_path / "dataset_grounded/code.pt").write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
    (tmp_path / "dataset_grounded/text.pt").write_text("no tensor")
    torch.save(torch.tensor(good), tmp_path / "out.pt")
    done = pad("import", "fivl", *options(paths), "--models", models_toml, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert not (tmp_path / "ran").exists()
    shards = open_shards(tmp_path / "out")
    samples = {row["key"]: shards.sample(shard, row) for shard, row in shards.rows()}
    assert [region["label"] for region in samples["a"].meta["regions"]] == ["cup"]
    assert samples["b"].meta["regions"] == []
    said = done.err + done.out
    assert "images without a phrase" in said and "phrases left out" in said
    assert "annotations are left out" in said, said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--fit", "crop"], "FiVL's grids are made for size 336, patch 14 and fit pad"),
        (["--patch", "16"], "`pad retarget` then changes the view"),
        (["--grids", "nowhere"], "unpack dataset_grounded.tar"),
        (["--annotations", "nowhere.json"], "nowhere.json"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    pad: Callable[..., Any], models_toml: Path, tmp_path: Path, change: list[str], message: str
) -> None:
    """Before any image is read."""
    paths = write(tmp_path, [{"id": "a", "image": "a.png", "conversations": TURNS}], {})
    (tmp_path / "dataset_grounded").mkdir()
    done = pad("import", "fivl", *options(paths), "--models", models_toml, "--out", tmp_path / "out", *change)
    assert done.code == 2 and message in done.err and done.err.count("\n") <= 2, done.err


def test_a_long_and_narrow_image_takes_no_more_memory_than_its_pixels() -> None:
    """60,000 x 2 pixels, whose square has 3.6 billion. Catches a mask that is made for the whole square."""
    grid = np.zeros((24, 24))
    grid[11:13] = 255  # the rows of patches that the image, in the middle of the square, can touch
    mask = mask_of(grid, VIEW, 60_000, 2)
    assert mask.shape == (2, 60_000) and mask.all()
