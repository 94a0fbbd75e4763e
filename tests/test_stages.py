"""Tag, ground, segment, patchify: labels from token spans, batches that do not change results, failures that stay
with their image."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from segment_anything import SamPredictor

from pad_pipeline.errors import UserError
from pad_pipeline.miniature.files import World
from pad_pipeline.pictures import DecodeSettings, decode
from pad_pipeline.records import ImageRecord, Region, Shard, Tag
from stages.base import Stage
from stages.ground import Detector, suppress, to_pixels
from stages.segment import Segmenter
from stages.spans import CLS, DOT, SEP, Prompt, best_tag, build_prompts, normalise, span_scores
from stages.tag import Tagger
from tests.conftest import record
from tests.small_models import write_small_models
from workflows.models import ModelSettings, load_models

DECODING = DecodeSettings()


def encode(text: str) -> list[int]:
    """A tokenizer with one to four tokens for a word, all above the special ids."""
    return [2000 + ord(letter) for word in text.split() for letter in word[:4]]


def test_prompt_is_what_the_model_expects() -> None:
    """[CLS] cat . dog . [SEP], the closing dot included; without it the last tag is read wrongly."""
    (prompt,) = build_prompts(["Cat", "dog."], encode)
    assert prompt.ids == [CLS, *encode("cat"), DOT, *encode("dog"), DOT, SEP]
    assert [prompt.ids[start:end] for start, end in prompt.spans] == [encode("cat"), encode("dog")]
    assert build_prompts([], encode) == []
    assert build_prompts([" . ", ""], encode) == []


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text("abcdefgh .?'-", max_size=24), max_size=60),
    st.integers(16, 64),
)
def test_every_tag_is_whole_in_exactly_one_prompt(tags: list[str], max_tokens: int) -> None:
    """No label can be empty, merged, cut or lost, whatever the tags: 256 tokens silently dropped the tail upstream."""
    prompts = build_prompts(tags, encode, max_tokens)
    usable = dict.fromkeys(
        tuple(encode(normalise(tag))) for tag in tags if 0 < len(encode(normalise(tag))) <= max_tokens - 3
    )
    found = [tuple(prompt.ids[start:end]) for prompt in prompts for start, end in prompt.spans]
    assert found == list(usable)
    for prompt in prompts:
        assert len(prompt.ids) <= max_tokens
        assert (prompt.ids[0], prompt.ids[-2], prompt.ids[-1]) == (CLS, DOT, SEP)
        assert all(prompt.ids[end] == DOT for _, end in prompt.spans)
        assert all(encode(normalise(tag)) for tag in prompt.tags)


def test_prompts_are_balanced() -> None:
    """Three full prompts and one tag left over would give that tag far higher scores than the rest."""
    prompts = build_prompts([f"{letter}{other}aa" for letter in "abcdefgh" for other in "abcdefgh"], encode, 102)
    lengths = [len(prompt.ids) for prompt in prompts]
    assert len(lengths) == 4
    assert max(lengths) - min(lengths) <= 5


def test_label_is_the_best_mean_and_ties_go_to_more_tokens_then_order() -> None:
    prompt = Prompt([CLS, 5, DOT, 6, 7, DOT, 8, 9, DOT, SEP], ["a", "b", "c"], [(1, 2), (3, 5), (6, 8)])
    probabilities = np.zeros((3, 10))
    probabilities[0, [1, 3, 4]] = 0.6, 0.9, 0.1  # a: .6; b: mean .5, max .9
    probabilities[1, [1, 3, 4, 6, 7]] = 0.5  # a, b and c equal
    probabilities[2, [0, 2, 9]] = 0.99  # specials only: no tag may profit
    highest, mean = span_scores(probabilities, prompt)
    assert highest.tolist() == [[0.6, 0.9, 0], [0.5, 0.5, 0.5], [0, 0, 0]]
    assert best_tag(mean, prompt)[:2].tolist() == [0, 1]


def test_boxes_are_in_pixels_of_the_original() -> None:
    """cxcywh as shares of the picture; x goes with the width. A swap or a missing clip shows here."""
    boxes = to_pixels(np.array([[0.5, 0.25, 0.5, 0.5], [0.0, 1.0, 0.2, 0.2]]), 200, 100)
    assert boxes.tolist() == [[50, 0, 150, 50], [0, 90, 20, 100]]


def test_suppression_keeps_the_best_and_is_stable() -> None:
    boxes = [(0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.0, 9.0), (50.0, 50.0, 60.0, 60.0), (0.0, 0.0, 10.0, 10.0)]
    scores = [0.5, 0.9, 0.5, 0.9]
    regions = [Region(str(i), box, score=score) for i, (box, score) in enumerate(zip(boxes, scores, strict=True))]
    assert [region.label for region in suppress(regions, 0.5)] == ["1", "2"]
    assert suppress([], 0.5) == []


def test_suppression_can_keep_to_one_label() -> None:
    """A tree and its leaves have nearly the same box, and both are true."""
    tree, leaves, twice = (
        Region(label, (0.0, 0.0, 10.0, edge)) for label, edge in (("tree", 10.0), ("leaves", 9.0), ("tree", 9.5))
    )
    tree.score, leaves.score, twice.score = 0.9, 0.8, 0.7
    assert suppress([leaves, twice, tree], 0.5, across_labels=False) == [tree, leaves]
    assert suppress([leaves, twice, tree], 0.5) == [tree]


def tagged(world: World, count: int, tags: list[str]) -> list[ImageRecord]:
    return [
        record(world.images / f"scene-{index:05d}.png", tags=[Tag(tag, 0.9) for tag in tags[index:]])
        for index in range(count)
    ]


def test_detector_gives_an_image_the_same_alone_and_in_a_batch(models: ModelSettings, world: World) -> None:
    """Captions of different length and pictures of different size in one shard; 1e-4 of a pixel per pixel."""
    detector = Detector(models.detector, DECODING, threads=2)
    tags = ["house", "car", "roof", "sky", "boat", "tree"]
    together = detector(Shard(0, tagged(world, 4, tags))).rows
    for index, row in enumerate(together):
        (alone,) = detector(Shard(0, [tagged(world, 4, tags)[index]])).rows
        assert [region.label for region in alone.regions] == [region.label for region in row.regions]
        assert len(row.regions) > 0
        for one, other in zip(alone.regions, row.regions, strict=True):
            assert np.abs(np.array(one.box) - other.box).max() < 0.05
            assert abs(one.score - other.score) < 1e-4


def test_detector_equals_transformers_own_path(models: ModelSettings, world: World) -> None:
    """One picture and caption through transformers' processor and model: the same boxes and token scores (1e-5)."""
    from transformers import AutoTokenizer, GroundingDinoForObjectDetection, GroundingDinoImageProcessorPil

    folder = models.detector.model
    model = GroundingDinoForObjectDetection.from_pretrained(folder).eval()
    image = decode((world.images / "scene-00001.png").read_bytes(), DECODING)[0]
    inputs = GroundingDinoImageProcessorPil.from_pretrained(folder)(images=image, return_tensors="pt")
    text = AutoTokenizer.from_pretrained(folder)("house . car . red roof .", return_tensors="pt")
    with torch.inference_mode():
        expected = model(**inputs, **text)
    detector = Detector(models.detector, DECODING, threads=2)
    (prompt,) = build_prompts(["house", "car", "red roof"], detector.encode)
    assert prompt.ids == text["input_ids"][0].tolist()
    row = record(world.images / "scene-00001.png")
    probabilities, boxes = detector.forward([detector.prepare(row)], [prompt])
    assert np.abs(probabilities - expected.logits.sigmoid()[..., : len(prompt.ids)].numpy()).max() < 1e-5
    assert np.abs(boxes - expected.pred_boxes.numpy()).max() < 1e-5


