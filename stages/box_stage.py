"""The base class of the detectors of transformers: their settings, their files, and how scores become regions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import cache
from itertools import compress
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
"""pad's list of tags that can't have a box: actions, colors, whole scenes, times, styles, ideas."""

FILES = [
    "*config.json", "tokenizer*", "vocab.txt", "vocab.json", "merges.txt", "special_tokens_map.json",
    "model*.safetensors*",
]  # fmt: skip
"""The files of a model that are fetched from the hub and hashed for its fingerprint."""
TOKENIZER_FILES = ["config.json", "tokenizer*", "vocab.txt", "special_tokens_map.json"]


class BoxSettings(StageSettings):
    """Settings of all detectors of transformers: the model, and the limits for its boxes."""

    section, paths, pins = "detector", ("model", "tokenizer", "unboxable"), {"model": "sha256"}

    model: str
    """Local folder or hub name of a Grounding DINO, MM Grounding DINO, LLMDet, OWLv2, OWL-ViT or OmDet-Turbo of
    transformers, or path or URL of an official `groundingdino_*.pth`."""
    revision: str = ""
    """Branch, tag or commit on the hub; empty for the pinned one (`pad_pipeline/pins.py`), or else for its default."""
    sha256: str = ""
    """sha256 of `model.safetensors`, or of the `.pth`; empty to accept any."""
    tokenizer: str = "google-bert/bert-base-uncased"
    """Local folder or hub name of BERT's tokenizer. Only official `.pth` files need it."""
    unboxable: str = "default"
    """A text file with the tags that the detector does not look for, one per line. `default` is pad's list (actions,
    colors, whole scenes, ...); empty for no list."""
    box_threshold: float = Field(0.25, ge=0, le=1)
    """A box is kept if at least one token of any tag has this score. The label of the box is the tag with the highest
    mean token score. OWL and OmDet-Turbo give each tag a single score; their authors use the thresholds 0.1 and 0.3."""
    text_threshold: float = Field(0.2, ge=0, le=1)
    """Other tags whose mean token score is at least this become alternates of the region."""
    alternates: int = Field(4, ge=0)
    """The most alternates that a region keeps."""
    nms_iou: float = Field(0.5, ge=0, le=1)
    """If two boxes of one label have a higher IoU, the box with the lower score is dropped; 1 keeps both."""
    nms_iou_across_labels: float = Field(0.5, ge=0, le=1)
    """The same limit for boxes of any labels, applied afterwards. 1 keeps both an object and a part that fills most of
    it, such as a tree and its leaves."""
    min_size: float = Field(1.0, ge=0)
    """Boxes whose width or height is below this many pixels are dropped."""
    pad_to: int = Field(32, gt=0, le=256)
    """Images are padded to multiples of this many pixels, so that images of many sizes share a batch. The padding of an
    image changes its scores: by about 5e-5 for official models, which were trained with padding. With 1, the scores
    equal upstream's for one image, and most batches of photographs hold one image. The miniature has 1, because it was
    trained without padding, and would find a tenth fewer parts. OWL and OmDet-Turbo resize all images to one size."""
    batch_size: int = Field(8, gt=0)
    """Images in one pass of the image encoder, and (image, prompt) pairs in one pass of the rest of the network."""

    def files(self) -> list[ModelFile]:
        """Return the model, the tokenizer of an official file, and the user's list of unboxable tags, if any."""
        files = [ModelFile("detector.model", self.model, self.sha256, self.revision, patterns=FILES)]
        if is_file_reference(self.model):
            files.append(ModelFile("detector.tokenizer", self.tokenizer, patterns=TOKENIZER_FILES))
        return files + unboxable_files(self.unboxable)

    def fingerprints(self) -> dict[str, str]:
        """See `StageSettings`. An official file is hashed before its conversion, because the result of the conversion
        depends on library versions."""
        _, tokenizer = find_model(self)
        return unboxable_fingerprint(self.unboxable) | {
            "detector": path_sha256(fetch_file_or_folder(self.files()[0], FILES), FILES),
            "detector_tokenizer": folder_sha256(tokenizer, ["tokenizer*", "vocab.txt"]),
        }


class Answer(NamedTuple):
    """The detector's output for one prompt of one image, with the arrays of the whole batch."""

    number: int
    """Index of the prompt in the list of the image's prompts."""
    prompt: Prompt
    probabilities: HostCopy
    """Token scores of all (image, prompt) pairs of a batch, `[B, queries, tokens]`, 0..1."""
    boxes: HostCopy
    """Boxes of all pairs of the batch, `[B, queries, 4]`, cxcywh as fractions of the model's input."""
    position: int
    """Index of this pair in the batch."""


