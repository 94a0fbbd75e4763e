"""Draw the first image of the README from the results of `make paper`.

    python -m benchmarks.hero paper-out/ docs/hero.png

A scene that no training saw becomes boxes, masks and coverage of the patch grid. Below them, each patch has the color
of the label that is nearest to its token: as the masks say it, after training with captions alone, and with the patch
loss.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import pad_pipeline as pad
from pad_pipeline.analysis.draw import color_of, nearest_labels, true_labels
from pad_pipeline.analysis.model import Subject
from pad_pipeline.analysis.patches import encoded_batches, label_names
from pad_pipeline.report.overlay import HEAD
from pad_pipeline.shards.reader import open_shards

EDGE, GAP, TITLE, LINE = 320, 16, 30, 20
INK, QUIET, PAPER = (25, 25, 30), (110, 112, 120), (250, 250, 247)
TITLES = ("a captioned image", "tags -> boxes", "boxes -> masks", "masks -> patches")
WORDS = ("what each patch shows", "captions alone", "with the patch loss")


def draw(results: Path, key: str) -> Image.Image:
    """Draw the scene `key` of the held-out scenes in `results`."""
    shards = open_shards(results / "probes")
    rows = shards.usable()
    models = [Subject(results / "compare" / f"{name}-0" / "stage1") for name in ("captions alone", "aligned")]
    labels = label_names(shards, rows, len(rows), lambda done: None)
    for each in models:
        each.set_label_context(shards.run)
    batches = encoded_batches(shards, rows, len(rows), models[0], "argmax", 16)
    image = next(image for batch in batches for image in batch.images if image.key == key)
    numbers = [labels.index(label) for label in image.labels]
    shown = torch.zeros(len(labels), image.shown.shape[1], dtype=torch.bool)
    shown[numbers] = image.shown
    grids = [true_labels(image.shown, numbers)]
    grids += [nearest_labels(each.encode_images(image.pixels[None])[1][0], each, labels) for each in models]
    (found,) = pad.annotate(results / "probe-world" / "images" / f"{key}.png", "miniature")
    sheet = Image.new("RGB", (4 * EDGE + 3 * GAP, 2 * (EDGE + TITLE) + GAP), PAPER)
    pen, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(17), ImageFont.load_default(13)
    scene, steps = found.open(), found.draw()
    scale, third = EDGE / max(scene.size), (steps.width - 20) // 3
    parts = [scene.resize((round(scene.width * scale), round(scene.height * scale)), Image.Resampling.BICUBIC)]
    for number in range(3):
        part = steps.crop((number * (third + 10), HEAD, number * (third + 10) + third, HEAD + third))
        parts.append(part.resize((EDGE, EDGE), Image.Resampling.BICUBIC))
    for column, (part, title) in enumerate(zip(parts, TITLES, strict=True)):
        left = column * (EDGE + GAP)
        sheet.paste(part, (left, TITLE))
        pen.text((left, 6), title, INK, font)
    used = sorted({int(number) for grid in grids for number in grid[shown.any(0).numpy()]})
    for column, (grid, title) in enumerate(zip(grids, WORDS, strict=True)):
        left, top = column * (EDGE + GAP), EDGE + 2 * TITLE + GAP
        known = shown.any(0).numpy()
        right = float(np.mean([shown[name, place] for place, name in enumerate(grid) if known[place]]))
        pen.text((left, top - TITLE + 6), title + (f": {right:.0%} right" if column else ""), INK, font)
        sheet.paste(_grid(grid, shown, used), (left, top))
    left, top, lines = 3 * (EDGE + GAP), EDGE + 2 * TITLE + GAP, EDGE // LINE
    pen.text((left, top - TITLE + 6), "right: any label that the patch shows", QUIET, small)
    for place, number in enumerate(used):
        column, line = divmod(place, lines)
        x, y = left + column * EDGE // -(-len(used) // lines), top + line * LINE
        pen.rectangle((x, y + 3, x + 13, y + 16), fill=color_of(place))
        pen.text((x + 19, y + 1), labels[number], INK, small)
    return sheet


def _grid(grid: np.ndarray, shown: torch.Tensor, used: list[int]) -> Image.Image:
    """Draw a word for each patch; a wrong one has a cross."""
    edge = round(len(grid) ** 0.5)
    panel = Image.new("RGB", (EDGE, EDGE), (238, 238, 238))
    pen = ImageDraw.Draw(panel)
    for place, number in enumerate(grid.tolist()):
        if not shown[:, place].any():
            continue
        across, down = place % edge, place // edge
        left, top, right, bottom = (round(part * EDGE / edge) for part in (across, down, across + 1, down + 1))
        pen.rectangle((left, top, right - 2, bottom - 2), fill=color_of(used.index(number)))
        if not shown[number, place]:
            inset = (right - left) // 3
            for ends in ((top + inset, bottom - inset), (bottom - inset, top + inset)):
                pen.line((left + inset, ends[0], right - inset, ends[1]), fill=INK, width=2)
    return panel


def main() -> None:
    """Draw the image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="the folder of `make paper`")
    parser.add_argument("out", type=Path, help="the PNG to write")
    parser.add_argument("--scene", default="scene-00018", help="the held-out scene; this one has the median share")
    arguments = parser.parse_args()
    draw(arguments.results, arguments.scene).save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
