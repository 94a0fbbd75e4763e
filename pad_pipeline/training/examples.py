"""Read the samples of a training from PAD shards or from a LLaVA JSON."""

from __future__ import annotations

import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from pad_pipeline.console import track
from pad_pipeline.errors import UserError
from pad_pipeline.geometry import View
from pad_pipeline.images import BadImage, DecodeSettings, decode
from pad_pipeline.labels import LabelEmbedder
from pad_pipeline.records import Place
from pad_pipeline.shards.reader import Sample, ShardFolder
from pad_pipeline.sources.fields import Fields
from pad_pipeline.sources.llava import LlavaSource
from pad_pipeline.sources.read import read_bytes
from pad_pipeline.threads import Say
from pad_pipeline.training.order import Ints
from pad_pipeline.training.settings import TrainSettings
from pad_pipeline.training.template import IMAGE, EncodedText, Template
from pad_pipeline.training.towers import BICUBIC

_IMAGE_WORDS = 128
"""The number of words for which an image counts in the estimated length of a sample, as in LLaVA."""


class Example(NamedTuple):
    """One sample, ready to be collated."""

    key: str
    """The key of the sample in its shard, or the id of the record in the LLaVA JSON."""
    text: EncodedText
    pixels: Tensor | None
    """float32 `[3, size, size]`, normalized; None for a sample without an image, which has no regions either."""
    coverage: npt.NDArray[np.uint8]
    """uint8 `[R, grid * grid]`: how much of each patch belongs to each region, 0..255."""
    embeds: npt.NDArray[np.float16]
    """float16 `[R, d]`: the label embedding of each region."""
    used: npt.NDArray[np.bool_]
    """bool `[R]`: whether L_patch takes the region; `largest` and `without` leave others out."""
    words: Sequence[Sequence[int]] = ()
    """The tokens of each region's label, for the kinds of L_patch that read them; else empty."""
    problem: str = ""
    """The reason why nothing can be learned from the sample; empty if something can be learned."""


class Preprocessor(NamedTuple):
    """Turns images into the vision tower's input."""

    view: View
    mean: list[float]
    """The mean of the tower's normalization, per channel, 0..1; also the color of the padding."""
    std: list[float]
    """The standard deviation of the tower's normalization, per channel, 0..1."""
    tokens: int
    """The number of vision tokens for one image."""
    resample: int = BICUBIC
    """The number of Pillow's filter for the resize."""

    def empty_example(self, width: int) -> Example:
        """Return an example without text, image and regions. `width` is the length of a label embedding."""
        return Example(
            "", EncodedText([], []), None, np.zeros((0, self.view.grid**2), np.uint8), np.zeros((0, width), np.float16),
            np.zeros(0, bool),
        )  # fmt: skip

    def pixels(self, data: bytes, decoding: DecodeSettings) -> Tensor:
        """Decode the bytes of an image file. Return its normalized view, float32 `[3, size, size]`.

        Raises:
            BadImage: the file can't be decoded.
        """
        return self.normalized(decode(data, decoding)[0])

    def normalized(self, image: Image.Image) -> Tensor:
        """Return the normalized view of an upright RGB image, float32 `[3, size, size]`."""
        red, green, blue = (int(255 * channel) for channel in self.mean)
        image = self.view.apply(image, (red, green, blue), self.resample)
        pixels = torch.from_numpy(np.asarray(image, np.float32).transpose(2, 0, 1) / 255)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std


class Examples(ABC):
    """The samples of a training, by number. Several threads may read at once."""

    empty_example: Example
    """An example without text, image and regions, for the batch of a rank that has no sample."""
    lengths: Ints | None = None
    """int `[samples]`: the approximate length of each sample, in words; None if it is not known."""
    with_image: npt.NDArray[np.bool_] | None = None
    """bool `[samples]`: whether a sample has an image; None if all have one."""

    def __init__(self, preprocessor: Preprocessor, template: Template, settings: TrainSettings) -> None:
        self.preprocessor, self.template, self.settings = preprocessor, template, settings

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, number: int) -> Example: ...

    def _truncated(self, text: EncodedText) -> EncodedText:
        """Cut a sequence to `max_length`. Raise a ValueError if no supervised token is left."""
        text = text.truncated(self.settings.max_length, self.preprocessor.tokens)
        if not any(text.supervised):
            raise ValueError(f"its first {self.settings.max_length} tokens (max_length) contain no part of an answer")
        return text