def test_more_tags_than_one_prompt_holds(models: ModelSettings, world: World) -> None:
    """300 tags: transformers crashes above 256 tokens, upstream drops the tail."""
    detector = Detector(models.detector, DECODING, threads=2)
    row = record(
        world.images / "scene-00000.png",
        tags=[Tag(f"{a}{b}", 0.9) for a in "abcdefghijklmnopqrst" for b in "uvwxyzabcdefghi"],
    )
    assert len(row.tags) == 300
    (row,) = detector(Shard(0, [row])).rows
    assert row.status == "ok", row.reason
    assert {region.label for region in row.regions} <= {tag.label for tag in row.tags}


def test_tagger_gives_an_image_the_same_alone_and_in_a_batch(models: ModelSettings, world: World) -> None:
    tagger = Tagger(models.tagger, DECODING, threads=2)
    together = tagger(Shard(0, tagged(world, 5, []))).rows
    for index, row in enumerate(together):
        (alone,) = tagger(Shard(0, [tagged(world, 5, [])[index]])).rows
        assert [tag.label for tag in alone.tags] == [tag.label for tag in row.tags]
        assert row.tags
        assert all(abs(one.score - other.score) < 1e-5 for one, other in zip(alone.tags, row.tags, strict=True))


def test_ram_plus_runs_as_the_tagger(world: World, tmp_path: Path) -> None:
    """The other family through the same stage: its label queries differ from picture to picture."""
    settings = load_models(
        str(write_small_models(tmp_path, ["house", "car", "sky"], ["a car"], family="ram_plus"))
    ).tagger
    assert settings.family == "ram_plus"
    settings = settings.model_copy(update={"threshold": 0.0})
    first, second = Tagger(settings, DECODING, threads=2)(Shard(0, tagged(world, 2, []))).rows
    assert [tag.label for tag in first.tags] == ["house", "car", "sky"]
    assert [tag.score for tag in first.tags] != [tag.score for tag in second.tags]


