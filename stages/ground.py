"""Tags -> boxes: Grounding DINO finds where each tag is."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torchvision.ops import batched_nms
from transformers import GroundingDinoForObjectDetection, GroundingDinoImageProcessorPil
from transformers.image_transforms import get_size_with_aspect_ratio

from pad_pipeline.errors import UserError
from pad_pipeline.pictures import DecodeSettings
from pad_pipeline.pretrained import load_pretrained, load_tokenizer, read_config
from pad_pipeline.records import ImageRecord, Region, as_box
from pad_pipeline.weights import fetch_file, fetch_folder
from stages.base import Stage, chunks
from stages.decode import picture
from stages.device import use_device
from stages.spans import CLS, DOT, SEP, Prompt, best_tag, build_prompts, span_scores

FILES = ["*config.json", "tokenizer*", "vocab.txt", "special_tokens_map.json", "model*.safetensors*"]
"""What is fetched of a model from the hub, and what its fingerprint is of."""


class DetectorSettings(BaseModel):
    """Which detector, and which of its boxes are kept."""

    model_config = ConfigDict(extra="forbid")

    model: str
    """A Grounding DINO in the format of transformers: local folder or hub name."""
    revision: str = ""
    """Branch, tag or commit on the hub; empty for its default."""
    sha256: str = ""
    """Of `model.safetensors`; empty to accept any."""
    box_threshold: float = Field(0.25, ge=0, le=1)
    """A box is kept where the highest token score of any tag is at least this."""
    nms_iou: float = Field(0.5, ge=0, le=1)
    """Of two boxes of an image that overlap more, the one with the lower score goes."""
    nms_across_labels: bool = True
    """Whatever their labels; false: only where both have the same label, so that a thing and a part of it that fills
    most of it (a tree, its leaves) are both kept."""
    min_size: float = Field(1.0, ge=0)
    """Boxes narrower or lower than this many pixels go."""
    batch_size: int = Field(8, gt=0)


class Detector(Stage):
    """Runs the model over pairs of a picture and a prompt.

    Only pictures of equal resized size share a batch: padding one picture to another's size changes its scores. Texts
    of different length may share one; the model masks their padding.
    """

    name = "ground"

    def __init__(self, settings: DetectorSettings, decoding: DecodeSettings, threads: int) -> None:
        self.settings, self.decoding = settings, decoding
        self.device = use_device(threads)
        folder = fetch_folder("detector.model", settings.model, settings.revision, FILES)
        if settings.sha256:
            fetch_file("detector.model", str(folder / "model.safetensors"), settings.sha256)
        read_config("detector.model", folder, {"grounding-dino"})
        self.model = load_pretrained(
            "detector.model",
            folder,
            GroundingDinoForObjectDetection,
            torch.float32,
            use_safetensors=True,
            disable_custom_kernels=True,  # the pure PyTorch path: nothing to compile, nothing to download
        ).to(self.device)
        self.processor = load_processor(folder)
        self.tokenizer = load_tokenizer("detector.model", folder)
        self._check_tokens(folder)
        self._ids: dict[str, list[int]] = {}

    def _check_tokens(self, folder: Path) -> None:
        found = self.tokenizer("a.")["input_ids"]
        if (found[0], found[-1], found[-2]) != (CLS, SEP, DOT):
            rule = f"[CLS], [SEP] and '.' should be the tokens {CLS}, {SEP} and {DOT}, which are built into the model"
            raise UserError("detector.model", folder, rule, "use the tokenizer of BERT that the model came with")

    def encode(self, tag: str) -> list[int]:
        """Token ids of one tag, without special tokens."""
        if tag not in self._ids:
            self._ids[tag] = self.tokenizer(tag, add_special_tokens=False)["input_ids"]
        return self._ids[tag]

    def resized(self, row: ImageRecord) -> tuple[int, int]:
        """Height and width of the picture as the model gets it."""
        size = self.processor.size
        short, long = size.get("shortest_edge"), size.get("longest_edge")
        if short is None:
            return size["height"], size["width"]
        return get_size_with_aspect_ratio((row.height, row.width), short, long)

    def batches(self, rows: list[ImageRecord]) -> list[list[ImageRecord]]:
        """Rows of equal resized size together, at most `batch_size`."""
        rows = sorted(rows, key=self.resized)  # stable, so that the plan's order decides among equals
        return [
            batch for _, same in groupby(rows, self.resized) for batch in chunks(list(same), self.settings.batch_size)
        ]

    def prepare(self, row: ImageRecord) -> torch.Tensor:
        """The normalised picture `[3, H, W]`."""
        inputs = self.processor(images=picture(row, self.decoding), return_tensors="pt")
        return inputs["pixel_values"][0]

    def process(self, rows: list[ImageRecord], inputs: list[torch.Tensor]) -> None:
        """Set each row's regions, best score first; a picture with no box is `empty`."""
        max_tokens = self.model.config.max_text_len
        pairs = [
            (index, prompt)
            for index, row in enumerate(rows)
            for prompt in build_prompts([tag.label for tag in row.tags], self.encode, max_tokens)
        ]
        found: list[list[Region]] = [[] for _ in rows]
        # A picture that is alone may be so because memory ran out: its prompts go one by one.
        size = self.settings.batch_size if len(rows) > 1 else 1
        for batch in chunks(pairs, size):
            probabilities, boxes = self.forward([inputs[index] for index, _ in batch], [text for _, text in batch])
            for (index, prompt), scores, corners in zip(batch, probabilities, boxes, strict=True):
                found[index] += self.regions(rows[index], prompt, scores, corners)
        for row, regions in zip(rows, found, strict=True):
            row.regions = suppress(regions, self.settings.nms_iou, self.settings.nms_across_labels)
            if not row.regions:
                row.status = "empty"

    @torch.inference_mode()
    def forward(self, pictures: list[torch.Tensor], prompts: list[Prompt]) -> tuple[np.ndarray, np.ndarray]:
        """Token probabilities `[B, queries, tokens]` and boxes `[B, queries, 4]`, cxcywh as parts of the picture."""
        length = max(len(prompt.ids) for prompt in prompts)
        ids = torch.zeros(len(prompts), length, dtype=torch.long)
        attended = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt.ids)] = torch.tensor(prompt.ids)
            attended[row, : len(prompt.ids)] = 1
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            output = self.model(
                pixel_values=torch.stack(pictures).to(self.device),
                input_ids=ids.to(self.device),
                attention_mask=attended.to(self.device),
                token_type_ids=torch.zeros_like(ids).to(self.device),
            )
        probabilities = output.logits[..., :length].float().sigmoid()
        return probabilities.cpu().numpy(), output.pred_boxes.float().cpu().numpy()

    def regions(self, row: ImageRecord, prompt: Prompt, probabilities: np.ndarray, boxes: np.ndarray) -> list[Region]:
        """The boxes that pass the threshold, in pixels, each with its tag."""
        highest, mean = span_scores(probabilities, prompt)
        label = best_tag(mean, prompt)
        corners = to_pixels(boxes, row.width, row.height)
        wide = (corners[:, 2:] - corners[:, :2]).min(1) >= self.settings.min_size
        kept = np.flatnonzero(wide & (highest.max(1) >= self.settings.box_threshold))
        return [
            Region(
                prompt.tags[label[query]],
                as_box(corners[query]),
                score=float(highest[query].max()),
                label_score=float(mean[query, label[query]]),
            )
            for query in kept
        ]


