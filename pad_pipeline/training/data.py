"""Shards -> batches: pictures through the view, captions in LLaVA's plain template, regions as they are."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from pad_pipeline.errors import UserError
from pad_pipeline.geometry import View
from pad_pipeline.pictures import DecodeSettings, decode
from pad_pipeline.shards.reader import Sample, ShardFolder
from pad_pipeline.training.settings import TrainSettings


class Example(NamedTuple):
    """One sample, ready to be collated."""

    key: str
    pixels: Tensor
    """float32 `[3, size, size]`, normalised."""
    caption: list[int]
    """The caption's token ids with the newline at their end; all are supervised. Empty where there is no caption."""
    coverage: np.ndarray
    """uint8 `[R, grid * grid]`: how much each patch belongs to each region, of 255."""
    embeds: np.ndarray
    """float16 `[R, d]`."""


class Batch(NamedTuple):
    """A micro-batch."""

    keys: list[str]
    pixels: Tensor
    """`[B, 3, size, size]`."""
    caption: Tensor
    """`[B, T]` token ids, padded at the right."""
    supervised: Tensor
    """`[N]`: the places in the flattened caption that are supervised, all but the padding. Indices, because a mask
    would make the GPU wait for the CPU to count it."""
    coverage: Tensor
    """uint8 `[R, grid * grid]`, the regions of all samples one after another."""
    embeds: Tensor
    """`[R, d]`."""
    image: Tensor
    """`[R]`, the sample that each region belongs to."""

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`."""
        moved = (part.to(device, non_blocking=True) for part in self[1:])
        return Batch(self.keys, *moved)


class Examples:
    """The `ok` and `empty` samples of a run, by number.

    Args:
        shards: where they are.
        tokenizer: the LLM's.
        mean: of the vision tower's normalisation, per channel, 0..1; also the colour beside padded pictures.
        std: likewise.
        settings: the training's.
        decoding: the decode settings that the shards were built with.
    """

    def __init__(
        self, shards: ShardFolder, tokenizer: Any, mean: list[float], std: list[float], settings: TrainSettings
    ) -> None:
        self.shards, self.tokenizer, self.settings = shards, tokenizer, settings
        self.view: View = shards.run.view
        self.decoding = _decode_settings(shards)
        self.mean, self.std = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
        red, green, blue = (int(255 * channel) for channel in mean)
        self.fill = red, green, blue
        if settings.max_length < 2 + self.view.grid**2:
            rule = f"the image alone takes {self.view.grid**2} tokens, and BOS and a caption want more"
            raise UserError("max_length", settings.max_length, rule, "raise it in the training's settings")
        self.rows = [(name, row) for name, row in shards.rows() if row["status"] != "failed"]
        if not self.rows:
            raise UserError("shards", shards.folder, "every image in it failed", "see `pad stats` for the reasons")

    def __len__(self) -> int:
        """How many samples there are."""
        return len(self.rows)

    def __getitem__(self, number: int) -> Example:
        """Sample `number`."""
        sample = self.shards.sample(*self.rows[number])
        image = self.view.apply(decode(sample.image, self.decoding)[0], self.fill)
        pixels = torch.from_numpy(np.asarray(image, np.float32).transpose(2, 0, 1) / 255)
        coverage = sample.patches(self.settings.patches).reshape(-1, self.view.grid**2)
        return Example(
            sample.key, (pixels - self.mean) / self.std, self.caption_ids(sample), coverage, sample.region_embeds()
        )

    def caption_ids(self, sample: Sample) -> list[int]:
        """LLaVA's plain template after `BOS <image>`: the caption and a newline, which is the only stop. The question
        is dropped, and there is no EOS."""
        caption = sample.meta["caption"]
        if not caption.strip():
            return []
        room = self.settings.max_length - 1 - self.view.grid**2
        ids = self.tokenizer(caption + "\n")["input_ids"]
        return ids[ids[:1] == [self.tokenizer.bos_token_id] :][:room]


def _decode_settings(shards: ShardFolder) -> DecodeSettings:
    try:
        return DecodeSettings.model_validate(shards.run.settings["decode"])
    except (KeyError, ValidationError) as error:
        rule = f"its run.json has no usable decode settings ({type(error).__name__})"
        raise UserError("--shards", shards.folder, rule, "restore run.json, or build the shards again") from error


def collate(examples: list[Example]) -> Batch:
    """Stack examples; captions are padded to the longest."""
    lengths = torch.tensor([len(example.caption) for example in examples])
    caption = torch.zeros(len(examples), max(1, int(lengths.max())), dtype=torch.long)
    for row, example in enumerate(examples):
        caption[row, : len(example.caption)] = torch.tensor(example.caption, dtype=torch.long)
    supervised = (torch.arange(caption.shape[1]) < lengths[:, None]).flatten().nonzero().squeeze(1)
    return Batch(
        [example.key for example in examples],
        torch.stack([example.pixels for example in examples]),
        caption,
        supervised,
        torch.from_numpy(np.concatenate([example.coverage for example in examples])),
        torch.from_numpy(np.concatenate([example.embeds for example in examples])),
        torch.repeat_interleave(
            torch.arange(len(examples)), torch.tensor([len(example.coverage) for example in examples])
        ),
    )


def order(samples: int, seed: int) -> Iterator[int]:
    """Sample numbers without end: epoch after epoch, each in an order of its own, a function of the seed alone."""
    epoch = 0
    while True:
        yield from np.random.default_rng((seed, epoch)).permutation(samples).tolist()
        epoch += 1


def batches(examples: Examples, settings: TrainSettings, steps: int) -> Iterator[list[Batch]]:
    """For each step its micro-batches; images are decoded ahead in threads, two steps' worth at most."""
    numbers = order(len(examples), settings.seed)
    ahead: list[list[Any]] = []
    with ThreadPoolExecutor(settings.loader_threads, thread_name_prefix="loader") as threads:
        try:
            for step in range(steps):
                while len(ahead) < min(2, steps - step):
                    ahead.append(
                        [threads.submit(examples.__getitem__, n) for n in islice(numbers, settings.batch_size)]
                    )
                ready = [future.result() for future in ahead.pop(0)]
                yield [
                    collate(ready[start : start + settings.micro_batch])
                    for start in range(0, len(ready), settings.micro_batch)
                ]
        finally:
            threads.shutdown(cancel_futures=True)
