"""Boxes -> masks: Segment Anything says which pixels a box means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from pad_pipeline.images import DecodeSettings
from pad_pipeline.records import ImageRecord
from pad_pipeline.stages.base import Stage
from pad_pipeline.stages.compute import Compute, ComputeSettings, HostCopy
from pad_pipeline.stages.decode import image
from pad_pipeline.stages.sam.hub import FILES, HubSam
from pad_pipeline.stages.sam.network import OfficialSam
from pad_pipeline.weights import fetch_file, fetch_folder, is_file_reference


class SegmenterSettings(BaseModel):
    """Which Segment Anything."""

    model_config = ConfigDict(extra="forbid")

    weights: str
    """An official SAM `.pth` (ViT-B, L or H, which the file tells): path or URL; or safetensors with the same names.
    Or a SAM, SAM-HQ or SAM 2.1 of transformers: local folder or hub name."""
    revision: str = ""
    """Branch, tag or commit on the hub; empty for its default."""
    sha256: str = ""
    """Of the file, or of the folder's `model.safetensors`; empty to accept any."""
    batch_size: int = Field(4, gt=0)
    """Images in one pass of the image encoder."""
    boxes_per_call: int = Field(64, gt=0)
    """Boxes, of all images of a batch, in one call of the mask decoder."""
    pixels_upscaled: int = Field(64_000_000, gt=0)
    """Pixels of masks brought to the original size (or to SAM's square where that is larger) at a time, 4 bytes each;
    one mask at least."""


class Segmenter(Stage):
    """Batches images through the image encoder, and the boxes of all of them through the mask decoder."""

    name = "segment"

    def __init__(self, settings: SegmenterSettings, decoding: DecodeSettings, compute: ComputeSettings) -> None:
        super().__init__()
        self.settings, self.decoding, self.compute = settings, decoding, Compute(compute)
        self.batch_size = settings.batch_size
        path = find_model(settings)
        kind = HubSam if path.is_dir() else OfficialSam
        self.sam = kind(path, self.compute, settings.batch_size)

    def prepare(self, row: ImageRecord) -> Tensor:
        """The image as the model wants it."""
        return self.sam.prepare(image(row, self.decoding))

    def process(self, rows: list[ImageRecord], inputs: list[Tensor]) -> list[tuple[list[HostCopy], HostCopy]]:
        """For each row the masks of its regions, as `pack` has them and in parts, and their predicted IoU `[n]`."""
        embeddings = self.sam.encode(inputs, self.batch_size)
        logits, quality = self._decode(embeddings, rows)
        outputs, start = [], 0
        for row in rows:
            mine = slice(start, start := start + len(row.regions))
            at_once = max(1, self.settings.pixels_upscaled // max(row.height * row.width, self.sam.square_pixels))
            with torch.inference_mode():
                parts = [
                    HostCopy(pack(self.sam.upscale(part, row.width, row.height) > self.sam.threshold))
                    for part in logits[mine].split(at_once)
                ]
            outputs.append((parts, HostCopy(quality[mine])))
        return outputs

    def _decode(self, embeddings: Any, rows: list[ImageRecord]) -> tuple[Tensor, Tensor]:
        """Logits `[N, h, w]` and predicted IoU `[N]` for the regions of all rows, one row after another."""
        boxes = [
            self.sam.boxes(np.array([region.box for region in row.regions]), row.width, row.height) for row in rows
        ]
        places = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(row.regions) for row in rows]))
        corners = torch.from_numpy(np.concatenate(boxes).astype(np.float32))
        at_once = min(8, self.settings.boxes_per_call) if self.tight else self.settings.boxes_per_call
        calls = [
            self.sam.decode(embeddings, which, where)
            for which, where in zip(places.split(at_once), corners.split(at_once), strict=True)
        ]
        return torch.cat([logits for logits, _ in calls]), torch.cat([quality for _, quality in calls])

    def finish(self, row: ImageRecord, output: tuple[list[HostCopy], HostCopy]) -> None:
        """Set the mask and the predicted IoU of each of the row's regions."""
        parts, quality = output
        if not np.isfinite(quality.numpy()).all():
            raise ValueError("the segmenter gives no finite numbers for this image")
        packed = (mask for part in parts for mask in part.numpy())
        for region, mask, predicted in zip(row.regions, packed, quality.numpy().tolist(), strict=True):
            region.rle, region.predicted_iou = encode_mask(unpack(mask, row.width)), predicted


def find_model(settings: SegmenterSettings) -> Path:
    """The checkpoint, or the model's folder; fetched, and checked against the pinned sha256.

    Raises:
        UserError: it is not there, can't be reached, or is another file than it should be.
    """
    field = "segmenter.weights"
    if is_file_reference(settings.weights):
        return fetch_file(field, settings.weights, settings.sha256)
    folder = fetch_folder(field, settings.weights, settings.revision, FILES)
    if settings.sha256:
        fetch_file(field, str(folder / "model.safetensors"), settings.sha256)
    return folder


def pack(masks: Tensor) -> Tensor:
    """Bool `[n, H, W]` -> uint8 `[n, H, ceil(W / 8)]`, eight pixels a byte, the first in the highest bit: an eighth of
    the memory and of the transfer."""
    bits = F.pad(masks, (0, -masks.shape[-1] % 8)).unflatten(-1, (-1, 8))
    places = torch.arange(7, -1, -1, dtype=torch.uint8, device=masks.device)
    return (bits.to(torch.uint8) << places).sum(-1, dtype=torch.uint8)


def unpack(packed: np.ndarray, width: int) -> np.ndarray:
    """uint8 `[H, ceil(width / 8)]` -> bool `[H, width]`."""
    return np.unpackbits(packed, axis=-1, count=width).view(bool)


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """`[H, W]` bool -> compressed COCO RLE with its counts as text."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(edge) for edge in rle["size"]], "counts": rle["counts"].decode("ascii")}
