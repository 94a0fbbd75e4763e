"""Tags -> boxes: Grounding DINO finds where each tag is, and what every detector's boxes go through."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from pad_pipeline.errors import UserError
from pad_pipeline.images import DecodeSettings
from pad_pipeline.pretrained import load_tokenizer
from pad_pipeline.records import Alternate, ImageRecord, Region, as_box
from pad_pipeline.stages.base import Stage, chunks
from pad_pipeline.stages.boxes import suppress, to_pixels
from pad_pipeline.stages.compute import Compute, ComputeSettings, HostCopy
from pad_pipeline.stages.decode import image
from pad_pipeline.stages.dino.checkpoint import converted_folder
from pad_pipeline.stages.dino.network import GroundingDino
from pad_pipeline.stages.spans import (
    CLS,
    DOT,
    SEP,
    UNBOXABLE,
    Prompt,
    build_prompts,
    ranked_tags,
    read_unboxable,
    span_scores,
)
from pad_pipeline.weights import fetch_file, fetch_folder, is_file_reference

FILES = [
    "*config.json", "tokenizer*", "vocab.txt", "vocab.json", "merges.txt", "special_tokens_map.json",
    "model*.safetensors*",
]  # fmt: skip
"""What is fetched of a model from the hub, and what its fingerprint is of."""
TOKENIZER_FILES = ["config.json", "tokenizer*", "vocab.txt", "special_tokens_map.json"]


class DetectorSettings(BaseModel):
    """Which detector, and which of its boxes are kept."""

    model_config = ConfigDict(extra="forbid")

    model: str
    """A Grounding DINO, MM Grounding DINO, OWLv2 or OWL-ViT of transformers: local folder or hub name. Or an official
    `groundingdino_*.pth`: path or URL."""
    revision: str = ""
    """Branch, tag or commit on the hub; empty for its default."""
    sha256: str = ""
    """Of `model.safetensors`, or of the `.pth`; empty to accept any."""
    tokenizer: str = "google-bert/bert-base-uncased"
    """Local folder or hub name of BERT's tokenizer, which official `.pth` files lack. Not used for other models."""
    unboxable: str = "default"
    """A text file with the tags that are not looked for, one a line; `default` for the list that comes with pad
    (actions, colors, whole scenes, ...), empty for none."""
    box_threshold: float = Field(0.25, ge=0, le=1)
    """A box is kept where the highest token score of any tag is at least this. Its label is the tag with the highest
    mean token score. OWL gives each tag one score; upstream's examples use 0.1 for it."""
    text_threshold: float = Field(0.2, ge=0, le=1)
    """Other tags with at least this mean token score are kept as its alternates."""
    alternates: int = Field(4, ge=0)
    """How many of them, at most."""
    nms_iou: float = Field(0.5, ge=0, le=1)
    """Of two boxes of one label that overlap more, the one with the lower score goes; 1 keeps both."""
    nms_iou_across_labels: float = Field(0.5, ge=0, le=1)
    """The same whatever their labels, afterwards; 1 keeps a thing and a part of it that fills most of it (a tree, its
    leaves)."""
    min_size: float = Field(1.0, ge=0)
    """Boxes narrower or lower than this many pixels go."""
    pad_to: int = Field(1, gt=0, le=256)
    """Images are padded to multiples of this many pixels. With 1, batches hold only images of exactly one size, and
    scores are upstream's. With 32, far more images share a batch, and scores move by an amount that depends on the
    image alone: about 5e-5 at official size, where training had padding too; the miniature, whose training had none,
    finds a tenth fewer parts. OWL's images have one size anyway."""
    batch_size: int = Field(8, gt=0)
    """Images in one pass of the image encoder, and pairs of image and prompt in one of what follows."""


class Found(NamedTuple):
    """The boxes of one prompt in one image."""

    number: int
    """Of the prompt, among the image's."""
    prompt: Prompt
    probabilities: HostCopy
    """Of all pairs of a batch, `[B, queries, tokens]`."""
    boxes: HostCopy
    """`[B, queries, 4]`, cxcywh as parts of the image."""
    position: int
    """In the batch."""


class BoxStage(Stage):
    """What all detectors of transformers share: their scores and boxes -> the row's regions."""

    name = "ground"
    settings: DetectorSettings

    def finish(self, row: ImageRecord, output: list[Found]) -> None:
        """Set the row's regions, best score first; an image with no box is `empty`."""
        regions = [region for found in output for region in self.regions(row, found)]
        row.regions = suppress(regions, self.settings.nms_iou, self.settings.nms_iou_across_labels)
        if not row.regions:
            row.status = "empty"

    def corners(self, row: ImageRecord, boxes: np.ndarray) -> np.ndarray:
        """The model's boxes `[N, 4]`, cxcywh as parts of what it saw -> xyxy in pixels of the original, inside it."""
        return to_pixels(boxes, row.width, row.height)

    def regions(self, row: ImageRecord, found: Found) -> list[Region]:
        """The boxes that pass the threshold, in pixels, each with its tag and the next best ones."""
        highest, mean = span_scores(found.probabilities.numpy()[found.position], found.prompt)
        if not (np.isfinite(highest).all() and np.isfinite(found.boxes.numpy()[found.position]).all()):
            raise ValueError("the detector gives no finite numbers for this image")
        corners = self.corners(row, found.boxes.numpy()[found.position])
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
            region = Region(
                found.prompt.tags[best], as_box(corners[query]), score=float(highest[query].max()),
                label_score=float(mean[query, best]), alternates=alternates, prompt=found.number,
            )  # fmt: skip
            regions.append(region)
        return regions