class BoxStage(Stage[Tensor, list[Answer]]):
    """Base class of the detection stages. It asks the detector for an image's tags, and turns boxes into regions."""

    name = "ground"
    model: Any
    """The detector on its device. Its method `prepare` turns an image into the network's input."""

    def __init__(self, settings: BoxSettings, decoding: DecodeSettings) -> None:
        super().__init__()
        self.settings, self.decoding, self.batch_size = settings, decoding, settings.batch_size
        self.unboxable = load_unboxable(settings.unboxable)
        self.encode: Callable[[str], list[int]] = cache(self.tokenize)

    @abstractmethod
    def tokenize(self, tag: str) -> list[int]:
        """Return the token ids of one normalized tag; an empty list if the detector can't look for it."""

    @abstractmethod
    def prompts(self, row: ImageRecord) -> list[Prompt]:
        """Return the prompts for an image. They contain the tags that can have a box."""

    @abstractmethod
    def detect(self, rows: list[ImageRecord], prompts: list[list[Prompt]], inputs: list[Tensor]) -> list[list[Answer]]:
        """Return the detector's answers for each row, one for each prompt. Each row has at least one prompt."""

    def prepare(self, row: ImageRecord) -> Tensor:
        """Return the image as input for the detector."""
        prepared: Tensor = self.model.prepare(image(row, self.decoding))
        return prepared

    def process(self, rows: list[ImageRecord], inputs: list[Tensor]) -> list[list[Answer]]:
        """Return the detector's answers for each row, one for each prompt. Rows without prompts do not reach it."""
        prompts = [self.prompts(row) for row in rows]
        asked = [of_row for of_row in prompts if of_row]
        answers = iter(self.detect([*compress(rows, prompts)], asked, [*compress(inputs, prompts)]) if asked else [])
        return [next(answers) if of_row else [] for of_row in prompts]

    def finish(self, row: ImageRecord, output: list[Answer]) -> None:
        """Set the row's regions, highest score first. An image without a box becomes `empty`."""
        regions = [region for answer in output for region in self.regions(row, answer)]
        row.regions = suppress(regions, self.settings.nms_iou, self.settings.nms_iou_across_labels)
        row.status = "ok" if row.regions else "empty"

    def corners(self, row: ImageRecord, boxes: np.ndarray) -> np.ndarray:
        """Convert boxes `[N, 4]`: cxcywh in fractions of the model's input -> xyxy in pixels, clipped to the image."""
        return to_pixels(boxes, row.width, row.height)

    def regions(self, row: ImageRecord, answer: Answer) -> list[Region]:
        """Return a region for each box that passes the thresholds. Its label is the best tag; others are alternates."""
        highest, mean = span_scores(answer.probabilities.numpy()[answer.position], answer.prompt)
        boxes = answer.boxes.numpy()[answer.position]
        if not (np.isfinite(highest).all() and np.isfinite(boxes).all()):
            raise ValueError("the detector gives no finite numbers for this image")
        corners = self.corners(row, boxes)
        wide = (corners[:, 2:] - corners[:, :2]).min(1) >= self.settings.min_size
        kept = np.flatnonzero(wide & (highest.max(1) >= self.settings.box_threshold))
        regions = []
        for query, ranked in zip(kept, ranked_tags(mean[kept], answer.prompt), strict=True):
            best, others = ranked[0], ranked[1 : 1 + self.settings.alternates]
            alternates = [
                Alternate(answer.prompt.tags[tag], float(highest[query, tag]), float(mean[query, tag]))
                for tag in others
                if mean[query, tag] >= self.settings.text_threshold
            ]
            label, scores = answer.prompt.tags[best], (float(highest[query].max()), float(mean[query, best]))
            regions.append(Region(label, as_box(corners[query]), *scores, alternates, answer.number))
        return regions


def searched(
    row: ImageRecord, unboxable: frozenset[str], encode: Callable[[str], list[int]], max_tokens: int
) -> dict[str, str]:
    """Return the row's tags to look for, by their normalized text.

    Of tags with the same normalized text, only the first is returned. Tags that are too long for the model and tags
    that can't have a box are left out.
    """
    tags: dict[str, str] = {}
    for tag in row.tags:
        text = normalize(tag.label)
        if text and text not in unboxable and len(encode(text)) <= max_tokens:
            tags.setdefault(text, tag.label)
    return tags


def one_token_prompts(
    row: ImageRecord, unboxable: frozenset[str], encode: Callable[[str], list[int]], max_tokens: int
) -> list[Prompt]:
    """Return one prompt in which each tag of `searched` counts as one token; no prompt if there is none."""
    tags = searched(row, unboxable, encode, max_tokens)
    return [Prompt([], [*tags.values()], [(at, at + 1) for at in range(len(tags))])] if tags else []


def find_model(settings: BoxSettings) -> tuple[Path, Path]:
    """Fetch the model, check its sha256, convert an official file, and return the folders of model and tokenizer.

    Raises:
        UserError: a file is missing, can't be fetched, or has another sha256 than the settings say.
    """
    path = fetch_file_or_folder(settings.files()[0], FILES)
    if path.is_dir():
        return path, path
    return converted_folder(path), fetch_folder("detector.tokenizer", settings.tokenizer, "", TOKENIZER_FILES)


def load_unboxable(reference: str, field: str = "detector.unboxable") -> frozenset[str]:
    """Return the normalized tags of the file that the setting `unboxable` names. In the file, `#` starts a comment.

    Raises:
        UserError: the file can't be read.
    """
    if not reference:
        return frozenset()
    path = _unboxable_path(reference, field)
    try:
        lines = [line.partition("#")[0] for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        rule = f"it can't be read ({type(error).__name__})"
        raise UserError(field, path, rule, "give a text file with one tag a line") from error
    return frozenset(tag for line in lines if (tag := normalize(line)))


def unboxable_files(reference: str, field: str = "detector.unboxable") -> list[ModelFile]:
    """Return the file that the setting `unboxable` names, if it is the user's own file."""
    return [] if reference in ("", "default") else [ModelFile(field, reference)]


def unboxable_fingerprint(reference: str, field: str = "detector.unboxable") -> dict[str, str]:
    """Return the sha256 of the file that the setting `unboxable` names; empty if there is no list."""
    return {"unboxable": file_sha256(_unboxable_path(reference, field))} if reference else {}


def _unboxable_path(reference: str, field: str) -> Path:
    return UNBOXABLE if reference == "default" else fetch_file(field, reference)
