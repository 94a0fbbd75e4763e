"""Draws an image with the words that matching pursuit found for each of its tokens."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pad_pipeline.analysis.model import Subject
from pad_pipeline.measures.vocabulary import Vocabulary

CELL = 64
"""The edge of a token's cell in the drawing, in pixels."""
LINES = 3
"""The number of words that fit into a cell."""


def draw_words(
    pixels: Tensor, subject: Subject, vocabulary: Vocabulary, words: Tensor, coefficients: Tensor
) -> Image.Image:
    """Draw a view, with words in the cell of each token.

    `pixels` is the view, float32 `[3, size, size]`, normalized for the vision tower. `words`, int64 `[M, K]`, has the
    token ids of the words that matching pursuit found for each token, in its order. `coefficients` is `[M, K]`; only
    words with a positive coefficient are drawn.
    """
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (subject.mean, subject.std))
    shown = ((pixels * std + mean).clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
    grid = subject.pooled_grid
    covered = subject.grid * int(subject.tower.config.patch_size)  # without the pixels that fill no patch
    canvas = Image.fromarray(np.ascontiguousarray(shown[:covered, :covered])).resize(
        (grid * CELL, grid * CELL), Image.Resampling.BICUBIC
    )
    canvas = Image.blend(canvas, Image.new("RGB", canvas.size, (255, 255, 255)), 0.35)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=14)
    for position, (row, weights) in enumerate(zip(words.tolist(), coefficients.tolist(), strict=True)):
        left, top = position % grid * CELL, position // grid * CELL
        draw.rectangle((left, top, left + CELL, top + CELL), outline=(190, 190, 190))
        positive = [vocabulary.words[token] for token, weight in zip(row, weights, strict=True) if weight > 0][:LINES]
        for line, word in enumerate(positive):
            shade = (0, 0, 0) if line == 0 else (90, 90, 90)
            draw.text((left + 3, top + 3 + 19 * line), word[:9], shade, font)
    return canvas