class Detector(BoxStage):
    """Grounding DINO: encodes images of one size together, and runs all their prompts over the shared features."""

    def __init__(self, settings: DetectorSettings, decoding: DecodeSettings, compute: ComputeSettings) -> None:
        super().__init__()
        self.settings, self.decoding = settings, decoding
        self.batch_size = settings.batch_size
        folder, tokenizer = find_model(settings)
        try:
            self.model = GroundingDino(folder, Compute(compute))
        except UserError as error:
            if folder != tokenizer:  # converted: the cache is not what the user named
                raise UserError("detector.model", settings.model, error.rule, error.remedy) from error
            raise
        field = "detector.model" if tokenizer == folder else "detector.tokenizer"
        self.tokenizer = load_tokenizer(field, tokenizer)
        self._check_tokens(field, tokenizer)
        self.unboxable = load_unboxable(settings.unboxable)
        self._ids: dict[str, list[int]] = {}

    def _check_tokens(self, field: str, folder: Path) -> None:
        remedy = "use the tokenizer of BERT that the model came with"
        if (known := len(self.tokenizer)) > self.model.words:
            rule = f"it knows {known} tokens, and the model {self.model.words}"
            raise UserError(field, folder, rule, remedy)
        try:
            found = self.tokenizer("a.")["input_ids"]
        except Exception as error:
            raise UserError(field, folder, f"its tokenizer fails ({type(error).__name__})", remedy) from error
        if len(found) < 3 or (found[0], found[-1], found[-2]) != (CLS, SEP, DOT):
            rule = f"[CLS], [SEP] and '.' should be the tokens {CLS}, {SEP} and {DOT}, which are built into the model"
            raise UserError(field, folder, rule, remedy)

    def encode(self, tag: str) -> list[int]:
        """Token ids of one tag, without special tokens; none where the tokenizer does not know a word of it, for all
        unknown words are one to the model."""
        if tag not in self._ids:
            ids = self.tokenizer(tag, add_special_tokens=False)["input_ids"]
            self._ids[tag] = [] if self.tokenizer.unk_token_id in ids else ids
        return self._ids[tag]

    def prompts(self, row: ImageRecord) -> list[Prompt]:
        """The texts in which the row's tags are looked for."""
        return build_prompts([tag.label for tag in row.tags], self.encode, self.model.max_tokens, self.unboxable)

    def shape(self, row: ImageRecord) -> tuple[int, int]:
        """Height and width of the resized and padded image."""
        height, width = self.model.resized(row.width, row.height)
        step = self.settings.pad_to
        height, width = -(-height // step) * step, -(-width // step) * step
        while self.model.positions(height, width) < self.model.queries:  # a strip: padded, it has places enough
            height, width = (height + 32, width) if height < width else (height, width + 32)
        return height, width

    def length(self, row: ImageRecord) -> int:
        """Tokens of the longest prompt."""
        return max((len(prompt.ids) for prompt in self.prompts(row)), default=0)

    def prepare(self, row: ImageRecord) -> torch.Tensor:
        """The resized image, uint8 `[3, H, W]`."""
        return self.model.prepare(image(row, self.decoding))

    def process(self, rows: list[ImageRecord], inputs: list[torch.Tensor]) -> list[list[Found]]:
        """What each row's prompts found."""
        found: list[list[Found]] = [[] for _ in rows]
        prompts = [self.prompts(row) for row in rows]
        asked = [index for index, its in enumerate(prompts) if its]  # the others' tags can't be boxed
        if not asked:
            return found
        features = self.model.encode([inputs[index] for index in asked], self.shape(rows[0]))
        pairs = [(position, number) for position, index in enumerate(asked) for number in range(len(prompts[index]))]
        for batch in chunks(pairs, 1 if self.tight else self.batch_size):
            texts = [prompts[asked[position]][number].ids for position, number in batch]
            both = self.model.detect(features, [position for position, _ in batch], texts)
            probabilities, boxes = (HostCopy(tensor) for tensor in both)
            for row, (position, number) in enumerate(batch):
                index = asked[position]
                found[index].append(Found(number, prompts[index][number], probabilities, boxes, row))
        return found


def find_model(settings: DetectorSettings) -> tuple[Path, Path]:
    """The model's folder and its tokenizer's, fetched, checked against the pinned sha256 and converted.

    Raises:
        UserError: it is not there, can't be reached, or is another file than it should be.
    """
    field = "detector.model"
    if is_file_reference(settings.model):
        folder = converted_folder(fetch_file(field, settings.model, settings.sha256))
        return folder, fetch_folder("detector.tokenizer", settings.tokenizer, "", TOKENIZER_FILES)
    folder = fetch_folder(field, settings.model, settings.revision, FILES)
    if settings.sha256:
        fetch_file(field, str(folder / "model.safetensors"), settings.sha256)
    return folder, folder


def load_unboxable(reference: str) -> frozenset[str]:
    """The tags that are not looked for.

    Args:
        reference: `DetectorSettings.unboxable`.

    Raises:
        UserError: the file can't be read.
    """
    if not reference:
        return frozenset()
    path = UNBOXABLE if reference == "default" else fetch_file("detector.unboxable", reference)
    try:
        return read_unboxable(path)
    except (OSError, UnicodeDecodeError) as error:
        rule = f"it can't be read ({type(error).__name__})"
        raise UserError("detector.unboxable", path, rule, "give a text file with one tag a line") from error
