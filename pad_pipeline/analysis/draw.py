"""The drawing of one image with the words of its patches."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pad_pipeline.analysis.model import Subject
from pad_pipeline.measures.vocabulary import Vocabulary

CELL = 64
"""Pixels of a token's cell: room for three words."""
LINES = 3


def draw_words(
    pixels: Tensor, subject: Subject, vocabulary: Vocabulary, words: Tensor, coefficients: Tensor
) -> Image.Image:
    """The view with the first words of matching pursuit in each token's cell, the strongest on top.

    Args:
        pixels: float32 `[3, size, size]`, normalized.
        subject: whose tokens they are.
        vocabulary: of its LLM.
        words: int64 `[M, K]`.
        coefficients: `[M, K]`; words that are taken away (below 0) are left out.
    """
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (subject.mean, subject.std))
    shown = ((pixels * std + mean).clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
    grid = subject.pooled_grid
    canvas = Image.fromarray(np.ascontiguousarray(shown)).resize((grid * CELL, grid * CELL), Image.Resampling.BICUBIC)
    canvas = Image.blend(canvas, Image.new("RGB", canvas.size, (255, 255, 255)), 0.35)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=14)
    for position, (row, weights) in enumerate(zip(words.tolist(), coefficients.tolist(), strict=True)):
        left, top = position % grid * CELL, position // grid * CELL
        draw.rectangle((left, top, left + CELL, top + CELL), outline=(190, 190, 190))
        said = [vocabulary.words[token] for token, weight in zip(row, weights, strict=True) if weight > 0][:LINES]
        for line, word in enumerate(said):
            shade = (0, 0, 0) if line == 0 else (90, 90, 90)
            draw.text((left + 3, top + 3 + 19 * line), word[:9], shade, font)
    return canvas
