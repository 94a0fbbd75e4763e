"""What all detectors of transformers share: their settings and files, and the way from scores and boxes to regions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field
from torch import Tensor

from pad_pipeline.errors import UserError
from pad_pipeline.images import DecodeSettings
from pad_pipeline.records import Alternate, ImageRecord, Region, as_box
from pad_pipeline.stages.base import Stage
from pad_pipeline.stages.boxes import suppress, to_pixels
from pad_pipeline.stages.compute import HostCopy
from pad_pipeline.stages.decode import image
from pad_pipeline.stages.dino.checkpoint import converted_folder
from pad_pipeline.stages.settings import StageSettings, fetch_file_or_folder, path_sha256
from pad_pipeline.stages.spans import Prompt, normalize, ranked_tags, span_scores
from pad_pipeline.weights import ModelFile, fetch_file, fetch_folder, file_sha256, folder_sha256, is_file_reference

UNBOXABLE = Path(__file__).with_name("unboxable.txt")
"""The file of tags that name nothing with a box: actions, colors, whole scenes, times, styles, ideas."""

FILES = [
    "*config.json", "tokenizer*", "vocab.txt", "vocab.json", "merges.txt", "special_tokens_map.json",
    "model*.safetensors*",
]  # fmt: skip
"""The files of a model that are fetched from the hub, and that its fingerprint covers."""
TOKENIZER_FILES = ["config.json", "tokenizer*", "vocab.txt", "special_tokens_map.json"]


class BoxSettings(StageSettings):
    """Settings that all detectors of transformers share: the model, and which of its boxes are kept."""

    section, paths, pins = "detector", ("model", "tokenizer", "unboxable"), {"model": "sha256"}

    model: str
    """A Grounding DINO, MM Grounding DINO, OWLv2 or OWL-ViT of transformers: local folder or hub name. Or an official
    `groundingdino_*.pth`: path or URL."""
    revision: str = ""
    """Branch, tag or commit on the hub; empty for its default."""
    sha256: str = ""
    """sha256 of `model.safetensors`, or of the `.pth`; empty to accept any."""
    tokenizer: str = "google-bert/bert-base-uncased"
    """Local folder or hub name of BERT's tokenizer, which official `.pth` files lack. Not used for other models."""
    unboxable: str = "default"
    """A text file with the tags that are not looked for, one per line. `default` is the list that comes with pad
    (actions, colors, whole scenes, ...); empty for none."""
    box_threshold: float = Field(0.25, ge=0, le=1)
    """A box is kept if the highest token score of any tag is at least this. Its label is the tag with the highest mean
    token score. OWL gives each tag one score; upstream's examples use 0.1 for it."""
    text_threshold: float = Field(0.2, ge=0, le=1)
    """Other tags with at least this mean token score become alternates of the region."""
    alternates: int = Field(4, ge=0)
    """The most alternates that a region keeps."""
    nms_iou: float = Field(0.5, ge=0, le=1)
    """Of two boxes of one label whose IoU is above this, the one with the lower score is dropped; 1 keeps both."""
    nms_iou_across_labels: float = Field(0.5, ge=0, le=1)
    """The same for two boxes of any labels, applied afterwards; 1 keeps a thing and a part that fills most of it (a
    tree and its leaves)."""
    min_size: float = Field(1.0, ge=0)
    """Boxes whose width or height is below this many pixels are dropped."""
    pad_to: int = Field(1, gt=0, le=256)
    """Images are padded to multiples of this many pixels. With 1, all images of a batch have the same size, and scores
    are upstream's. With 32, far more images share a batch, and each score changes by an amount that depends on its
    image alone: about 5e-5 at official size, where training had padding too; the miniature, whose training had none,
    finds a tenth fewer parts. OWL's images have one size anyway."""
    batch_size: int = Field(8, gt=0)
    """Images in one pass of the image encoder, and pairs of image and prompt in one pass of the rest of the network."""

    def files(self) -> list[ModelFile]:
        """Return the model, the tokenizer of an official file, and the user's list of unboxable tags, if any."""
        files = [ModelFile("detector.model", self.model, self.sha256, self.revision)]
        if is_file_reference(self.model):
            files.append(ModelFile("detector.tokenizer", self.tokenizer))
        return files + unboxable_files(self.unboxable)

    def fingerprints(self) -> dict[str, str]:
        """See `StageSettings`. An official file is hashed as it was fetched, because the converted files change with
        the versions of libraries."""
        _, tokenizer = find_model(self)
        return unboxable_fingerprint(self.unboxable) | {
            "detector": path_sha256(fetch_file_or_folder(self.files()[0], FILES), FILES),
            "detector_tokenizer": folder_sha256(tokenizer, ["tokenizer*", "vocab.txt"]),
        }


class Found(NamedTuple):
    """The output of the detector for one prompt of one image."""

    number: int
    """Index of the prompt among the image's prompts."""
    prompt: Prompt
    probabilities: HostCopy
    """Token scores of all pairs of a batch, `[B, queries, tokens]`, 0..1."""
    boxes: HostCopy
    """Boxes of all pairs of a batch, `[B, queries, 4]`, cxcywh as fractions of the image."""
    position: int
    """Index of this image and prompt in the batch."""


