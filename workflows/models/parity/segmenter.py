"""Compare the segmenter with the authors' SAM, SAM-HQ or SAM 2.1, or with transformers' own path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask

from pad_pipeline.pretrained import read_config
from pad_pipeline.records import Region
from pad_pipeline.stages.sam.hub import KINDS, HubSam
from pad_pipeline.stages.segment import SegmenterSettings
from pad_pipeline.workflows.models.parity.base import (
    COMPUTE,
    DECODING,
    Comparison,
    Measure,
    NotCompared,
    Numbers,
    Subject,
    as_checkpoint,
    input_levels,
    largest,
)

OVERLAP = 1e-3
"""The tolerance of 1 - IoU of two masks: float32 sums in another order flip single pixels, whose logit is 0."""
QUALITY = 1e-3
"""The tolerance of the predicted IoU, 0..1, in float32."""
SIZES = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
"""Channels of the encoder -> upstream's name for a SAM or SAM-HQ of that size."""
HIERA = {12: "t", 16: "s", 24: "b+", 48: "l"}
"""Blocks of the encoder -> upstream's name for a SAM 2.1 of that size."""
CLASSES = {
    "sam": ("SamModel", "SamProcessor"),
    "sam_hq": ("SamHQModel", "SamHQProcessor"),
    "sam2": ("Sam2Model", "Sam2Processor"),
    "sam2_video": ("Sam2Model", "Sam2Processor"),
}
"""`model_type` -> transformers' classes of model and processor."""
MOST = 8
"""The most boxes that are asked for."""
UPSTREAM = {
    "sam": ("segment_anything", "pip install segment-anything", "https://github.com/facebookresearch/segment-anything"),
    "sam_hq": ("segment_anything_hq", "pip install segment-anything-hq timm", "https://github.com/SysCV/sam-hq"),
    "sam2": (
        "sam2",
        "pip install git+https://github.com/facebookresearch/sam2.git",
        "https://github.com/facebookresearch/sam2",
    ),
}
"""Kind of model -> package of its authors, the command that installs it, and their page."""


