"""The stages ground and segment in one, with SAM 3: it finds boxes and masks for each tag."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torchvision.ops import box_iou

from pad_pipeline.errors import UserError
from pad_pipeline.images import DecodeSettings
from pad_pipeline.pretrained import load_tokenizer
from pad_pipeline.records import Alternate, ImageRecord, Region, as_box
from pad_pipeline.stages.base import Stage, chunks
from pad_pipeline.stages.box_stage import FILES, load_unboxable, searched, unboxable_files, unboxable_fingerprint
from pad_pipeline.stages.boxes import suppress
from pad_pipeline.stages.compute import Compute, ComputeSettings, HostCopy
from pad_pipeline.stages.decode import image
from pad_pipeline.stages.rle import encode_runs, run_starts
from pad_pipeline.stages.sam.concepts import Found, Sam3
from pad_pipeline.stages.settings import StageSettings, fetch_file_or_folder, millions, path_sha256
from pad_pipeline.weights import ModelFile

PHRASES_KEPT = 8192
"""Phrases whose features stay on the device, with 32 KB each."""


class ConceptSettings(StageSettings):
    """Settings of SAM 3, which does the work of detector and segmenter: the model, and the limits for its regions."""

    section, paths, pins = "concepts", ("model", "unboxable"), {"model": "sha256"}

    model: str
    """Local folder or hub name of a SAM 3 or SAM 3 LiteText of transformers, such as `facebook/sam3`."""
    revision: str = ""
    """Branch, tag or commit on the hub; empty for the pinned one (`pad_pipeline/pins.py`), or else for its default."""
    sha256: str = ""
    """sha256 of `model.safetensors`; empty to accept any."""
    unboxable: str = "default"
    """A text file with the tags that the model does not look for, one per line. `default` is pad's list (actions,
    colors, whole scenes, ...); empty for no list."""
    threshold: float = Field(0.5, ge=0, le=1)
    """A region is kept if its score is above this limit. The score is the probability that the image shows the tag at
    all, times the probability that the box does. 0.5 is the default of the authors' package; that of transformers is
    0.3."""
    mask_threshold: float = Field(0.5, ge=0, le=1)
    """A pixel belongs to a mask if its probability is above this limit."""
    alternates: int = Field(4, ge=0)
    """The most alternates that a region keeps: labels of other tags whose boxes were dropped for this region."""
    nms_iou: float = Field(0.7, ge=0, le=1)
    """If two boxes of one label have a higher IoU, the box with the lower score is dropped; 1 keeps both."""
    nms_iou_across_labels: float = Field(0.7, ge=0, le=1)
    """The same limit for boxes of any labels, applied afterwards: one thing that was found for several tags. SAM 3's
    boxes are tight, so the limit is higher than that of the detectors, which keeps more of a crowd."""
    min_size: float = Field(1.0, ge=0)
    """Boxes whose width or height is below this many pixels are dropped."""
    batch_size: int = Field(2, gt=0)
    """Images in one pass of the image encoder."""
    phrases_per_call: int = Field(8, gt=0)
    """Tags of one image in one call of the network that finds boxes."""
    pixels_upscaled: int = Field(64_000_000, gt=0)
    """Mask pixels that are upscaled at a time, with 4 bytes each; at least one mask is upscaled."""

    def files(self) -> list[ModelFile]:
        """Return the model, and the user's list of unboxable tags, if any."""
        model = ModelFile("concepts.model", self.model, self.sha256, self.revision, patterns=FILES)
        return [model, *unboxable_files(self.unboxable, "concepts.unboxable")]

    def fetched(self) -> Path:
        """Fetch the model and return its folder; raise `UserError` if it can't be fetched, or is a file."""
        path = fetch_file_or_folder(self.files()[0], FILES)
        if not path.is_dir():
            rule = "this is a file, and should be a model folder of transformers"
            raise UserError("concepts.model", self.model, rule, "name the folder, or `facebook/sam3`")
        return path

    def fingerprints(self) -> dict[str, str]:
        """See `StageSettings`."""
        unboxable = unboxable_fingerprint(self.unboxable, "concepts.unboxable")
        return unboxable | {"concepts": path_sha256(self.fetched(), FILES)}

    def check(self) -> str:
        """See `StageSettings`."""
        stage = self.make(DecodeSettings(), ComputeSettings(precision="float32"))
        found = f"{stage.model.name}, {millions(stage.model.model)}"
        return f"{found}, {len(stage.unboxable)} tags in the list of unboxable tags"

    def make(self, decoding: DecodeSettings, compute: ComputeSettings) -> ConceptSegmenter:
        """Make a `ConceptSegmenter`."""
        return ConceptSegmenter(self, decoding, compute)


Masks = list[tuple[Region, HostCopy, int]]
"""Regions, each with masks from `run_starts`, uint8 `[n, ceil(H * W / 8)]`, and the index of its mask among them."""


