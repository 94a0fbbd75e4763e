"""Writes the pages and the index of a report, block by block."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pad_pipeline.report.cards import as_script
from pad_pipeline.report.index import Histograms, Regions, columns_of
from pad_pipeline.report.settings import ReportSettings
from pad_pipeline.report.tally import Tally

BLOCK = 4096
"""The number of images in one file of the index."""
FAILED_KEYS, FAILED = "failed-keys.txt", "failed.jsonl"
"""The keys of failed images, for `pad filter`; the same images with stage and reason."""


class Part(NamedTuple):
    """The part of a report that one shard gives."""

    tally: Tally
    copies: dict[str, bytes]
    """The small copies of images that are not written yet, by path."""
    cards: list[str]
    """The cards of the images, as JSON."""
    statuses: str
    """The first letter of each image's status."""
    regions: list[Regions]
    """The regions of each image."""
    second: list[Regions]
    """The regions of each image that are only in the second run; empty without a second run."""
    texts: list[str]
    """The texts of each image for the search: the key, then the others, one a line."""
    failed: list[dict[str, str]]
    """The failed images, each with key, id, source, stage and reason."""
    found: Counter[str]
    """With a second run: the number of images that were `compared`, of regions only in the `first` and `second`, and of
    `images` with such regions."""


def write_copy(path: Path, image: bytes) -> None:
    """Write the small copy of an image."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(image)


class PageWriter:
    """Writes the cards to pages and index. A page, or a block of the index, is written when it is full."""

    def __init__(self, out: Path, settings: ReportSettings, tally: Tally) -> None:
        self.out, self.settings, self.tally = out, settings, tally
        self.block = BLOCK
        self.pages = self.blocks = 0
        """Numbers of written pages and blocks."""
        self.cards: list[str] = []
        self.statuses = ""
        self.regions: list[Regions] = []
        self.second: list[Regions] = []
        self.texts: list[str] = []
        self.histograms = Histograms()
        self.found: Counter[str] = Counter()
        """The sum of `Part.found`."""

    def add(self, part: Part) -> None:
        """Add a shard to the pages, the index and the statistics."""
        for path, image in part.copies.items():
            write_copy(self.out / path, image)
        self.tally.merge(part.tally)
        for extra in part.second:
            for label in extra.labels:
                self.tally.numbers.setdefault(label, len(self.tally.numbers))
        self.cards += part.cards
        self.statuses += part.statuses
        self.regions += part.regions
        self.second += part.second
        self.found.update(part.found)
        if part.regions:
            self.histograms.add(np.vstack([of_image.levels for of_image in part.regions]))
        self.texts += part.texts
        if part.failed:
            with (self.out / FAILED_KEYS).open("a", encoding="utf-8") as keys, (self.out / FAILED).open("a") as lines:
                for failed in part.failed:
                    keys.write(f"{failed['key']}\n")
                    lines.write(f"{json.dumps(failed)}\n")
        self.write_full(self.settings.page_size, self.block)

    def write_full(self, page_size: int, block: int) -> None:
        """Write pages and blocks of the index while at least this many images are left for one."""
        while len(self.cards) >= page_size:
            cards, self.cards = self.cards[: self.settings.page_size], self.cards[self.settings.page_size :]
            write_script(self.out / "data", f"page-{self.pages:06d}", f"[{','.join(cards)}]")
            self.pages += 1
        while len(self.statuses) >= block:
            index: dict[str, Any] = {"statuses": self.statuses[: self.block]}
            index |= columns_of(self.regions[: self.block], self.tally.numbers)
            if self.second:
                index["second"] = columns_of(self.second[: self.block], self.tally.numbers)
            write_script(self.out / "data", f"index-{self.blocks:06d}", as_script(index))
            write_script(self.out / "data", f"text-{self.blocks:06d}", as_script(self.texts[: self.block]))
            self.statuses, self.texts = self.statuses[self.block :], self.texts[self.block :]
            self.regions, self.second = self.regions[self.block :], self.second[self.block :]
            self.blocks += 1


def write_script(folder: Path, name: str, value: str) -> None:
    """Write a data file of the page."""
    (folder / f"{name}.js").write_text(f'padData("{name}",{value});\n', "ascii")
