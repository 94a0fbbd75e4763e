"""A torch dataset of shards, for trainers other than pad's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from pad_pipeline.geometry import PatchRule
from pad_pipeline.images import DecodeSettings, decode
from pad_pipeline.shards.reader import ShardFolder, open_shards


class PatchDataset(Dataset[dict[str, Any]]):
    """The images of a run that did not fail, read at their offsets, in any order and in any number of workers.

    An item has the `key`; the upright `image` (RGB); `caption` and `conversations`; the `labels` of the regions; their
    `coverage`, float32 `[R, grid, grid]`, 0..1; and their label embeddings `embeds`, float32 `[R, d]`. `PatchLoss`
    takes lists of these two.

    Args:
        shards: folder or URL of the run.
        rule: which patches a region covers, see `PatchRule`.

    Raises:
        UserError: no shard is finished, or one is damaged.
    """

    def __init__(self, shards: str | Path | ShardFolder, rule: PatchRule = "soft") -> None:
        self.shards = shards if isinstance(shards, ShardFolder) else open_shards(shards)
        self.rows, self.rule = self.shards.usable(), rule
        self.decoding = DecodeSettings.model_validate(self.shards.run.settings.get("decode", {}))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        sample = self.shards.sample(*self.rows[number])
        return {
            "key": sample.key,
            "image": decode(sample.image, self.decoding)[0],
            "caption": sample.meta["caption"],
            "conversations": sample.meta["conversations"],
            "labels": [region["label"] for region in sample.meta["regions"]],
            "coverage": torch.from_numpy(sample.patches(self.rule)).float() / 255,
            "embeds": torch.from_numpy(sample.region_embeds()).float(),
        }

    @staticmethod
    def collate(items: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
        """Return a batch: each name with the list of its values, because images differ in size and in their number of
        regions. It is the `collate_fn` of a `DataLoader`."""
        return {name: [item[name] for item in items] for name in items[0]}
