"""The detector's scores become regions: a label is one of the tags, a box is in pixels, and doubles are suppressed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pad_pipeline.records import ImageRecord, Region
from pad_pipeline.stages.box_stage import Found
from pad_pipeline.stages.boxes import suppress, to_pixels
from pad_pipeline.stages.compute import HostCopy
from pad_pipeline.stages.ground import Detector, DetectorSettings
from pad_pipeline.stages.spans import CLS, DOT, SEP, Prompt, build_prompts, normalize, ranked_tags, span_scores
from pad_pipeline.workflows.models.settings import ModelSettings
from tests.stages.detector import DECODING, TWO, encode


def test_label_is_the_best_mean_and_ties_go_to_more_tokens_then_order() -> None:
    prompt = Prompt([CLS, 5, DOT, 6, 7, DOT, 8, 9, DOT, SEP], ["a", "b", "c"], [(1, 2), (3, 5), (6, 8)])
    probabilities = np.zeros((3, 10))
    probabilities[0, [1, 3, 4]] = 0.6, 0.9, 0.1  # a: .6; b: mean .5, max .9
    probabilities[1, [1, 3, 4, 6, 7]] = 0.5  # a, b and c equal
    probabilities[2, [0, 2, 9]] = 0.99  # specials only: no tag may profit
    highest, mean = span_scores(probabilities, prompt)
    assert highest.tolist() == [[0.6, 0.9, 0], [0.5, 0.5, 0.5], [0, 0, 0]]
    assert ranked_tags(mean, prompt)[:2].tolist() == [[0, 1, 2], [1, 2, 0]]


def found_in(prompt: Prompt, probabilities: np.ndarray, boxes: np.ndarray) -> Found:
    return Found(3, prompt, HostCopy(torch.tensor(probabilities)[None]), HostCopy(torch.tensor(boxes)[None]), 0)


def test_the_span_maximum_gates_and_other_good_labels_are_kept(models: ModelSettings) -> None:
    """A poodle is a dog: the second label used to be thrown away, or glued to the first ("poodle dog")."""
    changed = {"box_threshold": 0.5, "text_threshold": 0.3, "alternates": 2}
    detector = Detector(models.annotator(DetectorSettings).model_copy(update=changed), DECODING, TWO)
    prompt = Prompt(
        [CLS, 5, 6, DOT, 7, DOT, 8, DOT, 9, DOT, 4, DOT, SEP],
        ["poodle", "dog", "cat", "animal", "pet"],
        [(1, 3), (4, 5), (6, 7), (8, 9), (10, 11)],
    )
    probabilities = np.zeros((4, 13))
    probabilities[0, [1, 2, 4, 6, 8, 10]] = 0.9, 0.7, 0.6, 0.1, 0.45, 0.4  # pet is a third alternate: one too many
    probabilities[1, [1, 2]] = 0.52, 0.02  # passes by its maximum, though the mean is below every threshold
    probabilities[2, [4]] = 0.49
    probabilities[3, [0, 3, 12]] = 0.99  # [CLS], a dot, [SEP]: what gave empty labels
    boxes = np.array([[0.5, 0.5, 0.2, 0.2]] * 4)
    row = ImageRecord("a", "a", key="a", width=100, height=50)
    first, second = detector.regions(row, found_in(prompt, probabilities, boxes))
    assert (first.label, first.prompt) == ("poodle", 3)
    assert (first.score, first.label_score) == (pytest.approx(0.9), pytest.approx(0.8))
    assert [(other.label, other.label_score) for other in first.alternates] == [("dog", 0.6), ("animal", 0.45)]
    assert (second.label, second.score, second.label_score) == ("poodle", pytest.approx(0.52), pytest.approx(0.27))
    assert second.alternates == []


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_label_is_empty_merged_or_partial(data: st.DataObject) -> None:
    """Whatever the tags and the scores, every label and alternate is a tag as the tagger gave it."""
    words = st.text("abcdefgh .?'-", max_size=12)
    tags = data.draw(st.lists(st.lists(words, min_size=1, max_size=3).map(" ".join), min_size=1, max_size=20))
    detector = Detector.__new__(Detector)  # what it does with scores needs no model
    detector.settings = DetectorSettings(model="", text_threshold=0.1, alternates=3)
    row = ImageRecord("a", "a", key="a", width=64, height=64)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    for prompt in build_prompts(tags, encode, data.draw(st.integers(16, 64))):
        probabilities = rng.uniform(0, 1, (6, len(prompt.ids))) ** 2
        boxes = np.tile([0.5, 0.5, 0.3, 0.3], (6, 1))
        for region in detector.regions(row, found_in(prompt, probabilities, boxes)):
            labels = [region.label, *(other.label for other in region.alternates)]
            assert len(set(labels)) == len(labels)
            assert set(labels) <= set(tags)
            assert all(encode(normalize(label)) for label in labels)


def test_boxes_are_in_pixels_of_the_original() -> None:
    """cxcywh as shares of the image; x goes with the width. A swap or a missing clip shows here."""
    boxes = to_pixels(np.array([[0.5, 0.25, 0.5, 0.5], [0.0, 1.0, 0.2, 0.2]]), 200, 100)
    assert boxes.tolist() == [[50, 0, 150, 50], [0, 90, 20, 100]]


def test_suppression_keeps_the_best_and_is_stable() -> None:
    boxes = [(0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.0, 9.0), (50.0, 50.0, 60.0, 60.0), (0.0, 0.0, 10.0, 10.0)]
    scores = [0.5, 0.9, 0.5, 0.9]
    regions = [Region(str(i), box, score=score) for i, (box, score) in enumerate(zip(boxes, scores, strict=True))]
    assert [region.label for region in suppress(regions, 0.5, 0.5)] == ["1", "2"]
    assert suppress([], 0.5, 0.5) == []
    assert len(suppress(regions, 1.0, 1.0)) == 4


def test_suppression_within_and_across_labels_are_two_settings() -> None:
    """A tree and its leaves have nearly the same box, and both are true; two boxes of one tree are not."""
    tree, leaves, twice = (
        Region(label, (0.0, 0.0, 10.0, edge)) for label, edge in (("tree", 10.0), ("leaves", 9.0), ("tree", 9.5))
    )
    tree.score, leaves.score, twice.score = 0.9, 0.8, 0.7
    assert suppress([leaves, twice, tree], 0.5, 1.0) == [tree, leaves]
    assert suppress([leaves, twice, tree], 0.5, 0.95) == [tree, leaves]
    assert suppress([leaves, twice, tree], 0.5, 0.5) == [tree]
    assert suppress([leaves, twice, tree], 1.0, 0.92) == [tree, leaves]
