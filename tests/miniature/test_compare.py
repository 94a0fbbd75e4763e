"""`pad miniature compare`: what scores the answers, what asks for them, and the whole command in small."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pad_pipeline.workflows.miniature.compare import RESULT, ROWS, Budget, Outcome, summary, write_dialogues

from pad_pipeline.evaluation.boxes import score_boxes
from pad_pipeline.miniature.language import DESCRIBE, REFER, caption, llava_box, questions, refer
from pad_pipeline.miniature.world import Scene, draw_scene
from pad_pipeline.sources.llava import LlavaSource
from pad_pipeline.training.examples import DialogueExamples, Sight
from pad_pipeline.training.model import normalization, view_of
from pad_pipeline.training.settings import Stage2Settings
from pad_pipeline.training.template import IMAGE, Template
from pad_pipeline.weights import fetch_model
from pad_pipeline.workflows.miniature import answers
from pad_pipeline.workflows.miniature.answers import CaptionScore, Said, Speaker, expressions_of, slots_of

SCENES = [draw_scene(21, index) for index in range(120)]


def captions_scored(said: dict[int, str]) -> CaptionScore:
    """The true captions, but for some."""
    score = CaptionScore()
    for number, scene in enumerate(SCENES):
        score.add(said.get(number, caption(scene)), caption(scene))
    return score


def test_a_caption_is_taken_apart_into_what_the_scene_says() -> None:
    """A pattern that loses a word (the first of `a small red striped car`, a kind that is another's beginning) would
    leave both variants' scores too high: what is not seen can't be wrong."""
    for scene in SCENES:
        slots = slots_of(caption(scene))
        assert slots and slots.lower == scene.lower
        assert slots.position in caption(scene)
        assert sorted(slots.things) == sorted(Said(t.kind, t.color, t.size, t.texture) for t in scene.things)


def test_true_captions_are_right_and_each_wrong_word_costs_its_slot() -> None:
    """A score that a wrong, missing or invented thing does not lower would call any caption good."""
    whole = captions_scored({})
    assert whole.share() == 1 and whole.parsed == whole.captions == len(SCENES)
    truth = "a small red car and a blue ball on the road at night, with a moon above."
    wanted = {
        truth: (8, 8),
        "on the road at night are a blue ball and a small red car, with a moon above.": (8, 8),
        "a small red car and a blue ball on the road under the sky, with a moon above.": (7, 8),
        "a small green car and a blue ball on the road at night, with a moon above.": (7, 8),
        "a red car and a blue ball on the road at night, with a moon above.": (7, 8),
        "a large red car and a blue ball on the road at night, with a moon above.": (7, 8),
        "a small red dotted car and a blue ball on the road at night, with a moon above.": (8, 9),
        "a small blue car and a red ball on the road at night, with a moon above.": (6, 8),
        "a small red car on the road at night, with a moon above.": (6, 8),
        "a small red car, a green cat and a blue ball on the road at night, with a moon above.": (8, 10),
        "a small red car and a blue ball on the road at night, with a moon above": (0, 8),
        "": (0, 8),
    }
    for said, (right, slots) in wanted.items():
        score = CaptionScore()
        score.add(said, truth)
        assert (sum(score.right.values()), sum(score.slots.values())) == (right, slots), said
        assert score.parsed == (right > 0)
    exchanged = captions_scored({number: caption(SCENES[number - 1]) for number in range(len(SCENES))})
    assert exchanged.parsed == len(SCENES) and exchanged.share() < 0.4
    many = CaptionScore()
    many.add(f"{'a blue ball, ' * 8}a blue ball and a small red car on the road at night.", truth)
    assert many.parsed == 1 and (sum(many.right.values()), sum(many.slots.values())) == (7, 8 + 1 + 7 * 2), (
        "one ball stands for the moon, and seven for nothing"
    )


def boxes_scored(change: object = None) -> dict[str, Any]:
    """The answers of the dialogues, each changed."""
    said = [
        change(scene, llava_box(scene, found.region)) if callable(change) else llava_box(scene, found.region)
        for scene in SCENES
        for found in refer(scene)
    ]
    found = score_boxes(expressions_of(SCENES), said)
    return found["padded"] | {"unparsed": found["unparsed"], "asked": found["expressions"]}


def changed(x0: float, y0: float, x1: float, y1: float) -> str:
    return f"[{x0:.2f}, {y0:.2f}, {x1:.2f}, {y1:.2f}]"


def test_true_boxes_are_right_and_others_are_not() -> None:
    """Swapped axes, another frame than the padded square, a shift, and no box at all each lose what they should."""
    whole = boxes_scored()
    assert whole["asked"] > 200
    assert whole["accuracy"] == 1 and whole["mean_iou"] > 0.85 and whole["unparsed"] == 0

    def swapped(scene: Scene, said: str) -> str:
        x0, y0, x1, y1 = json.loads(said)
        return changed(y0, x0, y1, x1)

    def shifted(scene: Scene, said: str) -> str:
        x0, y0, x1, y1 = json.loads(said)
        width = x1 - x0
        return changed(x0 + 0.6 * width, y0, x1 + 0.6 * width, y1)

    def unpadded(scene: Scene, said: str) -> str:
        width, height = scene.image.size
        edge = max(width, height)
        x0, y0, x1, y1 = json.loads(said)
        left, top = (edge - width) / 2 / edge, (edge - height) / 2 / edge
        return changed(*((value - start) * edge / of for value, start, of in
                         zip((x0, y0, x1, y1), (left, top) * 2, (width, height) * 2, strict=True)))  # fmt: skip

    assert boxes_scored(swapped)["accuracy"] < 0.2
    assert boxes_scored(shifted)["accuracy"] < 0.02
    assert boxes_scored(unpadded)["mean_iou"] < whole["mean_iou"] - 0.1
    silent = boxes_scored(lambda scene, said: "the box is on the left.")
    assert silent["accuracy"] == 0 and silent["unparsed"] == silent["asked"]
    backwards = boxes_scored(lambda scene, said: changed(*reversed(json.loads(said))))
    assert backwards["accuracy"] == 0 and backwards["unparsed"] == backwards["asked"]


def test_dialogues_have_every_expression_with_its_box(tmp_path: Path) -> None:
    """A turn that is lost or joined to another scene's image would teach noise to both variants, unseen."""
    write_dialogues(tmp_path / "d.json", 30, seed=21)
    for number, record in enumerate(json.loads((tmp_path / "d.json").read_text())):
        said = [turn["value"] for turn in record["conversations"]]
        assert record["image"] == f"scene-{number:05d}.png"
        assert [place for place, text in enumerate(said) if "<image>" in text] == [0]
        turns = dict(zip((text.replace("<image>\n", "") for text in said[::2]), said[1::2], strict=True))
        asked = {REFER + found.phrase: llava_box(SCENES[number], found.region) for found in refer(SCENES[number])}
        assert {question: answer for question, answer in turns.items() if question.startswith(REFER)} == asked
        true = dict(questions(SCENES[number], np.random.default_rng((21, number, 1))))
        assert turns.items() <= true.items()


def test_differences_are_taken_within_a_seed() -> None:
    """Paired: a spread that both variants share is no doubt about which is better."""
    values = [(0, "caption", 0.1), (0, "patch", 0.2), (1, "caption", 0.5), (1, "patch", 0.6), (2, "caption", 0.9)]
    row = summary([Outcome(seed, variant, dict.fromkeys(ROWS, value)) for seed, variant, value in values])["rec_iou"]
    assert row["difference"]["mean"] == pytest.approx(0.1) and row["difference"]["deviation"] == pytest.approx(0)
    assert row["caption"]["mean"] == pytest.approx(0.3) and row["relative"] == pytest.approx(1 / 3)
    assert summary([Outcome(0, "caption", dict.fromkeys(ROWS, 0.0))]) == {}


def test_both_variants_get_the_same_but_for_beta() -> None:
    """A budget or a rate that only one of them has would decide the comparison."""
    budget = Budget(scenes=10, dialogues=20, seeds=1, stage1_steps=3, stage2_steps=4)
    one, two = (budget.stage1(beta, 7) for beta in (0.0, 5.0))
    assert one != two and one.model_copy(update={"beta_end": 5.0}) == two
    assert budget.stage2(7).beta_end == 0 and budget.stage2(7).seed == 7 and budget.stage2(7).llm == "full"
    assert replace(budget, seeds=2).stage2(7) == budget.stage2(7)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pad miniature compare` on a few scenes, for a few steps."""
    from typer.testing import CliRunner

    from pad_pipeline.workflows.cli import app

    out = tmp_path_factory.mktemp("compare") / "out"
    arguments = [
        "miniature",
        "compare",
        "--out",
        str(out),
        "--scenes",
        "8",
        "--dialogues",
        "12",
        "--seeds",
        "1",
        "--probes",
        "6",
    ]
    arguments += ["--stage1-steps", "2", "--stage2-steps", "3", "--threads", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    for words in ("caption only", "patch-aligned", "REC at IoU 0.5", "stage 2, seconds"):
        assert words in result.output
    return out


@pytest.mark.slow
def test_the_command_trains_and_scores_both_variants(compared: Path) -> None:
    """Both stages of both, from the same start: a stage 2 that did not begin with its stage 1's projector, or stage 1
    trainings that are one and the same, would compare nothing."""
    found = json.loads((compared / RESULT).read_text())
    assert [(outcome["seed"], outcome["variant"]) for outcome in found["outcomes"]] == [(0, "caption"), (0, "patch")]
    assert all(ROWS.keys() <= outcome["numbers"].keys() for outcome in found["outcomes"])
    assert all(set(outcome["seconds"]) == {"stage1", "stage2", "scoring"} for outcome in found["outcomes"])
    assert found["summary"].keys() == ROWS.keys()
    logs = {}
    for variant, beta in (("caption", 0.0), ("patch", 5.0)):
        folder = compared / f"{variant}-0"
        logs[variant] = [json.loads(line) for line in (folder / "stage1/log.jsonl").read_text().splitlines()]
        assert logs[variant][-1]["beta"] == beta and len(logs[variant]) == 2
        facts = json.loads((folder / "stage2/training.json").read_text())["job"]
        assert facts["init"] == str(folder / "stage1/mm_projector.bin") and facts["settings"]["llm"] == "full"
        assert facts["fit"] == "pad"
        assert not (folder / "stage2/dropped.jsonl").exists()
    assert logs["caption"][0]["caption_loss"] == logs["patch"][0]["caption_loss"]


@pytest.mark.slow
def test_the_model_is_asked_as_it_was_taught(compared: Path) -> None:
    """The question's tokens up to the answer, and the image's pixels, are those of the training: another template,
    a crop instead of padding, or a token too many would cost accuracy that nobody could explain."""
    speaker = Speaker(compared / "patch-0/stage2/hf", "v1")
    settings = Stage2Settings()
    tower = fetch_model("--vision", "miniature:clip")
    sight = Sight(view_of(tower, "pad"), *normalization(tower), 196)
    source = LlavaSource(str(compared / "dialogues.json"), str(compared / "world/images"))
    examples = DialogueExamples(source, sight, Template("v1", speaker.tokenizer), settings, 128)
    records = json.loads((compared / "dialogues.json").read_text())
    for number, record in enumerate(records):
        example = examples[number]
        first = example.text.supervised.index(True)
        taught = example.text.ids[:first]
        place = taught.index(IMAGE)
        asked = speaker.prompt(record["conversations"][0]["value"].replace("<image>\n", ""))
        assert asked[:place] + asked[place + 196 :] == taught[:place] + taught[place + 1 :]
        assert set(asked[place : place + 196]) == {speaker.llava.config.image_token_id}
        scene = draw_scene(0, number)
        pixels = speaker.processor.image_processor([scene.image], return_tensors="pt")["pixel_values"][0]
        assert torch.allclose(pixels, example.pixels, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "template"), [("stage1", "plain"), ("stage2", "v1")])
def test_batches_with_a_cache_say_what_single_greedy_steps_say(
    compared: Path, stage: str, template: answers.TemplateName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The likeliest token each time, the whole sequence anew for each: a cache in the wrong place, padding that is
    looked at, or answers in another order than the questions show."""
    monkeypatch.setattr(answers, "BATCH", 2)
    speaker = Speaker(compared / "patch-0" / stage / "hf", template)
    scenes = SCENES[:3]
    asked = [(scene.image, REFER + found.phrase) for scene in scenes for found in refer(scene)][:3]
    asked += [(scene.image, DESCRIBE[0]) for scene in scenes[1:]]
    most = 6
    expected = []
    for image, question in asked:
        ids = speaker.prompt(question)
        pixels = speaker.processor.image_processor([image], return_tensors="pt")["pixel_values"]
        said: list[int] = []
        with torch.inference_mode():
            while len(said) < most:
                whole = torch.tensor([[*ids, *said]])
                logits = speaker.llava(input_ids=whole, pixel_values=pixels, use_cache=False).logits[0, -1]
                logits[speaker.llava.config.image_token_id] = -torch.inf
                token = int(logits.argmax())
                if token in speaker.ends:
                    break
                said.append(token)
        expected.append(speaker.tokenizer.decode(said).strip())
    assert speaker.answer(asked, most) == expected
    assert len(set(expected)) > 1 and any(expected)


def test_prompts_of_a_length_go_together() -> None:
    """None is lost, none is asked twice, none is padded."""
    prompts = [[0] * length for length in (3, 5, 3, 3, 5, 4, 3)]
    groups = list(answers.same_length(prompts, 3))
    assert sorted(place for group in groups for place in group) == list(range(7))
    assert all(len(group) <= 3 and len({len(prompts[place]) for place in group}) == 1 for group in groups)
