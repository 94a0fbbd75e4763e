"""Scores against the drawn world's truth: what scores the answers, what asks for them, and the recipe in small."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pad_pipeline.evaluation.boxes import score_boxes
from pad_pipeline.miniature.files import write_world
from pad_pipeline.miniature.language import (
    DESCRIBE_PROMPTS,
    REFER_PROMPT,
    caption,
    llava_box,
    questions,
    referring_expressions,
)
from pad_pipeline.miniature.world import Scene, draw_scene
from pad_pipeline.sources.llava import LlavaSource
from pad_pipeline.training.chat import Chat
from pad_pipeline.training.examples import DialogueExamples, Preprocessor
from pad_pipeline.training.settings import PatchLossSettings, Stage2Settings, settings_of
from pad_pipeline.training.template import IMAGE, Template, TemplateName
from pad_pipeline.training.towers import preprocessing, view_of
from pad_pipeline.weights import fetch_model
from pad_pipeline.workflows.learning.experiment import RECIPES, read_experiment
from pad_pipeline.workflows.miniature.answers import CaptionScore, Said, expressions_of, slots_of

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
        assert slots and slots.ground == scene.ground
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
        for found in referring_expressions(scene)
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
    world = write_world(tmp_path, 30, seed=21)
    for number, record in enumerate(json.loads(world.llava_refer.read_text())):
        said = [turn["value"] for turn in record["conversations"]]
        assert record["image"] == f"scene-{number:05d}.png"
        assert [place for place, text in enumerate(said) if "<image>" in text] == [0]
        turns = dict(zip((text.replace("<image>\n", "") for text in said[::2]), said[1::2], strict=True))
        asked = {
            REFER_PROMPT + found.phrase: llava_box(SCENES[number], found.region)
            for found in referring_expressions(SCENES[number])
        }
        assert {question: answer for question, answer in turns.items() if question.startswith(REFER_PROMPT)} == asked
        true = dict(questions(SCENES[number], np.random.default_rng((21, number, 1))))
        assert turns.items() <= true.items() and len(turns) == len(asked) + 1


def test_all_cells_get_the_same_but_for_the_patch_loss() -> None:
    """A budget or a rate that only one of them has would decide the comparison."""
    recipe = read_experiment("miniature", {"shards": "x", "heldout": "x"})
    cells = [settings_of(1).model_validate(recipe.stage1 | cell.stage1) for cell in recipe.cells.values()]
    assert list(recipe.cells) == [recipe.baseline, "paper", "aligned"]
    assert [(cell.beta_start, cell.beta_end) for cell in cells] == [(0, 0), (0, 5), (1, 0)]
    alone, published, aligned = (cell.model_copy(update={"beta_start": 0.0, "beta_end": 5.0}) for cell in cells)
    assert alone == published and published.patch_loss == PatchLossSettings() != aligned.patch_loss
    same = {"objective": "paper", "patch_loss": published.patch_loss}
    assert aligned.model_copy(update=same) == published
    assert not any(cell.stage2 or cell.vision or cell.llm for cell in recipe.cells.values())
    second = settings_of(2).model_validate(recipe.stage2)
    assert second.beta_end == 0 and second.llm == "full" and recipe.fit == "pad"


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make paper` does, on a few scenes, for a few steps."""
    from typer.testing import CliRunner

    from pad_pipeline.workflows.cli import app

    out = tmp_path_factory.mktemp("paper") / "out"
    text = (RECIPES / "miniature.toml").read_text()
    short = text.replace("steps = 100", "steps = 2").replace("steps = 250", "steps = 3")
    world, probe = out / "world", out / "probe-world"
    commands: list[list[object]] = [
        ["miniature", "draw", "--count", 12, "--out", world],
        ["build", "--images", world / "llava.json", "--image-root", world / "images", "--models", "miniature",
         "--engine", "local", "--limit", 8, "--threads", 1, "--out", out / "shards"],
        ["miniature", "draw", "--count", 6, "--seed", 1, "--out", probe],
        ["import", "coco", "--annotations", probe / "instances.json", "--images", probe / "images",
         "--captions", probe / "llava.json", "--models", "miniature", "--out", out / "probes"],
        ["experiment", out / "short.toml", "--seeds", 1, "--shards", out / "shards", "--heldout", out / "probes",
         "--data", world / "llava_refer.json", "--image-root", world / "images", "--out", out / "paper"],
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        for command in commands:
            if command[0] == "experiment":
                (out / "short.toml").write_text(short)
            result = CliRunner().invoke(app, list(map(str, command)), catch_exceptions=False)
            assert result.exit_code == 0, result.output
    for words in ("captions alone", "paper", "aligned", "difference", "boxes accuracy", "stage1 patches all"):
        assert words in result.output
    return out


def by_place(found: dict[str, Any], place: str) -> Any:
    for name in place.split("."):
        found = found[name]
    return found


@pytest.mark.slow
def test_the_recipe_trains_and_scores_all_cells(compared: Path) -> None:
    """Both stages of all, from the same start: a stage 2 that did not begin with its stage 1's projector, or stage 1
    trainings that are one and the same, would compare nothing. Every column has a number."""
    found = json.loads((compared / "paper/experiment.json").read_text())
    logs = {}
    for cell, beta in (("captions alone", 0.0), ("paper", 5.0), ("aligned", 0.0)):
        folder = compared / f"paper/{cell}-0"
        result = json.loads((folder / "result.json").read_text())
        assert not [column for column in found["experiment"]["columns"] if by_place(result, column) is None]
        logs[cell] = [json.loads(line) for line in (folder / "stage1/log.jsonl").read_text().splitlines()]
        assert logs[cell][-1]["beta"] == beta and len(logs[cell]) == 2
        facts = json.loads((folder / "stage2/training.json").read_text())["job"]
        assert facts["init"] == str(folder / "stage1/mm_projector.bin") and facts["settings"]["llm"] == "full"
        assert facts["fit"] == "pad"
        assert not (folder / "stage2/dropped.jsonl").exists()
    assert len({log[0]["caption_loss"] for log in logs.values()}) == 1
    assert logs["paper"][0]["patch_loss"] != logs["aligned"][0]["patch_loss"]


@pytest.mark.slow
def test_shards_of_another_world_are_not_scored(
    compared: Path, pad: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    """The truth of other scenes would call every answer wrong, and the table would look like a finding."""
    text = (compared / "short.toml").read_text().replace("seed = 1", "seed = 2")
    (tmp_path / "other.toml").write_text(text)
    shards = ["--shards", compared / "shards", "--heldout", compared / "probes"]
    done = pad("experiment", tmp_path / "other.toml", *shards, "--seeds", 1, "--out", tmp_path / "out")
    assert done.code == 2 and "is no scene of world 2" in done.err and "Traceback" not in done.err, done.err


@pytest.mark.slow
def test_the_model_is_asked_as_it_was_taught(compared: Path) -> None:
    """The question's tokens up to the answer, and the image's pixels, are those of the training: another template,
    a crop instead of padding, or a token too many would cost accuracy that nobody could explain."""
    chat, captions = (Chat(compared / f"paper/paper-0/{stage}") for stage in ("stage2", "stage1"))
    settings = Stage2Settings()
    tower = fetch_model("vision", "miniature:clip")
    preprocessor = Preprocessor(view_of(tower, "pad"), *preprocessing(tower)[:2], 196)
    source = LlavaSource(str(compared / "world/llava_refer.json"), str(compared / "world/images"))
    tokenizer = chat.processor.tokenizer
    examples = DialogueExamples(source, preprocessor, Template("v1", tokenizer), settings, 128)
    records = json.loads((compared / "world/llava_refer.json").read_text())
    image = chat.model.config.image_token_id
    plain = Template("plain", tokenizer).question("")
    assert len(plain) == 2 and plain[1] == IMAGE
    for number, record in enumerate(records):
        example = examples[number]
        first = example.text.supervised.index(True)
        taught = example.text.ids[:first]
        place = taught.index(IMAGE)
        scene = draw_scene(0, number)
        put = chat.prepare(scene.image, record["conversations"][0]["value"])
        assert put["input_ids"][0].tolist() == taught[:place] + [image] * 196 + taught[place + 1 :]
        assert torch.allclose(put["pixel_values"][0], example.pixels, atol=1e-5)
        shown = captions.prepare_caption(scene.image)
        assert shown["input_ids"][0].tolist() == [plain[0]] + [image] * 196
        assert torch.allclose(
            shown["pixel_values"][0],
            preprocessor._replace(view=view_of(tower, "crop")).normalized(scene.image),
            atol=1e-5,
        )


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "template"), [("stage1", "plain"), ("stage2", "v1")])
def test_batches_with_a_cache_say_what_single_greedy_steps_say(
    compared: Path, stage: str, template: TemplateName
) -> None:
    """The likeliest token each time, the whole sequence anew for each: a cache in the wrong place, padding that is
    looked at, or answers in another order than the questions show."""
    chat, one_line = Chat(compared / f"paper/paper-0/{stage}"), template == "plain"
    scenes, tokenizer = SCENES[:3], chat.processor.tokenizer
    phrases = [(scene.image, found.phrase) for scene in scenes for found in referring_expressions(scene)]
    asked = [(image, REFER_PROMPT + phrase) for image, phrase in phrases[:3]]
    asked += [(scene.image, DESCRIBE_PROMPTS[0]) for scene in scenes[1:]]
    put = [chat.prepare_caption(image) if one_line else chat.prepare(image, question) for image, question in asked]
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
    ends = [tokenizer.eos_token_id, *([newline] if one_line else [])]
    most = 6
    expected = []
    for one in put:
        said: list[int] = []
        with torch.inference_mode():
            while len(said) < most:
                whole = torch.cat([one["input_ids"], torch.tensor([said], dtype=torch.long)], 1)
                logits = chat.model(input_ids=whole, pixel_values=one["pixel_values"], use_cache=False).logits[0, -1]
                logits[chat.model.config.image_token_id] = -torch.inf
                token = int(logits.argmax())
                if token in ends:
                    break
                said.append(token)
        expected.append(tokenizer.decode(said).strip())
    assert chat.answers(put, most, batch=2, one_line=one_line) == expected
    assert len(set(expected)) > 1 and any(expected)