class SegmenterComparison(Comparison):
    """Compares masks and predicted IoU for the same boxes."""

    def __init__(self, settings: SegmenterSettings, weights: Path | None) -> None:
        self.stage = settings.make(DECODING, COMPUTE)
        own, sam = settings.fetched(), self.stage.sam
        self.device = str(sam.compute.device)
        self.kind = "sam2" if sam.stretched else sam.kind if isinstance(sam, HubSam) else "sam"
        self.weights = weights or own
        if self.kind == "sam_hq" and weights is None:
            why = "transformers' SAM-HQ makes other masks than its authors', so it is no upstream for itself"
            remedy = (
                "fetch the authors' file of this size, such as https://huggingface.co/lkeab/hq-sam/resolve/main/"
                "sam_hq_vit_b.pth, and name it by `upstream_weights` (segmenter=FILE)"
            )
            raise NotCompared(why, remedy)
        if self.weights.is_dir():
            self.package, self.install = "transformers", "pip install 'transformers>=5.10'"
            self.page = "https://huggingface.co/docs/transformers/model_doc/sam"
            self.example = "transformers_segmenter"
        else:
            self.package, self.install, self.page = UPSTREAM[self.kind]
            self.example = "sam2" if self.kind == "sam2" else "segment_anything"

    def job(self, subject: Subject, folder: Path) -> dict[str, Any]:
        """See `Comparison`. The boxes are those of the subject or, if it has none, of the detector."""
        row = subject.row
        found = subject.boxes or [region.box for region in row.regions]
        middle = (row.width / 4, row.height / 4, row.width * 3 / 4, row.height * 3 / 4)
        self.boxes = (found or [middle])[:MOST]
        job = {"boxes": [[*box] for box in self.boxes]}
        if self.weights.is_dir():
            kind = read_config("segmenter.weights", self.weights, set(KINDS))["model_type"]
            return job | {"weights": str(self.weights), "classes": CLASSES[kind]}
        return job | self._official_job(folder)

    def _official_job(self, folder: Path) -> dict[str, Any]:
        """Return the arguments with which upstream builds a network of this size."""
        sam = self.stage.sam
        job: dict[str, Any] = {"weights": as_checkpoint("segmenter.weights", self.weights, folder, nested=False)}
        if not isinstance(sam, HubSam):
            shape = sam.network_shape
            official = shape.image_size == 1024 and shape.decoder_width == 256
            kind = SIZES.get(shape.width, "") if official else ""
            return job | {"model_type": kind, "shape": shape.model_dump()}
        vision = sam.model.config.vision_config
        if self.kind == "sam2":
            blocks = sum(vision.backbone_config.blocks_per_stage)
            if size := HIERA.get(blocks):
                return job | {"config": f"configs/sam2.1/sam2.1_hiera_{size}.yaml"}
        elif sam.edge == 1024 and (size := SIZES.get(vision.hidden_size)):
            return job | {"model_type": size}
        raise NotCompared(f"upstream has no {self.kind} of this size", "name official weights in [segmenter]")

    def measure(self, subject: Subject, numbers: Numbers) -> list[Measure]:
        """See `Comparison`."""
        row, sam = subject.row, self.stage.sam
        pixels, packed = numbers.array("pixels", 3), numbers.array("masks", 3)
        quality = numbers.array("predicted_iou", 1)
        if packed.shape != (len(self.boxes), row.height, -(-row.width // 8)) or len(quality) != len(self.boxes):
            raise NotCompared("upstream's example wrote masks of another number or size", "report this")
        theirs = np.unpackbits(packed.astype(np.uint8), axis=-1, count=row.width).astype(bool)
        if not any(mask.any() and not mask.all() for mask in theirs):
            raise NotCompared("upstream's masks are all empty or full, so equal masks would mean nothing")
        ours = self.stage.prepare(row)
        given = torch.from_numpy(pixels).float()
        if isinstance(sam, HubSam):
            resized = input_levels(ours.numpy(), pixels, np.array(sam.processor.image_std))
        else:
            mean, deviation = sam.sam.pixel_mean.cpu(), sam.sam.pixel_std.cpu()
            own = sam.sam.preprocess(sam.compute.send(ours)).cpu().numpy()
            resized = input_levels(own, pixels, deviation.flatten().numpy() / 255)
            height, width = ours.shape[1:]
            given = (given[:, :height, :width] * deviation + mean).round().clamp(0, 255).to(torch.uint8)
        if not resized.equal:
            return [resized]
        row.regions = [Region("", box) for box in self.boxes]
        (output,) = self.stage.process([row], [given])
        self.stage.finish(row, output)
        masks = [coco_mask.decode(region.rle).astype(bool) for region in row.regions]
        overlaps = [_overlap(one, two) for one, two in zip(masks, theirs, strict=True)]
        predicted = np.array([region.predicted_iou for region in row.regions])
        self.shown = {
            "boxes": [[round(edge, 2) for edge in box] for box in self.boxes],
            "IoU of each mask with upstream's": [round(one, 6) for one in overlaps],
            "share of its box that each mask fills": [
                round(_filled(mask, box), 4) for mask, box in zip(masks, self.boxes, strict=True)
            ],
            "predicted IoU": [round(float(one), 6) for one in predicted],
            "upstream's predicted IoU": [round(float(one), 6) for one in quality],
        }
        return [
            resized,
            Measure("masks, 1 - IoU", len(masks), 1 - min(overlaps), OVERLAP),
            Measure("predicted IoU", len(predicted), largest(predicted, quality), QUALITY),
        ]


def _overlap(one: np.ndarray, two: np.ndarray) -> float:
    """Return the IoU of two masks; 1 for two empty ones."""
    union = int((one | two).sum())
    return int((one & two).sum()) / union if union else 1.0


def _filled(mask: np.ndarray, box: tuple[float, float, float, float]) -> float:
    """Return the share of a box that a mask fills."""
    x0, y0, x1, y1 = (round(edge) for edge in box)
    inside = mask[y0:y1, x0:x1]
    return float(inside.mean()) if inside.size else 0.0
