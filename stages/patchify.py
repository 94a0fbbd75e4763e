"""Masks -> coverage of the patch grid; labels -> averaged word embeddings."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco_mask

from pad_pipeline.geometry import View
from pad_pipeline.labels import LabelEmbedder, LabelSettings
from pad_pipeline.records import ImageRecord
from pad_pipeline.stages.base import Stage


class Patchify(Stage):
    """Fills `coverage` and `embeds`, also of images in which nothing was found: every sample has every member."""

    name = "patchify"
    takes = frozenset({"ok", "empty"})

    def __init__(self, view: View, labels: LabelSettings) -> None:
        super().__init__()
        self.view, self.embed = view, LabelEmbedder(labels)

    def prepare(self, row: ImageRecord) -> np.ndarray:
        """uint8 `[R, grid, grid]`, in a thread: the masks are the work here."""
        coverage = np.zeros((len(row.regions), self.view.grid, self.view.grid), np.uint8)
        for index, region in enumerate(row.regions):
            coverage[index] = self.view.coverage(coco_mask.decode(region.rle))
        return coverage

    def process(self, rows: list[ImageRecord], inputs: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Coverage, and the label embeddings; these here, because a tokenizer is not for several threads."""
        return [(coverage, self.embed(row.labels)) for row, coverage in zip(rows, inputs, strict=True)]

    def finish(self, row: ImageRecord, output: tuple[np.ndarray, np.ndarray]) -> None:
        """Keep both."""
        row.coverage, row.embeds = output
