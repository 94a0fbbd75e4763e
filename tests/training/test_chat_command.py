"""`pad chat` answers as the trained model does, and says in one line what is wrong with a folder or an image."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pad_pipeline.images import DecodeSettings
from pad_pipeline.training.batches import collate
from pad_pipeline.training.examples import Preprocessor
from pad_pipeline.training.export import export
from pad_pipeline.training.model import MultimodalModel
from pad_pipeline.training.ranks import Ranks
from pad_pipeline.training.template import EncodedText, Template
from tests.training.trained_models import WIDTH, build, view_for

Pad = Callable[..., Any]


pytestmark = pytest.mark.usefixtures("no_gpu")


@pytest.fixture(scope="module")
def exported(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a training."""
    model = build(parts, "qwen2", template="chat")
    out = tmp_path_factory.mktemp("exported")
    export(model, view_for(model), out, Ranks(0, 1, torch.device("cpu")))
    return out


def greedy(model: MultimodalModel, image: Image.Image, question: str, tokens: int) -> str:
    """Return the answer that the training's own forward pass gives, without a cache."""
    data = io.BytesIO()
    image.save(data, "PNG")
    preprocessor = Preprocessor(view_for(model), model.mean, model.std, model.vision_tokens)
    pixels = preprocessor.pixels(data.getvalue(), DecodeSettings())
    ids = Template("chat", model.tokenizer).question(question)
    said: list[int] = []
    with torch.inference_mode():
        while len(said) < tokens and (not said or said[-1] != model.tokenizer.eos_token_id):
            text = EncodedText([*ids, *said], [False] * (len(ids) + len(said)))
            batch = collate([preprocessor.empty_example(WIDTH)._replace(text=text, pixels=pixels)], preprocessor)
            hidden = model.run_llm(model.encode_images(batch.pixels), batch)[-1:]
            said.append(int(model.llm.get_output_embeddings()(hidden).argmax()))
    return str(model.tokenizer.decode(said, skip_special_tokens=True)).strip()


def test_chat_answers_as_the_training_would(
    parts: Path, exported: Path, pad: Pad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference is computed token by token with the training's own forward pass. Catches another prompt, another
    view of the image, and an answer that ends elsewhere. First one question, then three on standard input."""
    model = build(parts, "qwen2", template="chat")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (41, 70, 3), np.uint8))
    image.save(tmp_path / "x.png")
    questions = ["What is in the picture?", "How many dogs?", "Why [bold]not[/bold]?"]
    expected = [greedy(model, image, question, 6) for question in questions]
    assert len(set(expected)) > 1, "answers that are all alike would make this test blind"
    command = ["chat", "--image", tmp_path / "x.png", "--max-tokens", 6, "--model"]
    one = pad(*command, exported / "hf", questions[0])
    assert (one.code, one.out, one.err) == (0, expected[0] + "\n", "")
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([questions[0], "", *questions[1:]])))
    several = pad(*command, exported)
    assert (several.code, several.out) == (0, "".join(f"{answer}\n" for answer in expected)), several.err


def test_chat_says_in_one_line_what_is_wrong(
    parts: Path, exported: Path, pad: Pad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line with field, value, rule and remedy; never a traceback."""
    photo, text, hf = tmp_path / "x.png", tmp_path / "x.txt", tmp_path / "hf"
    Image.new("RGB", (30, 20)).save(photo)
    text.write_text("no image")

    def refused(model: Path, image: Path = photo, question: str = "What?") -> str:
        done = pad("chat", "--model", model, "--image", image, question)
        assert done.code == 2, done.out
        assert done.err.count("\n") == 1, done.err
        return str(done.err)

    assert "there is no such folder; give the output folder" in refused(tmp_path / "nowhere")
    assert "its config.json can't be read" in refused(tmp_path)
    assert "model_type is 'qwen2', and should be llava or llava_c_abstractor" in refused(parts / "qwen2")
    assert "--image" in (said := refused(exported, tmp_path / "none.png")) and "can't be read (No such file" in said
    assert "this is no readable image" in refused(exported, text)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert "standard input holds no question" in refused(exported, question="-")

    def damaged(change: Callable[[], object]) -> str:
        hf.mkdir(exist_ok=True)
        for path in (exported / "hf").iterdir():
            (hf / path.name).write_bytes(path.read_bytes())
        change()
        return refused(hf)

    assert "its processor can't be loaded" in damaged((hf / "tokenizer.json").unlink)
    assert "no chat_template.jinja" in damaged((hf / "chat_template.jinja").unlink)
    assert "it can't be loaded" in damaged(lambda: (hf / "model.safetensors").write_bytes(b"x" * 9))
    assert "chat template fails" in damaged(lambda: (hf / "chat_template.jinja").write_text("{{ 1 / 0 }}"))
