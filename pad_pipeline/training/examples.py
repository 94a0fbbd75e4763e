"""Where samples come from: PAD shards, read by offset from their indexes, or dialogues of a LLaVA JSON."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from pad_pipeline.errors import UserError
from pad_pipeline.geometry import View
from pad_pipeline.images import BadImage, DecodeSettings, decode
from pad_pipeline.labels import LabelEmbedder
from pad_pipeline.records import Place
from pad_pipeline.shards.reader import Sample, ShardFolder
from pad_pipeline.sources.llava import LlavaSource, read_record
from pad_pipeline.sources.read import read_bytes
from pad_pipeline.training.settings import TrainSettings
from pad_pipeline.training.template import IMAGE, Encoded, Template

_IMAGE_WORDS = 128
"""What an image counts for, when lengths are guessed from words; as in LLaVA's grouping."""
NOTHING = Encoded([], [])
"""A sequence without a token."""


class Example(NamedTuple):
    """One sample, ready to be collated."""

    key: str
    text: Encoded
    pixels: Tensor | None
    """float32 `[3, size, size]`, normalized; None where there is no image."""
    coverage: np.ndarray
    """uint8 `[R, grid * grid]`: how much each patch belongs to each region, of 255."""
    embeds: np.ndarray
    """float16 `[R, d]`."""
    problem: str = ""
    """Why nothing can be learned from it."""


class Sight(NamedTuple):
    """How images are shown to the vision tower."""

    view: View
    mean: list[float]
    """Of the tower's normalization, per channel, 0..1; also the color beside padded images."""
    std: list[float]
    tokens: int
    """Vision tokens that the projector makes of one."""

    def nothing(self, width: int) -> Example:
        """A sample of nothing, for an LLM with embeddings of `width` numbers."""
        return Example("", NOTHING, None, np.zeros((0, self.view.grid**2), np.uint8), np.zeros((0, width), np.float16))

    def pixels(self, data: bytes, decoding: DecodeSettings) -> Tensor:
        """The normalized view of an image file, float32 `[3, size, size]`.

        Raises:
            BadImage: it is none.
        """
        red, green, blue = (int(255 * channel) for channel in self.mean)
        image = self.view.apply(decode(data, decoding)[0], (red, green, blue))
        pixels = torch.from_numpy(np.asarray(image, np.float32).transpose(2, 0, 1) / 255)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std


