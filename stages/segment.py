"""The stage segment: it makes a mask for each box with Segment Anything (SAM)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pad_pipeline.images import DecodeSettings
from pad_pipeline.records import ImageRecord
from pad_pipeline.stages.base import Stage
from pad_pipeline.stages.compute import Compute, ComputeSettings, HostCopy
from pad_pipeline.stages.decode import image
from pad_pipeline.stages.rle import encode_runs, run_starts
from pad_pipeline.stages.sam.hub import FILES, HubSam
from pad_pipeline.stages.sam.network import OfficialSam
from pad_pipeline.stages.settings import StageSettings, fetch_file_or_folder, millions, path_sha256
from pad_pipeline.weights import ModelFile


class SegmenterSettings(StageSettings):
    """Settings of the segmenter: the SAM model, and how much it computes at a time."""

    section, paths, pins = "segmenter", ("weights",), {"weights": "sha256"}

    weights: str
    """Path or URL of an official SAM `.pth` (ViT-B, L or H, recognized from its tensors) or of safetensors with the
    same names; or local folder or hub name of a SAM, SAM-HQ or SAM 2.1 of transformers."""
    revision: str = ""
    """Branch, tag or commit on the hub; empty for the pinned one (`pad_pipeline/pins.py`), or else for its default."""
    sha256: str = ""
    """sha256 of the file, or of the folder's `model.safetensors`; empty to accept any."""
    batch_size: int = Field(4, gt=0)
    """Images in one pass of the image encoder."""
    boxes_per_call: int = Field(64, gt=0)
    """Boxes in one call of the mask decoder; they may come from several images of a batch."""
    pixels_upscaled: int = Field(64_000_000, gt=0)
    """Mask pixels that are upscaled at a time, with 4 bytes each; at least one mask is upscaled. The size of a mask is
    that of the image, or of SAM's square if the square is larger."""

    def files(self) -> list[ModelFile]:
        """See `StageSettings`."""
        return [ModelFile("segmenter.weights", self.weights, self.sha256, self.revision, patterns=FILES)]

    def fetched(self) -> Path:
        """Return the checkpoint or the model's folder; see `fetch_file_or_folder`."""
        return fetch_file_or_folder(self.files()[0], FILES)

    def fingerprints(self) -> dict[str, str]:
        """See `StageSettings`."""
        return {"segmenter": path_sha256(self.fetched(), FILES)}

    def check(self) -> str:
        """See `StageSettings`."""
        sam = self.make(DecodeSettings(), ComputeSettings(precision="float32")).sam
        if isinstance(sam, HubSam):
            return f"{sam.kind}, {millions(sam.model)}"
        shape, sha256 = sam.network_shape, self.fingerprints()["segmenter"]
        return f"SAM, {shape.depth} blocks of {shape.width}, {millions(sam.sam)}, sha256 {sha256}"

    def make(self, decoding: DecodeSettings, compute: ComputeSettings) -> Segmenter:
        """Make a `Segmenter`."""
        return Segmenter(self, decoding, compute)


class Segmenter(Stage[Tensor, tuple[list[HostCopy], HostCopy]]):
    """Runs SAM: the image encoder on a batch of images, and the mask decoder on the boxes of all these images."""

    name = "segment"

    def __init__(self, settings: SegmenterSettings, decoding: DecodeSettings, compute: ComputeSettings) -> None:
        super().__init__()
        self.settings, self.decoding, self.batch_size = settings, decoding, settings.batch_size
        self.compute = Compute(compute)
        path = settings.fetched()
        self.sam = HubSam(path, self.compute) if path.is_dir() else OfficialSam(path, self.compute, self.batch_size)

    def prepare(self, row: ImageRecord) -> Tensor:
        """Return the image as input for the model."""
        return self.sam.prepare(image(row, self.decoding))

    def process(self, rows: list[ImageRecord], inputs: list[Tensor]) -> list[tuple[list[HostCopy], HostCopy]]:
        """Return for each row its masks, in parts from `run_starts`, and their predicted IoU, float `[n]`."""
        logits, quality = self._decode(self.sam.encode(inputs), rows)
        counts, outputs = [len(row.regions) for row in rows], []
        for row, of_row, predicted in zip(rows, torch.split(logits, counts), torch.split(quality, counts), strict=True):
            square = 0 if self.sam.stretched else self.sam.edge**2
            at_once = max(1, self.settings.pixels_upscaled // max(row.height * row.width, square))
            with torch.inference_mode():
                parts = [
                    HostCopy(run_starts(self.sam.upscale(part, row.width, row.height) > self.sam.threshold))
                    for part in torch.split(of_row, at_once)
                ]
            outputs.append((parts, HostCopy(predicted)))
        return outputs

    def _decode(self, embeddings: list[Tensor], rows: list[ImageRecord]) -> tuple[Tensor, Tensor]:
        """Return mask logits `[N, h, w]` and predicted IoU `[N]` of the N regions of all rows, in order."""
        boxes = [
            self.sam.scale_boxes(np.array([region.box for region in row.regions]), row.width, row.height)
            for row in rows
        ]
        images = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(row.regions) for row in rows]))
        corners = torch.from_numpy(np.concatenate(boxes).astype(np.float32))
        at_once = min(8, self.settings.boxes_per_call) if self.low_memory else self.settings.boxes_per_call
        calls = zip(torch.split(images, at_once), torch.split(corners, at_once), strict=True)
        logits, quality = zip(*(self.sam.decode(embeddings, *call) for call in calls), strict=True)
        return torch.cat(logits), torch.cat(quality)

    def finish(self, row: ImageRecord, output: tuple[list[HostCopy], HostCopy]) -> None:
        """Set the mask and the predicted IoU of each of the row's regions."""
        parts, quality = output
        if not np.isfinite(quality.numpy()).all():
            raise ValueError("the segmenter gives no finite numbers for this image")
        masks = (mask for part in parts for mask in part.numpy())
        for region, mask, predicted in zip(row.regions, masks, quality.numpy().tolist(), strict=True):
            region.rle, region.predicted_iou = encode_runs(mask, row.width, row.height), predicted