def test_a_picture_without_tags_is_empty(models: ModelSettings, world: World) -> None:
    nothing = models.tagger.model_copy(update={"threshold": 1.0})
    (row,) = Tagger(nothing, DECODING, threads=2)(Shard(0, tagged(world, 1, []))).rows
    assert (row.status, row.tags) == ("empty", [])


def test_segmenter_equals_sam_predictor(models: ModelSettings, world: World) -> None:
    """Masks of all boxes at once, of several pictures in one encoder pass, against upstream's SamPredictor one by one:
    identical masks, predicted IoU to 1e-4. Portrait, landscape and odd sizes; a swapped x and y would show."""
    segmenter = Segmenter(models.segmenter.model_copy(update={"pixels_upscaled": 90_000}), DECODING, threads=2)
    rows = tagged(world, 5, [])
    rng = np.random.default_rng(0)
    for row in rows:
        for _ in range(5):
            x0, y0 = rng.uniform(0, row.width * 0.6), rng.uniform(0, row.height * 0.6)
            row.regions.append(Region("thing", (x0, y0, x0 + row.width * 0.35, y0 + row.height * 0.3)))
    segmenter(Shard(0, rows))
    predictor = SamPredictor(segmenter.sam)
    seen = 0
    for row in rows:
        assert row.status == "ok", row.reason
        predictor.set_image(np.asarray(decode(row.data, DECODING)[0]))
        boxes = torch.tensor([region.box for region in row.regions], dtype=torch.float64)
        boxes = predictor.transform.apply_boxes_torch(boxes, (row.height, row.width)).float()
        masks, quality, _ = predictor.predict_torch(None, None, boxes, multimask_output=False)
        for region, mask, iou in zip(row.regions, masks[:, 0].numpy(), quality[:, 0].tolist(), strict=True):
            found = coco_mask.decode(region.rle).astype(bool)
            assert found.shape == (row.height, row.width)
            assert (found != mask).mean() < 1e-4
            assert abs(region.predicted_iou - iou) < 1e-4
            seen += int(mask.any() and not mask.all())
    assert seen > 5, "masks that are all or nothing would make this test blind"


class Fragile(Stage):
    """Fails on batches that hold a picture of the wrong name, as a broken model does on an odd input."""

    name = "fragile"

    def __init__(self, error: Exception) -> None:
        self.error, self.seen = error, list[list[str]]()

    def batches(self, rows: list[ImageRecord]) -> list[list[ImageRecord]]:
        return [rows]

    def prepare(self, row: ImageRecord) -> str:
        if row.key == "unreadable":
            raise ValueError("no pixels")
        return row.key

    def process(self, rows: list[ImageRecord], inputs: list[str]) -> None:
        self.seen.append(inputs)
        if "bad" in inputs and len(inputs) < 9:
            raise self.error
        if len(inputs) > 4:
            raise torch.OutOfMemoryError("too many")
        for row in rows:
            row.caption = "done"


def test_a_failure_stays_with_the_image_that_caused_it() -> None:
    """One bad image of nine used to take its batch along (FiftyOne, DALI); here it fails alone, with its reason."""
    keys = ["a", "b", "bad", "c", "unreadable", "d", "e", "f", "g"]
    rows = Fragile(RuntimeError("odd\ninput"))(Shard(0, [ImageRecord(key, key, key) for key in keys])).rows
    failed = {row.key: (row.stage, row.reason) for row in rows if row.status == "failed"}
    assert failed == {"bad": ("fragile", "RuntimeError: odd input"), "unreadable": ("fragile", "ValueError: no pixels")}
    assert all(row.caption == "done" for row in rows if row.status == "ok")


def test_a_batch_that_did_not_fit_is_freed_before_its_halves_are_tried() -> None:
    """The exception of a failed batch held its tensors while the halves were computed: they ran out of memory too."""
    alive: list[weakref.ref] = []

    class Hungry(Fragile):
        def process(self, rows: list[ImageRecord], inputs: list[str]) -> None:
            assert not any(reference() is not None for reference in alive), "an earlier attempt is still in memory"
            activations = torch.zeros(3)
            alive.append(weakref.ref(activations))
            if len(rows) > 2:
                raise torch.OutOfMemoryError(f"no room beside {activations.shape}")

    rows = Hungry(ValueError())(Shard(0, [ImageRecord(str(n), "", "") for n in range(8)])).rows
    assert [row.status for row in rows] == ["ok"] * 8
    assert len(alive) == 7


def test_a_fault_of_the_machine_is_not_charged_to_images() -> None:
    """A dead disk or GPU failed every image that was left, for good; now it stops the run, which can be resumed."""
    fault = OSError(5, "Input/output error")
    with pytest.raises(OSError, match="Input/output"):
        Fragile(fault)(Shard(0, [ImageRecord("bad", "", "")]))


def test_a_users_mistake_is_not_charged_to_images() -> None:
    mistake = UserError("llm.context", "sentence", "no", "do")
    with pytest.raises(UserError):
        Fragile(mistake)(Shard(0, [ImageRecord("bad", "", "")]))