class Examples(Protocol):
    """Samples by number."""

    sight: Sight
    """How their images are shown."""
    nothing: Example
    """A sample of nothing, where a rank has none."""
    lengths: np.ndarray | None
    """int `[samples]`, about how long each is; None where that is not known without reading them."""
    with_image: np.ndarray | None
    """bool `[samples]`, which have an image; None: all."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Example:
        """Sample `number`; from several threads at once."""
        ...


def check_room(settings: TrainSettings, vision_tokens: int) -> None:
    """An image and something to say about it must fit into a sequence.

    Raises:
        UserError: they don't.
    """
    if settings.max_length < 2 + vision_tokens:
        rule = f"the image alone takes {vision_tokens} tokens, and BOS and a caption want more"
        raise UserError("max_length", settings.max_length, rule, "raise it in the training's settings")


class ShardExamples:
    """The `ok` and `empty` samples of a run.

    Args:
        shards: where they are.
        sight: their view, and the tower's normalization.
        template: of the text.
        settings: the training's.
        embedder: gives the labels' embeddings anew, where the shards were built for another LLM.
    """

    lengths: np.ndarray | None = None
    with_image: np.ndarray | None = None

    def __init__(
        self,
        shards: ShardFolder,
        sight: Sight,
        template: Template,
        settings: TrainSettings,
        embedder: LabelEmbedder | None = None,
    ) -> None:
        self.shards, self.sight, self.template, self.settings = shards, sight, template, settings
        self.embedder = embedder
        self.nothing = sight.nothing(embedder.width if embedder else shards.run.embedding_width)
        self.decoding = decode_settings(shards)
        self.rows = shards.usable()
        if not len(self.rows):
            raise UserError("shards", shards.folder, "every image in it failed", "see `pad stats` for the reasons")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Example:
        sample = self.shards.sample(*self.rows[number])
        coverage = sample.patches(self.settings.patches).reshape(-1, self.sight.view.grid**2)
        if self.embedder is None:
            embeds = sample.region_embeds()
        else:
            embeds = self.embedder([region["label"] for region in sample.meta["regions"]])
        text, problem = self._text(sample)
        if problem and len(coverage) and max(self.settings.beta_start, self.settings.beta_end) > 0:
            text, problem = Encoded([IMAGE], [False]), ""  # its regions teach
        if problem:
            return self.nothing._replace(key=sample.key, problem=problem)
        return Example(sample.key, text, self.sight.pixels(sample.image, self.decoding), coverage, embeds)

    def _text(self, sample: Sample) -> tuple[Encoded, str]:
        caption, turns = sample.meta["caption"], sample.meta["conversations"]
        if self.template.name == "plain":
            if not caption.strip():
                return NOTHING, "it has no caption"
            return _cut(self.template.caption(caption), self.sight.tokens, self.settings)
        return _dialogue(self.template, turns, True, self.sight.tokens, self.settings)


class DialogueExamples:
    """The records of a LLaVA JSON, with an image or without. They are read once, and kept on disk by offset.

    Args:
        source: the JSON, local or remote.
        sight: the tower's view.
        template: of the text.
        settings: the training's.
        width: of an embedding.
    """

    def __init__(
        self, source: LlavaSource, sight: Sight, template: Template, settings: TrainSettings, width: int
    ) -> None:
        self.source, self.sight, self.template, self.settings = source, sight, template, settings
        self.decoding = DecodeSettings()
        self.nothing = sight.nothing(width)
        self._folder = tempfile.TemporaryDirectory(prefix="pad-dialogues-")
        self._path = Path(self._folder.name, "records")
        offsets, lengths, with_image = [0], [], []
        with self._path.open("wb") as stream:
            for number, record in enumerate(source.records()):
                kept = _record(record, number)
                stream.write(json.dumps(kept).encode())
                offsets.append(stream.tell())
                words = sum(len(str(turn["value"]).split()) for turn in kept["turns"])
                lengths.append(words + _IMAGE_WORDS * bool(kept["image"]))
                with_image.append(bool(kept["image"]))
        self._offsets = np.array(offsets, np.int64)
        self.lengths: np.ndarray | None = np.array(lengths, np.int32)
        self.with_image: np.ndarray | None = np.array(with_image, bool)
        if not lengths:
            raise UserError("data", source.origin, "it has no record", "give a LLaVA JSON with dialogues")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, number: int) -> Example:
        with self._path.open("rb") as stream:
            stream.seek(int(self._offsets[number]))
            kept = json.loads(stream.read(int(self._offsets[number + 1] - self._offsets[number])))
        problem, pixels, text = kept["problem"], None, NOTHING
        if kept["image"] and not problem:
            try:
                data = read_bytes(self.source.root, Place(kept["image"]), self.decoding.max_file_bytes)
                pixels = self.sight.pixels(data, self.decoding)
            except BadImage as error:
                problem = f"its image {kept['image']}: {error}"
        if not problem:
            text, problem = _dialogue(
                self.template, kept["turns"], bool(kept["image"]), self.sight.tokens, self.settings
            )
        if problem:
            return self.nothing._replace(key=kept["key"], problem=problem)
        return self.nothing._replace(key=kept["key"], text=text, pixels=pixels)


def _record(record: Any, number: int) -> dict[str, Any]:
    """What is kept of a record: its name, image ("" for none), turns, and what is wrong with it."""
    key = f"record-{number}"
    if not isinstance(record, dict):
        return {"key": key, "image": "", "turns": [], "problem": "it is no object"}
    key = str(record["id"]) if record.get("id") is not None else key
    image = record.get("image")
    if isinstance(image, list):
        if len(image) > 1:
            problem = f"it has {len(image)} images, and one at most can be shown"
            return {"key": key, "image": "", "turns": [], "problem": problem}
        image = image[0] if image else None
    # Without an image a record is checked as any other, under a name that is never opened.
    planned = read_record(record, number, key, "none" if image is None else image)
    kept = {"key": key, "image": "" if image is None else planned.source, "turns": list(planned.conversations)}
    return kept | {"problem": planned.problem}


def _dialogue(
    template: Template, turns: list[dict[str, str]], image: bool, image_tokens: int, settings: TrainSettings
) -> tuple[Encoded, str]:
    try:
        return _cut(template(turns, image), image_tokens, settings)
    except ValueError as error:
        return NOTHING, str(error)


def _cut(text: Encoded, image_tokens: int, settings: TrainSettings) -> tuple[Encoded, str]:
    text = text.cut(settings.max_length, image_tokens)
    if not any(text.supervised):
        return NOTHING, f"nothing of its answers is within max_length = {settings.max_length} tokens"
    return text, ""


def decode_settings(shards: ShardFolder) -> DecodeSettings:
    """How the run decoded its images."""
    try:
        return DecodeSettings.model_validate(shards.run.settings["decode"])
    except (KeyError, ValidationError) as error:
        rule = f"its run.json has no usable decode settings ({type(error).__name__})"
        raise UserError("shards", shards.folder, rule, "restore run.json, or build the shards again") from error