def load_processor(folder: Path) -> GroundingDinoImageProcessorPil:
    """The model's image processor.

    Raises:
        UserError: its preprocessor_config.json is missing or can't be used.
    """
    try:
        processor = GroundingDinoImageProcessorPil.from_pretrained(folder, local_files_only=True)
        processor(images=Image.new("RGB", (8, 8)), return_tensors="pt")
        return processor
    except Exception as error:
        rule = f"its preprocessor_config.json can't be used ({type(error).__name__})"
        raise UserError("detector.model", folder, rule, "fetch the model again") from error


def to_pixels(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """cxcywh as parts of the picture -> xyxy in pixels of the original, clipped to it: `[N, 4]`."""
    centre, half = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64) / 2
    size = np.array([width, height])
    return np.concatenate([(centre - half) * size, (centre + half) * size], 1).clip(0, [width, height] * 2)


def suppress(regions: list[Region], iou: float, across_labels: bool = True) -> list[Region]:
    """Non-maximum suppression, over all labels together or each label by itself; best score first, equal scores in the
    order they came."""
    if not regions:
        return []
    regions = sorted(regions, key=lambda region: -region.score)
    boxes = torch.tensor([region.box for region in regions], dtype=torch.float64)
    # Ranks, not scores: equal scores would leave the order to the sort inside `nms`.
    ranks = torch.arange(len(regions), 0, -1, dtype=torch.float64)
    labels = list(dict.fromkeys(region.label for region in regions))
    group = torch.tensor([0 if across_labels else labels.index(region.label) for region in regions])
    kept = batched_nms(boxes, ranks, group, iou)
    return [regions[index] for index in kept.tolist()]
