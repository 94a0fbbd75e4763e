"""Compare the detector with the authors' Grounding DINO, or with transformers' own path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pad_pipeline.records import Tag
from pad_pipeline.stages.box_stage import find_model
from pad_pipeline.stages.ground import Detector, DetectorSettings
from pad_pipeline.stages.spans import normalize
from pad_pipeline.weights import fetch_file, is_file_reference
from pad_pipeline.workflows.models.parity.base import (
    COMPUTE,
    DECODING,
    Comparison,
    Measure,
    NotCompared,
    Numbers,
    Subject,
    as_checkpoint,
    check_spread,
    input_levels,
    largest,
)

LOGITS = BOXES = 1e-4
"""The tolerance of token logits, and of boxes in fractions of the image, in float32. Two implementations differed by
up to 6e-5 on random weights; a wrong weight, mask or position moves them by tenths."""
LEAST = 20
"""The number of boxes that are compared, if fewer pass the threshold."""
BACKBONES = {
    (96, 7): ("swin_T_224_1k", "GroundingDINO_SwinT_OGC.py"),
    (128, 12): ("swin_B_384_22k", "GroundingDINO_SwinB_cfg.py"),
}
"""Channels and window of the backbone -> upstream's names for it and for its settings."""
BOX_THRESHOLD, TEXT_THRESHOLD = 0.35, 0.25
"""The thresholds of upstream's example."""


class DetectorComparison(Comparison):
    """Compares boxes and token logits of the boxes that upstream finds.

    The network picks 900 positions of the image by their score, in order. Where two scores differ in the last digit,
    the two sides may pick them in another order; so a box of upstream's is compared with the nearest of pad's.
    """

    def __init__(self, settings: DetectorSettings, weights: Path | None) -> None:
        self.settings, self.weights = settings, weights
        self.folder, self.tokenizer = find_model(settings)
        stage = settings.make(DECODING, COMPUTE)
        if not isinstance(stage, Detector):
            raise NotCompared(f"pad has no example of upstream's for a {stage.model.name}")
        self.stage, self.device = stage, str(stage.model.compute.device)
        if self.weights is None and is_file_reference(settings.model):
            self.weights = fetch_file("detector.model", settings.model, settings.sha256)
        self.official = self.weights is not None and self.weights.is_file()
        names = (
            ("groundingdino", "groundingdino", "pip install groundingdino-py 'transformers<5'",
             "https://github.com/IDEA-Research/GroundingDINO#arrow_forward-demo")
            if self.official else
            ("transformers_detector", "transformers", "pip install 'transformers>=5.10'",
             "https://huggingface.co/docs/transformers/model_doc/grounding-dino#usage-tips")
        )  # fmt: skip
        self.example, self.package, self.install, self.page = names

    def job(self, subject: Subject, folder: Path) -> dict[str, Any]:
        """See `Comparison`. The caption holds the tags of pad's first prompt."""
        subject.row.tags = subject.row.tags or [Tag(label, 1.0) for label in subject.labels]
        prompts = self.stage.prompts(subject.row)
        if not prompts:
            raise NotCompared("the detector's tokenizer knows none of the tags", "name another `image`")
        self.prompt = prompts[0]
        job = {
            "caption": "".join(f"{normalize(tag)} . " for tag in self.prompt.tags).strip(),
            "box_threshold": BOX_THRESHOLD, "text_threshold": TEXT_THRESHOLD,
            "weights": str(self.weights or self.folder),
        }  # fmt: skip
        return job | (self._official_job(folder) if self.official else {})

    def _official_job(self, folder: Path) -> dict[str, Any]:
        """Return the arguments with which upstream builds a network of this size."""
        assert self.weights
        config = self.stage.model.model.config
        swin, bert = config.backbone_config, config.text_config
        known = BACKBONES.get((swin.embed_dim, swin.window_size))
        if known is None:
            raise NotCompared("upstream has no Grounding DINO with this backbone", "name official weights")
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
        settings = {
            "backbone": known[0], "hidden_dim": config.d_model, "nheads": config.encoder_attention_heads,
            "enc_layers": config.encoder_layers, "dec_layers": config.decoder_layers,
            "dim_feedforward": config.encoder_ffn_dim, "num_queries": config.num_queries,
        }  # fmt: skip
        return {
            "config": known[1], "settings": settings, "tokenizer": str(self.tokenizer),
            "text_config": {name: getattr(bert, name) for name in sizes},
            "weights": as_checkpoint("detector.model", self.weights, folder, nested=True),
        }  # fmt: skip

    def measure(self, subject: Subject, numbers: Numbers) -> list[Measure]:
        """See `Comparison`."""
        pixels, ids = numbers.array("pixels", 3), numbers.array("ids", 1).tolist()
        their_logits, their_boxes = numbers.array("logits", 2), numbers.array("boxes", 2)
        check_spread("logit", their_logits)
        model, row = self.stage.model, subject.row
        scale, shift = model.scale.cpu(), model.shift.cpu()
        ours = (self.stage.prepare(row) * scale - shift).numpy()
        resized = input_levels(ours, pixels, np.array(model.processor.image_std))
        prompt = self.prompt
        tokens = Measure("token ids of the caption", len(prompt.ids), float(ids != prompt.ids), 0)
        if not (resized.equal and tokens.equal) or their_logits.shape != (len(their_boxes), len(ids)):
            return [resized, tokens]
        outputs: list[Any] = []
        hook = model.model.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        given = ((torch.from_numpy(pixels) + shift) / scale).round().clamp(0, 255).to(torch.uint8)
        (answers,) = self.stage.process([row], [given])
        hook.remove()
        self.stage.finish(row, answers)
        logits = outputs[0].logits[0, :, : len(ids)].float().cpu().numpy()
        boxes = outputs[0].pred_boxes[0].float().cpu().numpy()
        best = np.argsort(-their_logits.max(1), kind="stable")
        passed = int((their_logits.max(1) > np.log(BOX_THRESHOLD / (1 - BOX_THRESHOLD))).sum())
        asked = best[: max(passed, LEAST)]
        nearest = [_nearest(their_logits[one], their_boxes[one], logits, boxes) for one in asked]
        moved = sum(place != one for place, one in zip(nearest, asked, strict=True))
        scores = largest(logits[nearest], their_logits[asked], relative=True)
        self.shown = {
            "caption": " ".join(f"{tag} ." for tag in prompt.tags),
            "boxes above upstream's threshold": passed,
            "boxes in another place of the list": int(moved),
            "queries in all": len(boxes),
            "largest difference of all boxes in order": largest(boxes, their_boxes),
            "upstream's boxes": numbers.facts.get("found"),
        }
        return [
            resized,
            tokens,
            Measure("logits of tokens", len(asked) * len(ids), scores, LOGITS),
            Measure("boxes, in fractions", len(asked) * 4, largest(boxes[nearest], their_boxes[asked]), BOXES),
            Measure("boxes found twice", len(asked), len(asked) - len({*nearest}), 0),
        ]


def _nearest(logits: np.ndarray, box: np.ndarray, all_logits: np.ndarray, all_boxes: np.ndarray) -> int:
    """Return the index of the query whose logits and box differ least from the given ones."""
    scores = (np.abs(all_logits - logits) / np.maximum(1, np.abs(logits))).max(1)
    return int(np.maximum(scores, np.abs(all_boxes - box).max(1)).argmin())
