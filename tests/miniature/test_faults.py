"""The gain of patch-aligned training comes from right labels at right places: with faults in them, it is gone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from pad_pipeline.analysis.model import Subject
from pad_pipeline.geometry import View
from pad_pipeline.miniature.files import write_world
from pad_pipeline.miniature.shipped import member_reference
from pad_pipeline.miniature.world import draw_scene
from pad_pipeline.training.job import Job
from pad_pipeline.training.settings import TrainSettings
from pad_pipeline.workflows.learning.launch import train
from pad_pipeline.workflows.miniature.truth import LabelAccuracy, label_accuracy

SCENES = 96
VIEW = View(size=112, patch=8)


def shuffled(data: dict[str, Any]) -> None:
    """Exchange the labels of all regions at random."""
    categories = [one["category_id"] for one in data["annotations"]]
    for one, category in zip(data["annotations"], np.random.default_rng(0).permutation(categories), strict=True):
        one["category_id"] = int(category)


def shifted(data: dict[str, Any]) -> None:
    """Move all masks by one patch to the right and down. What leaves the image comes in again on the other side."""
    for one in data["annotations"]:
        height, width = one["segmentation"]["size"]
        step = round(min(height, width) / VIEW.grid)
        moved = np.roll(coco_mask.decode(one["segmentation"]), (step, step), (0, 1))
        rle = coco_mask.encode(np.asfortranarray(moved))
        one["segmentation"]["counts"] = rle["counts"].decode("ascii")
        one["bbox"] = coco_mask.toBbox(rle).tolist()


def changes_nothing(data: dict[str, Any]) -> None:
    """Leave the annotations as they are."""


@pytest.mark.long
def test_the_effect_is_gone_with_wrong_labels_and_less_with_shifted_masks(
    pad: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    """120 steps of L_patch alone, with the objective `aligned`, on 96 scenes with exact masks; scored on 32 others.
    Catches a score that is high whatever is learned, and coverage that does not depend on where the masks are."""
    world = write_world(tmp_path / "world", SCENES)
    vision, llm = member_reference("miniature", "clip"), member_reference("miniature", "llm")
    probes = [draw_scene(1, index) for index in range(32)]
    found: dict[str, LabelAccuracy] = {}
    for fault in (changes_nothing, shuffled, shifted):
        data = json.loads(world.instances.read_text())
        fault(data)
        annotations, out = tmp_path / f"{fault.__name__}.json", tmp_path / fault.__name__
        annotations.write_text(json.dumps(data))
        options = ["--annotations", annotations, "--images", world.images, "--models", "miniature"]
        assert pad("import", "coco", *options, "--out", out / "shards").code == 0
        settings = TrainSettings.model_validate(
            {"objective": "aligned", "caption_weight": 0.0, "beta_start": 1.0, "beta_end": 1.0, "steps": 120,
             "batch_size": 16, "micro_batch": 16, "learning_rate": 6e-3, "place": "fixed"}
        )  # fmt: skip
        job = Job(stage=1, shards=str(out / "shards"), vision=vision, llm=llm, out=str(out / "one"), settings=settings)
        train(job)
        found[fault.__name__] = label_accuracy(Subject(out / "one"), probes, VIEW)
    right, wrong, moved = found.values()
    assert right.things > 0.25 and right.parts > 0.3 and right.all > 0.9, found
    assert wrong.things < 0.05 and wrong.parts < 0.05 and wrong.all < 0.1, found
    assert moved.things < 0.9 * right.things and moved.parts < 0.9 * right.parts, found
    assert moved.all < right.all - 0.1, found
