"""Compare the detector with the authors' Grounding DINO, or with transformers' own path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

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
up to 6e-5 on small networks; a wrong weight, mask or position moves them by tenths."""
LEAST = 20
"""The fewest boxes that are compared: those with the highest scores. More are, if more pass upstream's threshold.
Rounding errors are largest in the other boxes, which pass no threshold. The report has their differences, too."""
BACKBONES = {
    (96, 7): ("swin_T_224_1k", "GroundingDINO_SwinT_OGC.py"),
    (128, 12): ("swin_B_384_22k", "GroundingDINO_SwinB_cfg.py"),
}
"""Channels and window of the backbone -> upstream's names for it and for its settings."""
BOX_THRESHOLD, TEXT_THRESHOLD = 0.35, 0.25
"""The thresholds of upstream's example."""


class DetectorComparison(Comparison):
    """Compares boxes and token logits of the boxes that upstream finds.

    The network picks 900 positions of the image by their scores, and gives the first query the position with the
    highest one. Where two scores differ in the last digit only, the two sides may pick in another order, and two
    queries begin elsewhere. So the scores are compared, and then pad's network goes on from upstream's positions.
    """

    def __init__(self, settings: DetectorSettings, weights: Path | None) -> None:
        self.settings, self.weights = settings, weights
        self.folder, self.tokenizer = find_model(settings)
        # Upstream's example has one image without padding.
        stage = settings.model_copy(update={"pad_to": 1}).make(DECODING, COMPUTE)
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
        tokens = Measure("token ids", len(prompt.ids), float(ids != prompt.ids), 0)
        if not (resized.equal and tokens.equal) or their_logits.shape != (len(their_boxes), len(ids)):
            return [resized, tokens]
        picked, their_scores = numbers.array("picked", 1), numbers.array("picked_scores", 1)
        if picked.size != model.queries or not 0 <= picked.min() <= picked.max() < model.count_positions(
            *pixels.shape[1:]
        ):
            raise NotCompared("upstream's network has another number of queries or positions", "report this")
        outputs: list[Any] = []
        hook = model.model.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        given = ((torch.from_numpy(pixels) + shift) / scale).round().clamp(0, 255).to(torch.uint8)
        with _picking(picked) as scores:
            (answers,) = self.stage.process([row], [given])
        hook.remove()
        self.stage.finish(row, answers)
        logits = outputs[0].logits[0, :, : len(ids)].float().cpu().numpy()
        boxes = outputs[0].pred_boxes[0].float().cpu().numpy()
        own_scores, own_picked, scores_there = scores[0]
        apart = max(largest(one, their_scores, relative=True) for one in (own_scores, scores_there))
        highest = their_logits.max(1)
        passed = int((highest > np.log(BOX_THRESHOLD / (1 - BOX_THRESHOLD))).sum())
        seen = np.argsort(-highest, kind="stable")[: max(passed, LEAST)]
        self.shown = {
            "caption": " ".join(f"{tag} ." for tag in prompt.tags),
            "queries that begin elsewhere": int((own_picked != picked).sum()),
            "queries": len(boxes),
            "largest difference of all their token logits": largest(logits, their_logits, relative=True),
            "largest difference of all their boxes": largest(boxes, their_boxes),
            "upstream's boxes": numbers.facts.get("found", [])[:LEAST],
        }
        return [
            resized,
            tokens,
            Measure("picked scores", len(picked), apart, LOGITS),
            Measure("token logits", logits[seen].size, largest(logits[seen], their_logits[seen], True), LOGITS),
            Measure("boxes, fractions", boxes[seen].size, largest(boxes[seen], their_boxes[seen]), BOXES),
        ]


@contextmanager
def _picking(picked: np.ndarray) -> Iterator[list[list[np.ndarray]]]:
    """Make the detector pick given positions of the image. Yield a list to which it will add the scores and the
    positions that it would have picked, and its scores of the given ones."""
    found: list[list[np.ndarray]] = []
    original = torch.topk

    def topk(values: torch.Tensor, k: int, *arguments: Any, **named: Any) -> Any:
        own = original(values, k, *arguments, **named)
        if k != len(picked):
            return own
        chosen = torch.from_numpy(picked).to(values.device, torch.int64)[None]
        scores = values.gather(1, chosen)
        found.append([one[0].cpu().numpy() for one in (*own, scores)])
        return scores, chosen

    with patch.object(torch, "topk", topk):
        yield found
