"""The stage tag: it finds the tags of each image with RAM or RAM++."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from pad_pipeline.errors import UserError
from pad_pipeline.images import DecodeSettings
from pad_pipeline.records import ImageRecord, Tag
from pad_pipeline.stages.base import Stage
from pad_pipeline.stages.compute import Compute, ComputeSettings, HostCopy
from pad_pipeline.stages.decode import image
from pad_pipeline.stages.ram.checkpoint import load_ram
from pad_pipeline.stages.ram.network import Ram, RamSettings
from pad_pipeline.stages.settings import StageSettings, millions
from pad_pipeline.weights import ModelFile, fetch_file, file_sha256

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


class TaggerSettings(StageSettings, RamSettings):
    """Settings of the tagger: weights, tag list, and thresholds."""

    section, paths = "tagger", ("weights", "tag_list", "thresholds")
    pins: ClassVar = {"weights": "sha256", "tag_list": "tag_list_sha256", "thresholds": "thresholds_sha256"}

    weights: str
    """Local path, `https://...` or `hf://owner/name[@revision]/file` of an official `.pth` or of safetensors."""
    sha256: str = ""
    """sha256 of the weights; empty to accept any."""
    tag_list: str
    """Path or URL of a text file with one tag per line, in the order of the checkpoint's labels."""
    tag_list_sha256: str = ""
    thresholds: str = ""
    """Path or URL of a text file with one probability per tag and line. An image gets tags with higher scores only."""
    thresholds_sha256: str = ""
    threshold: float | None = Field(None, ge=0, le=1)
    """One probability for all tags, instead of `thresholds`."""
    batch_size: int = Field(16, gt=0)
    """Images in one pass of the network."""

    def files(self) -> list[ModelFile]:
        """Return weights, tag list and, if `threshold` is not set, thresholds."""
        names = self.paths if self.threshold is None else ("weights", "tag_list")
        return [ModelFile(f"tagger.{name}", getattr(self, name), getattr(self, self.pins[name])) for name in names]

    def fingerprints(self) -> dict[str, str]:
        """See `StageSettings`. This also checks tag list and thresholds."""
        read_tags(self)
        paths = [fetch_file(file.field, file.reference, file.sha256) for file in self.files()]
        return dict(zip(("tagger", "tag_list", "thresholds"), map(file_sha256, paths), strict=False))

    def check(self) -> str:
        """See `StageSettings`."""
        tagger = self.make(DecodeSettings(), ComputeSettings(precision="float32"))
        sha256 = self.fingerprints()["tagger"]
        return f"{self.family}, {len(tagger.labels)} tags, {millions(tagger.network)}, sha256 {sha256}"

    def make(self, decoding: DecodeSettings, compute: ComputeSettings) -> Tagger:
        """Make a `Tagger`."""
        return Tagger(self, decoding, compute)


class Tagger(Stage[torch.Tensor, tuple[HostCopy, int]]):
    """Runs RAM on batches of images, all stretched to the network's input size."""

    name, statuses = "tag", frozenset({"ok", "empty"})  # an image whose caption names nothing is `empty` before

    def __init__(self, settings: TaggerSettings, decoding: DecodeSettings, compute: ComputeSettings) -> None:
        super().__init__()
        self.settings, self.decoding, self.batch_size = settings, decoding, settings.batch_size
        self.compute = Compute(compute)
        self.labels, thresholds = read_tags(settings)
        self.thresholds = np.array(thresholds, np.float32)
        path = fetch_file("tagger.weights", settings.weights, settings.sha256)
        network = load_ram(Ram(settings, len(self.labels)), path)
        self.network = self.compute.prepare_model(network, in_float32=[network.fc])
        full = (settings.batch_size, 3, settings.image_size, settings.image_size)
        self.network.visual_encoder = self.compute.compiled(network.visual_encoder, full)

    def prepare(self, row: ImageRecord) -> torch.Tensor:
        """Return the resized image, uint8 `[3, S, S]`. The device normalizes it, which saves 3/4 of the transfer."""
        return resize(image(row, self.decoding), self.settings.image_size)

    def process(self, rows: list[ImageRecord], inputs: list[torch.Tensor]) -> list[tuple[HostCopy, int]]:
        """Return a pair for each row: the probabilities of the batch, float32 `[B, tags]`, and the row's index."""
        images = self.compute.send(torch.stack(inputs))
        with self.compute.autocast():
            probabilities = HostCopy(self.network(normalize(images)).float().sigmoid())
        return [(probabilities, index) for index in range(len(rows))]

    def finish(self, row: ImageRecord, output: tuple[HostCopy, int]) -> None:
        """Set the row's tags, in the order of the tag list. An image without tags becomes `empty`."""
        probabilities, position = output
        scores = probabilities.numpy()[position]
        if not np.isfinite(scores).all():
            raise ValueError("the tagger gives no finite numbers for this image")
        found = np.flatnonzero(scores > self.thresholds)
        row.add_tags("tagger", [Tag(self.labels[index], float(scores[index])) for index in found])
        row.status = "ok" if row.tags else "empty"


def resize(image: Image.Image, size: int) -> torch.Tensor:
    """Stretch an image to uint8 `[3, size, size]` with Pillow's bilinear filter, as upstream does."""
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(pixels))


def normalize(pixels: torch.Tensor) -> torch.Tensor:
    """Normalize uint8 `[..., 3, H, W]` to float32 with ImageNet's mean and standard deviation."""
    return (pixels.float() / 255 - MEAN.to(pixels.device)) / STD.to(pixels.device)


def read_tags(settings: TaggerSettings) -> tuple[list[str], list[float]]:
    """Read the tag list and the threshold of each tag.

    Raises:
        UserError: a file is malformed, or the two files have different lengths.
    """
    field = "tagger.tag_list"
    path = fetch_file(field, settings.tag_list, settings.tag_list_sha256)
    labels = _lines(field, path)
    if not labels or len(set(labels)) < len(labels):
        raise UserError(field, path, "it should hold one tag a line, each once", "correct the file")
    if settings.threshold is not None:
        return labels, [settings.threshold] * len(labels)
    field = "tagger.thresholds"
    if not settings.thresholds:
        remedy = "set thresholds = FILE or threshold = NUMBER in the [tagger] section"
        raise UserError(field, "", "no threshold is given", remedy)
    path = fetch_file(field, settings.thresholds, settings.thresholds_sha256)
    try:
        thresholds = [float(line) for line in _lines(field, path)]
    except ValueError as error:
        raise UserError(field, path, f"a line is not a number ({error})", "correct the file") from error
    if not all(0 <= threshold <= 1 for threshold in thresholds):
        raise UserError(field, path, "each line should be a probability, 0 to 1", "correct the file")
    if len(thresholds) != len(labels):
        rule = f"it has {len(thresholds)} lines, and the tag list has {len(labels)}"
        remedy = "a tag list renames the tagger's labels one by one, so both files need a line for each of them"
        raise UserError(field, path, rule, remedy)
    return labels, thresholds


def _lines(field: str, path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(field, path, "it is not a text file", "give a file with one entry a line") from error
