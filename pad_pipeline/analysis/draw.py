"""Draws an image as words: its grid of tokens, each in the color of the label that is nearest to it."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pad_pipeline.analysis.model import Subject

EDGE = 280
"""The width and the height of a panel, in pixels."""
GAP, LINE, TITLE = 10, 20, 24
"""The space between panels, the height of a line of the legend, and that of a title."""
INK, PAPER = (25, 25, 30), (250, 250, 247)


def color_of(number: int) -> tuple[int, int, int]:
    """Return the color of label `number`: red, green and blue, 0..255. Neighboring numbers have distant hues."""
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1, (0.85, 0.55, 0.7)[number % 3], 0.95 - number % 2 / 5)
    return round(255 * red), round(255 * green), round(255 * blue)


def nearest_labels(tokens: Tensor, subject: Subject, labels: list[str]) -> np.ndarray:
    """Return the number of the label whose embedding is nearest to each token by cosine, int64 `[..., M]`, for tokens
    `[..., M, d]`."""
    words = F.normalize(subject.embed(labels).to(tokens.device), dim=-1)
    return (F.normalize(tokens.float(), dim=-1) @ words.T).argmax(-1).cpu().numpy()


def true_labels(shown: Tensor, numbers: Sequence[int]) -> np.ndarray:
    """Return the number of the smallest label that each token shows, int64 `[M]`, -1 for none.

    `shown`, bool `[L, M]`, says which tokens show a label; `numbers` are those of the L labels.
    """
    found = np.full(shown.shape[1], -1)
    for row in sorted(range(len(shown)), key=lambda row: -int(shown[row].sum())):
        found[shown[row].numpy()] = numbers[row]
    return found


def draw_labels(
    pixels: Tensor, subject: Subject, labels: list[str], names: Mapping[str, np.ndarray], shown: Tensor
) -> Image.Image:
    """Draw a view, and beside it the grid of tokens once for each of some ways to name them, with a legend below.

    A name that is not true of its token has a cross. A token that shows no label has neither color nor cross.

    Args:
        pixels: the view, float32 `[3, size, size]`, normalized for the vision tower.
        subject: a model with this vision tower.
        labels: all labels; their numbers decide the colors.
        names: by title, the number of the label of each token, int64 `[M]`, -1 for none.
        shown: bool `[labels, M]`: which tokens show each label.
    """
    view = _view(pixels, subject).resize((EDGE, EDGE), Image.Resampling.BICUBIC)
    used = sorted({int(number) for grid in names.values() for number in grid[shown.any(0).numpy()]} - {-1})
    font = ImageFont.load_default(13)
    legend = _legend([labels[number] for number in used], (len(names) + 1) * (EDGE + GAP) - GAP, font)
    height = TITLE + EDGE + GAP + LINE * (1 + max((line for _, line in legend), default=0))
    sheet = Image.new("RGB", ((len(names) + 1) * (EDGE + GAP) - GAP, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    sheet.paste(view, (0, TITLE))
    for column, (title, grid) in enumerate(names.items(), 1):
        left = column * (EDGE + GAP)
        sheet.paste(_grid(view, grid, shown), (left, TITLE))
        draw.text((left, 4), title, INK, font)
    for number, (across, line) in zip(used, legend, strict=True):
        top = TITLE + EDGE + GAP + LINE * line
        draw.rectangle((across, top + 3, across + 12, top + 15), fill=color_of(number))
        draw.text((across + 17, top), labels[number], INK, font)
    return sheet


def _view(pixels: Tensor, subject: Subject) -> Image.Image:
    """Return the part of a view that the patches fill."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (subject.mean, subject.std))
    image = ((pixels.cpu() * std + mean).clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
    covered = subject.grid * int(subject.tower.config.patch_size)
    return Image.fromarray(np.ascontiguousarray(image[:covered, :covered]))


def _grid(view: Image.Image, grid: np.ndarray, shown: Tensor) -> Image.Image:
    """Draw a name for each token over a pale view."""
    edge = round(len(grid) ** 0.5)
    panel = Image.blend(view.convert("L").convert("RGB"), Image.new("RGB", view.size, PAPER), 0.5)
    draw, known = ImageDraw.Draw(panel), shown.any(0).tolist()
    for position, number in enumerate(grid.tolist()):
        if number < 0 or not known[position]:
            continue
        left, top = (round(part * EDGE / edge) for part in (position % edge, position // edge))
        right, bottom = (round((part + 1) * EDGE / edge) - 2 for part in (position % edge, position // edge))
        draw.rectangle((left, top, right, bottom), fill=color_of(number))
        if not shown[number, position]:
            inset = (right - left) // 3
            for corners in ((top + inset, bottom - inset), (bottom - inset, top + inset)):
                draw.line((left + inset, corners[0], right - inset, corners[1]), fill=INK, width=2)
    return panel


def _legend(texts: list[str], width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> list[tuple[int, int]]:
    """Return where each entry of a legend stands: its left edge in pixels, and its line."""
    places, across, line = list[tuple[int, int]](), 4, 0
    for text in texts:
        needed = 17 + int(font.getlength(text)) + 16
        if across > 4 and across + needed > width:
            across, line = 4, line + 1
        places.append((across, line))
        across += needed
    return places