class ConceptSegmenter(Stage[Tensor, tuple[list[Region], Masks]]):
    """Runs SAM 3: the image encoder once for an image, the text encoder once for a tag, and the rest once for a pair.

    Masks are only computed for the regions that are left after duplicates were dropped.
    """

    name = "segment"

    def __init__(self, settings: ConceptSettings, decoding: DecodeSettings, compute: ComputeSettings) -> None:
        super().__init__()
        self.settings, self.decoding, self.batch_size = settings, decoding, settings.batch_size
        self.unboxable = load_unboxable(settings.unboxable, "concepts.unboxable")
        folder = settings.fetched()
        self.model = Sam3(folder, Compute(compute))
        self.tokenizer = load_tokenizer("concepts.model", folder)
        if (known := len(self.tokenizer)) > self.model.words or self.tokenizer.pad_token_id is None:
            rule = f"its tokenizer knows {known} tokens, and the model {self.model.words}; it needs a padding token"
            raise UserError("concepts.model", folder, rule, "fetch the model again")
        self.tokenize: Callable[[str], list[int]] = cache(lambda phrase: self.tokenizer(phrase)["input_ids"])
        self.embed = lru_cache(PHRASES_KEPT)(self._embed)

    def _embed(self, phrase: str) -> tuple[Tensor, Tensor]:
        return self.model.embed(self.tokenize(phrase), self.tokenizer.pad_token_id)

    def phrases(self, row: ImageRecord) -> dict[str, str]:
        """See `searched`."""
        return searched(row, self.unboxable, self.tokenize, self.model.max_tokens)

    def prepare(self, row: ImageRecord) -> Tensor:
        """Return the image as input for the model."""
        return self.model.prepare(image(row, self.decoding))

    def process(self, rows: list[ImageRecord], inputs: list[Tensor]) -> list[tuple[list[Region], Masks]]:
        """Return the regions of each row, and their masks. Rows without phrases do not reach the model."""
        phrases = [self.phrases(row) for row in rows]
        asked = [pixels for pixels, of_row in zip(inputs, phrases, strict=True) if of_row]
        maps = iter(zip(*(torch.split(one, 1) for one in self.model.encode(asked)), strict=True) if asked else [])
        return [
            self._segment(row, [*next(maps)], of_row) if of_row else ([], [])
            for row, of_row in zip(rows, phrases, strict=True)
        ]

    def _segment(self, row: ImageRecord, maps: list[Tensor], phrases: dict[str, str]) -> tuple[list[Region], Masks]:
        """Return the regions of one image, the highest score first, and their masks."""
        at_once = 1 if self.low_memory else self.settings.phrases_per_call
        calls = [self.model.find(maps, [*map(self.embed, call)]) for call in chunks([*phrases], at_once)]
        places: dict[int, tuple[int, int]] = {}
        """`id` of a region -> index of its phrase, and of its box among the boxes of the phrase."""
        regions: list[Region] = []
        for prompt, label in enumerate(phrases.values()):
            for query, region in self._regions(row, label, prompt, calls[prompt // at_once], prompt % at_once):
                places[id(region)] = prompt, query
                regions.append(region)
        kept = self._without_duplicates(regions)
        masks: Masks = []
        for prompt in sorted({places[id(region)][0] for region in kept}):
            of_prompt = [region for region in kept if places[id(region)][0] == prompt]
            queries = [places[id(region)][1] for region in of_prompt]
            probabilities = self.model.masks(maps, calls[prompt // at_once], prompt % at_once, queries)
            part = max(1, self.settings.pixels_upscaled // (row.height * row.width))
            for some, coarse in zip(chunks(of_prompt, part), torch.split(probabilities, part), strict=True):
                with torch.inference_mode():
                    fine = F.interpolate(coarse[None], (row.height, row.width), mode="bilinear", align_corners=False)
                    starts = HostCopy(run_starts(fine[0] > self.settings.mask_threshold))
                masks += [(region, starts, index) for index, region in enumerate(some)]
        return kept, masks

    def _regions(
        self, row: ImageRecord, label: str, prompt: int, found: Found, phrase: int
    ) -> Iterator[tuple[int, Region]]:
        """Yield a region for each box of a phrase above the threshold, with the index of the box."""
        scores, boxes = found.scores.numpy()[phrase], found.boxes.numpy()[phrase]
        if not (np.isfinite(scores).all() and np.isfinite(boxes).all()):
            raise ValueError("the model gives no finite numbers for this image")
        edges = np.array([row.width, row.height] * 2)
        corners = (boxes.astype(np.float64) * edges).clip(0, edges)
        wide = (corners[:, 2:] - corners[:, :2]).min(1) >= self.settings.min_size
        for query in np.flatnonzero(wide & (scores > self.settings.threshold)).tolist():
            score = float(scores[query])
            yield query, Region(label, as_box(corners[query]), score, score, prompt=prompt)

    def _without_duplicates(self, regions: list[Region]) -> list[Region]:
        """Return the regions without duplicates. The label of a dropped region becomes an alternate of the region with
        a higher score that covers it best, if that has another label."""
        settings = self.settings
        kept = suppress(regions, settings.nms_iou, settings.nms_iou_across_labels)
        left = {id(region) for region in kept}
        dropped = sorted((region for region in regions if id(region) not in left), key=lambda region: -region.score)
        if dropped:
            boxes = (torch.tensor([region.box for region in part], dtype=torch.float64) for part in (dropped, kept))
            scores = (torch.tensor([region.score for region in part]) for part in (dropped, kept))
            higher = torch.le(*(part.unsqueeze(dim) for dim, part in zip((1, 0), scores, strict=True)))
            overlaps, best = (box_iou(*boxes) * higher).max(1)
            alike = (overlaps > settings.nms_iou_across_labels).tolist()
            for region, near, index in zip(dropped, alike, best.tolist(), strict=True):
                winner = kept[index]
                labels = {winner.label, *(alternate.label for alternate in winner.alternates)}
                if near and region.label not in labels and len(winner.alternates) < settings.alternates:
                    winner.alternates.append(Alternate(region.label, region.score, region.label_score))
        return kept

    def finish(self, row: ImageRecord, output: tuple[list[Region], Masks]) -> None:
        """Set the row's regions, with their masks. An image without a region becomes `empty`."""
        row.regions, masks = output
        for region, starts, index in masks:
            region.rle = encode_runs(starts.numpy()[index], row.width, row.height)
        row.status = "ok" if row.regions else "empty"