class BoxStage(Stage[Tensor, list[Found]]):
    """Base of the stages with a detector of transformers: it asks for a row's tags, and makes regions of the answer."""

    name = "ground"
    model: Any
    """The detector on its device; its `prepare` turns an image into the input of the network."""

    def __init__(self, settings: BoxSettings, decoding: DecodeSettings) -> None:
        super().__init__()
        self.settings, self.decoding, self.batch_size = settings, decoding, settings.batch_size
        self.unboxable = load_unboxable(settings.unboxable)
        self.encode: Callable[[str], list[int]] = cache(self.tokenize)

    @abstractmethod
    def tokenize(self, tag: str) -> list[int]:
        """Return the token ids of one normalized tag; none if the tag can't be looked for."""

    @abstractmethod
    def prompts(self, row: ImageRecord) -> list[Prompt]:
        """Return the prompts with those of the row's tags that can have a box."""

    @abstractmethod
    def detect(self, rows: list[ImageRecord], prompts: list[list[Prompt]], inputs: list[Tensor]) -> list[list[Found]]:
        """Return for each row the detector's output for each of its prompts. Every row has a prompt."""

    def prepare(self, row: ImageRecord) -> Tensor:
        """Return the image as the detector takes it."""
        prepared: Tensor = self.model.prepare(image(row, self.decoding))
        return prepared

    def process(self, rows: list[ImageRecord], inputs: list[Tensor]) -> list[list[Found]]:
        """Return for each row the detector's output for each of its prompts; none for a row without a boxable tag."""
        prompts = [self.prompts(row) for row in rows]
        asked = [index for index, of_row in enumerate(prompts) if of_row]
        if not asked:
            return [[] for _ in rows]
        found = self.detect([rows[i] for i in asked], [prompts[i] for i in asked], [inputs[i] for i in asked])
        by_index = dict(zip(asked, found, strict=True))
        return [by_index.get(index, []) for index in range(len(rows))]

    def finish(self, row: ImageRecord, output: list[Found]) -> None:
        """Set the row's regions, best score first; an image without a box is `empty`."""
        regions = [region for found in output for region in self.regions(row, found)]
        row.regions = suppress(regions, self.settings.nms_iou, self.settings.nms_iou_across_labels)
        row.status = "ok" if row.regions else "empty"

    def corners(self, row: ImageRecord, boxes: np.ndarray) -> np.ndarray:
        """Convert boxes `[N, 4]`, cxcywh as fractions of the model's input, to xyxy in pixels, clipped to the image."""
        return to_pixels(boxes, row.width, row.height)

    def regions(self, row: ImageRecord, found: Found) -> list[Region]:
        """Return a region for each box that passes the thresholds, with its best tag and its alternates."""
        highest, mean = span_scores(found.probabilities.numpy()[found.position], found.prompt)
        boxes = found.boxes.numpy()[found.position]
        if not (np.isfinite(highest).all() and np.isfinite(boxes).all()):
            raise ValueError("the detector gives no finite numbers for this image")
        corners = self.corners(row, boxes)
        wide = (corners[:, 2:] - corners[:, :2]).min(1) >= self.settings.min_size
        kept = np.flatnonzero(wide & (highest.max(1) >= self.settings.box_threshold))
        regions = []
        for query, ranked in zip(kept, ranked_tags(mean[kept], found.prompt), strict=True):
            best, others = ranked[0], ranked[1 : 1 + self.settings.alternates]
            alternates = [
                Alternate(found.prompt.tags[tag], float(highest[query, tag]), float(mean[query, tag]))
                for tag in others
                if mean[query, tag] >= self.settings.text_threshold
            ]
            label, scores = found.prompt.tags[best], (float(highest[query].max()), float(mean[query, best]))
            regions.append(Region(label, as_box(corners[query]), *scores, alternates, found.number))
        return regions


def find_model(settings: BoxSettings) -> tuple[Path, Path]:
    """Return the model's folder and its tokenizer's folder: fetched, checked against the pinned sha256, and converted.

    Raises:
        UserError: one of them is not there, can't be reached, or does not have the pinned sha256.
    """
    path = fetch_file_or_folder(settings.files()[0], FILES)
    if path.is_dir():
        return path, path
    return converted_folder(path), fetch_folder("detector.tokenizer", settings.tokenizer, "", TOKENIZER_FILES)


def load_unboxable(reference: str) -> frozenset[str]:
    """Return the tags that are not looked for, normalized. Their file has one tag on each line; `#` starts a comment.

    Raises:
        UserError: the file can't be read.
    """
    if not reference:
        return frozenset()
    path = _unboxable_path(reference)
    try:
        lines = [line.partition("#")[0] for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        rule = f"it can't be read ({type(error).__name__})"
        raise UserError("detector.unboxable", path, rule, "give a text file with one tag a line") from error
    return frozenset(tag for line in lines if (tag := normalize(line)))


def unboxable_files(reference: str) -> list[ModelFile]:
    """Return the file of tags that are not looked for, if it is the user's own."""
    return [] if reference in ("", "default") else [ModelFile("detector.unboxable", reference)]


def unboxable_fingerprint(reference: str) -> dict[str, str]:
    """Return the sha256 of the list of tags that are not looked for; nothing if there is no list."""
    return {"unboxable": file_sha256(_unboxable_path(reference))} if reference else {}


def _unboxable_path(reference: str) -> Path:
    return UNBOXABLE if reference == "default" else fetch_file("detector.unboxable", reference)
