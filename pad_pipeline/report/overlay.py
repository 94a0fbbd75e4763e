"""Draws the regions of an image: boxes with labels and scores, colored masks, coverage on the patch grid."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pad_pipeline.geometry import View
from pad_pipeline.masks import decode_mask
from pad_pipeline.records import RegionJson, SampleJson
from pad_pipeline.report.colors import color_of, name_color_of

EDGE = 360
"""The width and the height of a panel, in pixels."""
TITLES = ("boxes and their scores", "masks", "coverage of the patch grid")
"""What stands above the panels."""
HEAD = 20
"""Height of the titles of panels, in pixels."""
INK, PAPER = (25, 25, 30), (250, 250, 247)


def panels(image: Image.Image, meta: SampleJson, coverage: np.ndarray, view: View) -> Image.Image:
    """Draw three panels of an upright image, see `TITLES`, with the caption and the tags below. `meta` and `coverage`,
    uint8 `[R, grid, grid]`, are members of the sample."""
    sheet = Image.new("RGB", (3 * EDGE + 20, HEAD + EDGE + 66), PAPER)
    scale = EDGE / max(image.size)
    size = round(image.width * scale), round(image.height * scale)
    drawn = [
        _boxes(image.resize(size, Image.Resampling.BICUBIC), meta["regions"], scale),
        _masks(image, meta["regions"]).resize(size, Image.Resampling.BILINEAR),
        _patches(image, meta["regions"], coverage, view),
    ]
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, (title, panel) in enumerate(zip(TITLES, drawn, strict=True)):
        draw.text((number * (EDGE + 10) + 6, 2), title, (90, 90, 100), font)
        sheet.paste(panel, (number * (EDGE + 10), HEAD))
    note = " (captions)"
    tags = ", ".join(f"{t['label']} {t['score']:.2f}{note if 'captions' in t['sources'] else ''}" for t in meta["tags"])
    lines = _wrapped(draw, meta["caption"], font, sheet.width - 12, 1)
    lines += _wrapped(draw, f"tags: {tags}", font, sheet.width - 12, 2)
    for number, line in enumerate(lines):
        draw.text((6, HEAD + EDGE + 5 + 19 * number), line, INK if number == 0 else (90, 90, 100), font)
    return sheet


def contact_sheet(rows: list[Image.Image]) -> Image.Image:
    """Arrange images of equal size in two columns."""
    width, height = rows[0].size
    sheet = Image.new("RGB", (2 * width + 24, (height + 12) * -(-len(rows) // 2)), PAPER)
    for number, row in enumerate(rows):
        sheet.paste(row, ((width + 24) * (number % 2), (height + 12) * (number // 2)))
    return sheet


def below(sheet: Image.Image, images: list[Image.Image]) -> Image.Image:
    """Return a sheet with further images below it, in rows that are about as wide as the sheet."""
    widest = max((image.width for image in images), default=1)
    columns = max(round(sheet.width / widest), 1)
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    heights = [max(image.height for image in row) + 12 for row in rows]
    longer = Image.new("RGB", (max(sheet.width, columns * (widest + 12)), sheet.height + sum(heights)), PAPER)
    longer.paste(sheet, (0, 0))
    top = sheet.height
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for image in row:
            longer.paste(image, (left, top))
            left += longer.width // columns
        top += height
    return longer


def _boxes(image: Image.Image, regions: list[RegionJson], scale: float) -> Image.Image:
    """Draw the boxes, and above them the names that find a place beside those of larger boxes."""
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    boxes = [[edge * scale for edge in region["box"]] for region in regions]
    order = sorted(range(len(boxes)), key=lambda n: (boxes[n][0] - boxes[n][2]) * (boxes[n][3] - boxes[n][1]))
    for number in order:
        draw.rectangle(boxes[number], outline=color_of(regions[number]["label"]), width=2)
    taken: list[tuple[float, float, float, float]] = []
    for number in order:
        text = f"{regions[number]['label']} {regions[number]['score']:.2f}"
        _, _, right, bottom = draw.textbbox((0, 0), text, font)
        spots = _spots(boxes[number], right + 4, bottom + 3, image.size)
        if spot := next((spot for spot in spots if not any(_overlap(spot, other) for other in taken)), None):
            taken.append(spot)
            name_color = name_color_of(regions[number]["label"])
            draw.text((spot[0] + 2, spot[1] + 1), text, name_color, font, stroke_width=1, stroke_fill=INK)
    return image


def _spots(
    box: list[float], width: float, height: float, size: tuple[int, int]
) -> Iterator[tuple[float, float, float, float]]:
    """Yield places for the name of a box within an image of `size`: at the corners of the box, inside and outside."""
    for x in (box[0], box[2] - width):
        for y in (box[1], box[1] - height, box[3] - height, box[3]):
            left = min(max(x, 0.0), max(size[0] - width, 0))
            top = min(max(y, 0.0), max(size[1] - height, 0))
            yield left, top, left + width, top + height


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Return whether two boxes share area."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _masks(image: Image.Image, regions: list[RegionJson]) -> Image.Image:
    pixels = np.asarray(image.convert("L").convert("RGB")).astype(np.float32)
    masks = [decode_mask(region["rle"], *image.size).astype(bool) for region in regions]
    # Large masks first, so that small ones are on top.
    for number, mask in sorted(enumerate(masks), key=lambda entry: -int(entry[1].sum())):
        pixels[mask] = 0.45 * pixels[mask] + 0.55 * np.array(color_of(regions[number]["label"]), np.float32)
    return Image.fromarray(pixels.astype(np.uint8))


def _patches(image: Image.Image, regions: list[RegionJson], coverage: np.ndarray, view: View) -> Image.Image:
    """Draw the view and its patch grid. A patch has the color of the smallest region that covers at least half of it. A
    higher coverage gives a stronger color."""
    shown = view.apply(image, (127, 127, 127)).resize((EDGE, EDGE), Image.Resampling.BICUBIC)
    pixels = np.asarray(shown).astype(np.float32)
    # One more row and column, without color, for pixels at the right and at the bottom that belong to no patch.
    tint, strength = np.zeros((view.grid + 1, view.grid + 1, 3), np.float32), np.zeros([view.grid + 1] * 2, np.float32)
    # Large regions first, so that the smallest one gives a patch its color.
    for number in np.argsort(-coverage.astype(int).sum((1, 2)), kind="stable"):
        over = coverage[number] >= 128
        tint[:-1, :-1][over] = color_of(regions[number]["label"])
        strength[:-1, :-1][over] = coverage[number][over] / 255
    cells = np.ix_(*[np.arange(EDGE) * view.size // (EDGE * view.patch)] * 2)
    weight = 0.55 * strength[cells][..., None]
    drawn = Image.fromarray(((1 - weight) * pixels + weight * tint[cells]).astype(np.uint8))
    draw = ImageDraw.Draw(drawn)
    for line in range(1, -(-view.size // view.patch)):
        position = line * EDGE * view.patch / view.size
        draw.line((position, 0, position, EDGE), fill=(255, 255, 255), width=1)
        draw.line((0, position, EDGE, position), fill=(255, 255, 255), width=1)
    return drawn


def _wrapped(draw: ImageDraw.ImageDraw, text: str, font: Any, width: int, most: int) -> list[str]:
    """Break a text into lines of `width` pixels. After `most` lines, the text is cut, and ends in an ellipsis."""
    lines, words = [""], text.split()
    for number, word in enumerate(words):
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font) <= width:
            lines[-1] = longer
        elif len(lines) == most:
            lines[-1] += " \N{HORIZONTAL ELLIPSIS}" if number else ""
            break
        else:
            lines.append(word)
    return lines