class ShardExamples(Examples):
    """The samples of a run of PAD shards; images that failed are left out.

    `embedder` replaces the label embeddings of shards that were built for another LLM. `label_tokens` returns the
    tokens of a label; it is needed if `settings.patch_loss.needs_words`. `say` receives messages.

    Raises:
        UserError: every image of the run failed, or run.json has no usable decode settings.
    """

    def __init__(
        self, shards: ShardFolder, preprocessor: Preprocessor, template: Template, settings: TrainSettings,
        embedder: LabelEmbedder | None = None, say: Say = lambda text: None,
        label_tokens: Callable[[str], list[int]] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(preprocessor, template, settings)
        self.shards, self.embedder = shards, embedder
        self.label_tokens = cache(label_tokens) if label_tokens else None
        self.empty_example = preprocessor.empty_example(embedder.width if embedder else shards.run.embedding_width)
        self.decoding = decode_settings(shards)
        self.rows = shards.usable(say, track)
        if not len(self.rows):
            raise UserError("shards", shards.folder, "every image in it failed", "see `pad stats` for the reasons")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Example:
        sample, loss = self.shards.sample(*self.rows[number]), self.settings.patch_loss
        coverage = sample.patches(self.settings.patches).reshape(-1, self.preprocessor.view.grid**2)
        labels = [region["label"] for region in sample.meta["regions"]]
        embeds = self.embedder(labels) if self.embedder else sample.region_embeds()
        used = sample.coverage.mean((1, 2)) <= 255 * loss.largest  # by any rule, `largest` means the same share
        used &= np.array([label not in loss.without for label in labels], bool)
        words = [self._wanted(label) for label in labels] if loss.needs_words else []
        try:
            text = self._text(sample)
        except ValueError as problem:
            if not used.any() or max(self.settings.beta_start, self.settings.beta_end) <= 0:
                return self.empty_example._replace(key=sample.key, problem=str(problem))
            text = EncodedText([IMAGE], [False])  # L_patch learns from the regions, without any text
        pixels = self.preprocessor.pixels(sample.image, self.decoding)
        return Example(sample.key, text, pixels, coverage, embeds, used, words)

    def _wanted(self, label: str) -> list[int]:
        """Return the tokens of a label that L_patch trains toward."""
        assert self.label_tokens is not None
        ids = self.label_tokens(label)
        return ids[:1] if self.settings.patch_loss.label_tokens == "first" else ids

    def _text(self, sample: Sample) -> EncodedText:
        """Return the sample's token ids. Raise a ValueError if it has no text that the template can use."""
        caption, turns = sample.meta["caption"], sample.meta["conversations"]
        if self.template.name != "plain":
            return self._truncated(self.template(cast("list[dict[str, str]]", turns), image=True))
        if not caption.strip():
            raise ValueError("it has no caption")
        return self._truncated(self.template.caption(caption))


class DialogueExamples(Examples):
    """The records of a LLaVA JSON, with images or without. `width` is the length of a label embedding; for `private`
    see `read_bytes`.

    The JSON is read once, into a temporary file from which single records are read.

    Raises:
        UserError: the JSON holds no record, or can't be read.
    """

    def __init__(
        self,
        source: LlavaSource,
        preprocessor: Preprocessor,
        template: Template,
        settings: TrainSettings,
        width: int,
        private: bool = False,
    ) -> None:
        super().__init__(preprocessor, template, settings)
        self.source, self.private, self.decoding = source, private, DecodeSettings()
        self.empty_example = preprocessor.empty_example(width)
        self._folder = tempfile.TemporaryDirectory(prefix="pad-dialogues-")
        self._path = Path(self._folder.name, "records")
        offsets, lengths, with_image = [0], [], []
        with self._path.open("wb") as stream:
            for number, record in source.records():
                kept = _record(source.fields, record, number)
                stream.write(json.dumps(kept).encode())
                offsets.append(stream.tell())
                words = sum(len(str(turn["value"]).split()) for turn in kept["turns"])
                lengths.append(words + _IMAGE_WORDS * bool(kept["image"]))
                with_image.append(bool(kept["image"]))
        self._offsets = np.array(offsets, np.int64)
        self.lengths, self.with_image = np.array(lengths, np.int32), np.array(with_image, bool)
        if not lengths:
            raise UserError("data", source.origin, "it has no record", "give a LLaVA JSON with dialogues")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, number: int) -> Example:
        with self._path.open("rb") as stream:
            stream.seek(int(self._offsets[number]))
            kept = json.loads(stream.read(int(self._offsets[number + 1] - self._offsets[number])))
        example, image, pixels = self.empty_example._replace(key=kept["key"]), kept["image"], None
        if kept["problem"]:
            return example._replace(problem=kept["problem"])
        try:
            if image:
                data = read_bytes(self.source.root, Place(image), self.decoding.max_file_bytes, self.private)
                pixels = self.preprocessor.pixels(data, self.decoding)
            return example._replace(text=self._truncated(self.template(kept["turns"], bool(image))), pixels=pixels)
        except BadImage as error:
            return example._replace(problem=f"its image {image}: {error}")
        except ValueError as error:
            return example._replace(problem=str(error))


def _record(fields: Fields, record: Any, number: int) -> dict[str, Any]:
    """Return the parts of a record that are kept: key, image, turns and problem. The last three may be empty."""
    found = fields.read(record)
    turns, problem = found.conversations, found.problem
    if not turns and found.caption:
        turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": found.caption}]
    image = found.images[0] if found.images else ""
    path, wrong = fields.path(image) if image else ("", "")
    if len(found.images) > 1:
        problem = problem or f"it has {len(found.images)} images, and one at most can be shown"
    problem = f"{fields.unit} {number}: {problem}" if problem else wrong
    return {"key": found.name or f"record-{number}", "image": path, "turns": turns, "problem": problem}


def decode_settings(shards: ShardFolder) -> DecodeSettings:
    """Return the settings with which a run decoded its images.

    Raises:
        UserError: run.json has no usable decode settings.
    """
    try:
        return DecodeSettings.model_validate(shards.run.settings["decode"])
    except (KeyError, ValidationError) as error:
        rule = f"its run.json has no usable decode settings ({type(error).__name__})"
        raise UserError("shards", shards.folder, rule, "restore run.json, or build the shards again") from error
