"""Read the samples of a training from PAD shards (by offset, through their indexes) or from a LLaVA JSON."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
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
"""Number of words that an image counts as when a sample's length is estimated from its words; LLaVA's grouping uses
the same number."""
NOTHING = Encoded([], [])
"""A sequence without a token."""


class Example(NamedTuple):
    """One sample, ready to be collated."""

    key: str
    """Name of the sample in its shard, or of the record in the LLaVA JSON."""
    text: Encoded
    pixels: Tensor | None
    """float32 `[3, size, size]`, normalized; None where there is no image."""
    coverage: npt.NDArray[np.uint8]
    """uint8 `[R, grid * grid]`: how much of each patch belongs to each region, 0..255."""
    embeds: npt.NDArray[np.float16]
    """float16 `[R, d]`: the label embedding of each region."""
    problem: str = ""
    """Why nothing can be learned from the sample; empty where something can."""


class Sight(NamedTuple):
    """How images are shown to the vision tower."""

    view: View
    mean: list[float]
    """Mean of the tower's normalization, per channel, 0..1; also the color beside padded images."""
    std: list[float]
    """Standard deviation of the tower's normalization, per channel, 0..1."""
    tokens: int
    """Number of vision tokens that the projector makes of one image."""

    def nothing(self, width: int) -> Example:
        """Return an example without text, image and regions, for label embeddings of `width` numbers."""
        return Example("", NOTHING, None, np.zeros((0, self.view.grid**2), np.uint8), np.zeros((0, width), np.float16))

    def pixels(self, data: bytes, decoding: DecodeSettings) -> Tensor:
        """Return the normalized view of an image file, float32 `[3, size, size]`.

        Raises:
            BadImage: `data` is not an image that can be decoded.
        """
        return self.normalized(decode(data, decoding)[0])

    def normalized(self, image: Image.Image) -> Tensor:
        """Return the normalized view of an upright RGB image, float32 `[3, size, size]`."""
        red, green, blue = (int(255 * channel) for channel in self.mean)
        image = self.view.apply(image, (red, green, blue))
        pixels = torch.from_numpy(np.asarray(image, np.float32).transpose(2, 0, 1) / 255)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std


class Examples(Protocol):
    """The samples of a training, read by number."""

    sight: Sight
    """How the images are shown to the vision tower."""
    nothing: Example
    """An example without text, image and regions, which fills the batch of a rank that has no sample."""
    lengths: npt.NDArray[np.integer[Any]] | None
    """int `[samples]`: the approximate length of each sample, in words; None where it is not known before the samples
    are read."""
    with_image: npt.NDArray[np.bool_] | None
    """bool `[samples]`: which samples have an image; None where all have."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Example:
        """Read sample `number`. Several threads may call it at once."""
        ...


def check_room(settings: TrainSettings, vision_tokens: int) -> None:
    """Check that an image and at least one token of text fit into a sequence.

    Raises:
        UserError: `max_length` is too small for both.
    """
    if settings.max_length < 2 + vision_tokens:
        rule = f"the image alone takes {vision_tokens} tokens, and BOS and a caption want more"
        raise UserError("max_length", settings.max_length, rule, "raise it in the training's settings")


class ShardExamples:
    """The samples of a run whose status is `ok` or `empty`.

    Args:
        shards: the run's folder.
        sight: the shards' view, and the tower's normalization.
        template: makes token ids of captions and conversations.
        settings: the training's settings.
        embedder: embeds the labels again where the shards were built for another LLM; else None.

    Raises:
        UserError: every image of the run failed, or run.json has no usable decode settings.
    """

    lengths: npt.NDArray[np.integer[Any]] | None = None
    with_image: npt.NDArray[np.bool_] | None = None

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
            text, problem = Encoded([IMAGE], [False]), ""  # no text to learn from, but L_patch learns from the regions
        if problem:
            return self.nothing._replace(key=sample.key, problem=problem)
        return Example(sample.key, text, self.sight.pixels(sample.image, self.decoding), coverage, embeds)

    def _text(self, sample: Sample) -> tuple[Encoded, str]:
        """Return the sample's token ids and "", or no ids and the reason why there are none."""
        caption, turns = sample.meta["caption"], sample.meta["conversations"]
        if self.template.name == "plain":
            if not caption.strip():
                return NOTHING, "it has no caption"
            return _cut(self.template.caption(caption), self.sight.tokens, self.settings)
        return _dialogue(self.template, cast("list[dict[str, str]]", turns), True, self.sight.tokens, self.settings)


class DialogueExamples:
    """The records of a LLaVA JSON, each with an image or without.

    The JSON is read once. Its records are then kept in a temporary file and read by offset.

    Args:
        source: the JSON, local or remote.
        sight: the view and the normalization of the vision tower.
        template: makes token ids of conversations.
        settings: the training's settings.
        width: number of values in a label embedding.

    Raises:
        UserError: the JSON holds no record, or can't be read.
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
        self.lengths: npt.NDArray[np.integer[Any]] | None = np.array(lengths, np.int32)
        self.with_image: npt.NDArray[np.bool_] | None = np.array(with_image, bool)
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
    """Return what is kept of a record: its key, image ("" for none), turns, and problem ("" for none)."""
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
    # A record without an image passes the same checks, with a file name that is never opened.
    planned = read_record(record, number, key, "none" if image is None else image)
    kept = {"key": key, "image": "" if image is None else planned.source, "turns": list(planned.conversations)}
    return kept | {"problem": planned.problem}


def _dialogue(
    template: Template, turns: list[dict[str, str]], image: bool, image_tokens: int, settings: TrainSettings
) -> tuple[Encoded, str]:
    """Return a conversation's token ids and "", or no ids and the reason why there are none."""
    try:
        return _cut(template(turns, image), image_tokens, settings)
    except ValueError as error:
        return NOTHING, str(error)


def _cut(text: Encoded, image_tokens: int, settings: TrainSettings) -> tuple[Encoded, str]:
    """Cut a sequence to `max_length`; return it and "", or no ids and the reason where no supervised token is left."""
    text = text.cut(settings.max_length, image_tokens)
    if not any(text.supervised):
        return NOTHING, f"nothing of its answers is within max_length = {settings.max_length} tokens"
    return text, ""


def decode_settings(shards: ShardFolder) -> DecodeSettings:
    """Return the settings with which the run decoded its images.

    Raises:
        UserError: run.json holds no usable ones.
    """
    try:
        return DecodeSettings.model_validate(shards.run.settings["decode"])
    except (KeyError, ValidationError) as error:
        rule = f"its run.json has no usable decode settings ({type(error).__name__})"
        raise UserError("shards", shards.folder, rule, "restore run.json, or build the shards again") from error
