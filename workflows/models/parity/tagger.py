"""Compare the tagger with the authors' RAM or RAM++."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pad_pipeline.stages.tag import MEAN, STD, Tagger, TaggerSettings, normalize
from pad_pipeline.weights import fetch_file
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

LOGITS = 5e-5
"""The tolerance of logits in float32: five times what another implementation of RAM differs by (8e-6), with sums in
another order. bfloat16 would differ by 0.08."""
NEAR = 1e-4
"""A tag whose probability is this near to its threshold may be on for one side only."""
MOST = 40
"""The most tags that the report lists."""
SIZES = {192: "swin_l", 128: "swin_b"}
"""Channels of the backbone -> upstream's name for it."""


class TaggerComparison(Comparison):
    """Compares the logits of all tags, and the tags that are on."""

    example, package = "ram", "ram"
    install = (
        "pip install torch torchvision 'transformers==4.36.2' 'timm==0.4.12' fairscale scipy "
        "git+https://github.com/xinyu1205/recognize-anything.git"
    )
    page = "https://github.com/xinyu1205/recognize-anything#inference"

    def __init__(self, settings: TaggerSettings, weights: Path | None, tokenizer: Path | None) -> None:
        self.settings, self.tokenizer = settings, tokenizer
        self.weights = weights or fetch_file("tagger.weights", settings.weights, settings.sha256)
        self.stage: Tagger = settings.make(DECODING, COMPUTE)
        self.device = str(self.stage.compute.device)

    def job(self, subject: Subject, folder: Path) -> dict[str, Any]:
        """See `Comparison`. Upstream has networks of few sizes, and thresholds for its own number of tags."""
        settings, official = self.settings, TaggerSettings(weights="", tag_list="", family=self.settings.family)
        same = ("patch", "window", "embed_width", "head_width", "head_heads", "head_feed_forward", "head_layers")
        vit = SIZES.get(settings.embed_dim)
        if not vit or settings.image_size != official.image_size or len(self.stage.labels) != 4585:
            raise NotCompared("upstream has no RAM of this size", "name official weights in [tagger]")
        if any(getattr(settings, name) != getattr(official, name) for name in same):
            raise NotCompared("upstream has no RAM of this size", "name official weights in [tagger]")
        tags = fetch_file("tagger.tag_list", settings.tag_list, settings.tag_list_sha256)
        return {
            "family": settings.family, "image_size": settings.image_size, "vit": vit, "tag_list": str(tags),
            "tokenizer": str(self.tokenizer or ""),
            "weights": as_checkpoint("tagger.weights", self.weights, folder, nested=True),
        }  # fmt: skip

    def measure(self, subject: Subject, numbers: Numbers) -> list[Measure]:
        """See `Comparison`."""
        theirs, pixels = numbers.array("logits", 1), numbers.array("pixels", 3)
        check_spread("logit", theirs)
        resized = input_levels(normalize(self.stage.prepare(subject.row)).numpy(), pixels, STD.flatten().numpy())
        if pixels.shape[1:] != (self.settings.image_size,) * 2 or theirs.size != len(self.stage.labels):
            return [resized, Measure("number of logits", 1, abs(theirs.size - len(self.stage.labels)), 0)]
        logits: list[torch.Tensor] = []
        self.stage.network.register_forward_hook(lambda _module, _inputs, output: logits.append(output))
        given = ((torch.from_numpy(pixels) * STD + MEAN) * 255).round().clamp(0, 255).to(torch.uint8)
        (output,) = self.stage.process([subject.row], [given])
        self.stage.finish(subject.row, output)
        ours = logits[-1][0].float().cpu().numpy()
        found = [tag.label for tag in subject.row.tags]
        self.shown = {"tags": found[:MOST], "upstream's tags": numbers.facts.get("tags", [])[:MOST]}
        measures = [resized, Measure("logits", ours.size, largest(ours, theirs, relative=True), LOGITS)]
        thresholds = numbers.array("thresholds", 1)
        if thresholds.shape == self.stage.thresholds.shape and np.allclose(thresholds, self.stage.thresholds):
            certain = np.abs(1 / (1 + np.exp(-theirs.astype(np.float64))) - thresholds) > NEAR
            sure = {label for label, one in zip(self.stage.labels, certain, strict=True) if one}
            differing = ({*found} ^ {*map(str, numbers.facts.get("tags", []))}) & sure
            measures.append(Measure("tags of one side only", len(sure), len(differing), 0))
        return measures
