"""The data of a training is read by the same rule as the images of a build."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pad_pipeline.geometry import View
from pad_pipeline.sources.llava import LlavaSource
from pad_pipeline.training.examples import DialogueExamples, Example, Preprocessor
from pad_pipeline.training.settings import Stage2Settings
from pad_pipeline.training.template import Template

QUESTION, ANSWER = "<image>\nWhat?", "A dog."
TURNS = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]
ROLES = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]


@pytest.fixture
def examples(tmp_path: Path, llamas: dict[str, Any]) -> Any:
    """A function from the text of a data file to its examples."""
    (tmp_path / "train").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "train/a.png")
    preprocessor = Preprocessor(View(size=28, patch=14), [0.5] * 3, [0.5] * 3, 4)

    def read(text: str, name: str = "data.json") -> list[Example]:
        (tmp_path / name).write_text(text)
        source = LlavaSource(tmp_path / name, tmp_path)
        found = DialogueExamples(source, preprocessor, Template("v1", llamas["vicuna"]), Stage2Settings(), 8)
        return [found[number] for number in range(len(found))]

    return read


def test_records_of_every_form_teach_the_same(tmp_path: Path, examples: Any) -> None:
    """Catches a form that a build reads and a training refuses, or the other way round."""
    records = [
        {"image": "train/a.png", "conversations": TURNS},
        {"image": ["train/a.png"], "conversations": TURNS},
        {"image": "train\\a.png", "messages": ROLES},
        {"image": str(tmp_path / "train/a.png"), "texts": [{"user": QUESTION, "assistant": ANSWER}]},
    ]
    found = examples(json.dumps(records)) + examples("\n".join(map(json.dumps, records)), "data.jsonl")
    assert [one.problem for one in found] == [""] * 8
    assert len({(tuple(one.text.ids), tuple(one.text.supervised)) for one in found}) == 1
    assert all((one.pixels == found[0].pixels).all() for one in found)


def test_records_that_can_not_be_taught_say_why(examples: Any) -> None:
    """Catches a record about two images that is taught with one of them, and a problem without its record."""
    records: list[Any] = [
        {"id": "two", "image": ["train/a.png", "train/a.png"], "conversations": TURNS},
        {"id": "gone", "image": "none.png", "conversations": TURNS},
        {"id": "text", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]},
        {"id": "turn", "image": "train/a.png", "conversations": [{"from": "gpt"}]},
        "no object",
    ]
    two, gone, text, turn, none = examples(json.dumps(records))
    assert "record 0: it has 2 images" in two.problem
    assert "no such file" in gone.problem
    assert text.problem == "" and text.pixels is None
    assert "record 3: each turn of conversations" in turn.problem
    assert "record 4: it is a string" in none.problem
    assert [one.key for one in (two, gone, text, turn, none)] == ["two", "gone", "text", "turn", "record-4"]
