"""The stage patchify: it computes coverage of the patch grid from masks, and label embeddings from labels."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco_mask

from pad_pipeline.geometry import View
from pad_pipeline.labels import LabelEmbedder, LabelSettings
from pad_pipeline.records import ImageRecord
from pad_pipeline.stages.base import Stage
from pad_pipeline.stages.decode import forget_image


class Patchify(Stage[np.ndarray, tuple[np.ndarray, np.ndarray]]):
    """Sets `coverage` and `embeds`, also for images without regions, because all samples have the same members."""

    name = "patchify"
    statuses = frozenset({"ok", "empty"})

    def __init__(self, view: View, labels: LabelSettings) -> None:
        super().__init__()
        self.view, self.embed = view, LabelEmbedder(labels)

    def prepare(self, row: ImageRecord) -> np.ndarray:
        """Return the coverage of each region, uint8 `[R, grid, grid]`. Masks take time, so threads do this work."""
        forget_image(row)
        coverage = [self.view.coverage(coco_mask.decode(region.rle)) for region in row.regions]
        return np.array(coverage, np.uint8).reshape(-1, self.view.grid, self.view.grid)

    def process(self, rows: list[ImageRecord], inputs: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return coverage and label embeddings of each row. No thread does this: tokenizers are not thread-safe."""
        return [(coverage, self.embed(row.labels)) for row, coverage in zip(rows, inputs, strict=True)]

    def finish(self, row: ImageRecord, output: tuple[np.ndarray, np.ndarray]) -> None:
        """Set the row's coverage and label embeddings."""
        row.coverage, row.embeds = output
