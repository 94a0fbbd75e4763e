"""An exported processor asks in the tokens of the training, and shows the image as the training showed it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor

from pad_pipeline.errors import UserError
from pad_pipeline.geometry import Fit
from pad_pipeline.training.chat import Chat
from pad_pipeline.training.export import export_llava
from pad_pipeline.training.template import IMAGE_MARK, Template
from tests.training.dialogues import talk
from tests.training.exported_processors import assistant, heard, marked, user
from tests.training.small_tokenizers import LLAMA3, QWEN2, QWEN3_ASKING
from tests.training.trained_models import build, view_for

pytestmark = pytest.mark.usefixtures("no_gpu")


QUESTIONS = ("What is in the picture?", " How many?\n", "5 + 5 =", "", "这是什么？ <image> 🙂")


@pytest.mark.parametrize(
    ("llm", "template"),
    [
        ("vicuna", "v1"),
        ("legacy", "v1"),
        ("classic", "v1"),
        ("llama3", "v1"),
        ("qwen2", "v1"),
        ("llama3", "plain"),
        ("llama3", "chat"),
        ("qwen2", "chat"),
        ("qwen3", "chat"),
        ("gemma3", "chat"),
        ("phi3", "chat"),
        ("mistral", "chat"),
    ],
)
def test_processor_asks_as_in_training(parts: Path, llm: str, template: Any, tmp_path: Path) -> None:
    """Token for token, from the folder as it is loaded, in one call and in lmms-eval's two. Catches a second BOS, or
    none; a missing space before the line break after the image (LLaMA's tokenizers put one before every text in
    training); the image in another place; an answer whose end is missing; a tokenizer that comes back as another class
    and splits in another way."""
    model = build(parts, llm, template=template)
    export_llava(model, view_for(model), tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    asking = Template("v1" if template == "plain" else template, model.tokenizer)
    for question in QUESTIONS:
        assert heard(processor, [user(question)], model.vision_tokens) == asking.question(question), question
        if IMAGE_MARK in question:
            continue
        messages = [{"role": "user", "content": f"{IMAGE_MARK}\n{question}"}]  # from here as lmms-eval does it
        text = processor.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        (ids,) = processor(text=text, images=Image.new("RGB", (30, 20)))["input_ids"]
        assert marked(processor, ids, model.vision_tokens) == asking.question(question), question
    said = ["What?", "A dog.", " Sure? ", "5 dogs, one cat.", "这是什么？", "Yes."]
    roles = [assistant(text) if number % 2 else user(text, image=number == 0) for number, text in enumerate(said)]
    said[0] = f"{IMAGE_MARK}\n{said[0]}"
    assert heard(processor, roles, model.vision_tokens, False) == asking(talk(*said), True).ids
    plain = [{"role": role["role"], "content": text} for role, text in zip(roles[2:], said[2:], strict=True)]
    assert heard(processor, plain, model.vision_tokens, False) == asking(talk(*said[2:]), False).ids


def test_processor_asks_with_qwen_3s_template(parts: Path, tmp_path: Path) -> None:
    """The template puts an empty thought into the last answer and before the place where it asks for one, and removes
    it from earlier answers. Catches an export that asks for a thought, which the LLM has not learned."""
    model = build(parts, "qwen3", template="chat")
    model.tokenizer.chat_template = QWEN3_ASKING
    export_llava(model, view_for(model), tmp_path)
    asking, processor = Template("chat", model.tokenizer), AutoProcessor.from_pretrained(tmp_path)
    for question in QUESTIONS:
        assert heard(processor, [user(question)], model.vision_tokens) == asking.question(question)
    roles = [user("What?"), assistant("A dog."), user("Sure?", image=False), assistant("Yes.")]
    said = heard(processor, roles, model.vision_tokens, False)
    assert said == asking(talk("What?", "A dog.", "Sure?", "Yes."), True).ids


def test_processor_asks_with_a_template_that_forgets_earlier_answers(parts: Path, tmp_path: Path) -> None:
    """Catches a model that loses its chat template because several turns can't be trained on."""
    model = build(parts, "qwen2", template="chat")
    model.tokenizer.chat_template = QWEN2.replace("+ message['content']", "+ (message['content'] if loop.last else '')")
    asking = Template("chat", model.tokenizer)
    with pytest.raises(ValueError, match=r"drops or repeats|earlier turns otherwise"):
        asking(talk("What?", "A dog.", "Sure?", "Yes."), True)
    export_llava(model, view_for(model), tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert heard(processor, [user("What?")], model.vision_tokens) == asking.question("What?")


def test_a_chat_template_that_would_ask_otherwise_is_left_out(parts: Path, tmp_path: Path) -> None:
    """The training's template writes no BOS, and the tokenizer puts one before every text. Catches a processor that
    asks in other tokens than the training did, without a word."""
    model = build(parts, "llama3", template="chat")
    model.tokenizer.chat_template = LLAMA3.replace("bos_token + text if loop.first else text", "text")
    export_llava(model, view_for(model), tmp_path)
    assert AutoProcessor.from_pretrained(tmp_path).chat_template is None
    with pytest.raises(UserError, match=r"no chat_template\.jinja"):
        Chat(tmp_path)


@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_processor_shows_the_trained_view(parts: Path, tower: str, fit: Fit, tmp_path: Path) -> None:
    """Catches the `do_pad` trap and others like it: a crop where SigLIP's own processor stretches, an edge that is
    rounded in another way, the wrong side of an odd margin, CLIP's colors for SigLIP. The folder as it is loaded: with
    Pillow to 1e-5; with torchvision's resize, which rounds in another way, to a few 255ths."""
    model = build(parts, tower=tower)
    view = view_for(model, fit)
    export_llava(model, view, tmp_path)
    exact, usual = AutoProcessor.from_pretrained(tmp_path, backend="pil"), AutoProcessor.from_pretrained(tmp_path)
    draw = np.random.default_rng(0)
    mean, std = (np.array(values)[:, None, None] for values in (model.mean, model.std))
    red, green, blue = (int(255 * channel) for channel in model.mean)
    for width, height in [(64, 64), (97, 51), (51, 98), (200, 57), (57, 201), (20, 31), (view.size, 3 * view.size)]:
        noise = Image.fromarray(draw.integers(0, 256, (height // 4 + 2, width // 4 + 2, 3), np.uint8))
        image = noise.resize((width, height), Image.Resampling.BICUBIC)
        seen = np.asarray(view.apply(image, (red, green, blue)), np.float64).transpose(2, 0, 1) / 255
        for processor, most in ((exact, 1e-5), (usual, 0.1)):
            inputs = processor(images=image, text=IMAGE_MARK, return_tensors="pt", add_special_tokens=False)
            found = inputs["pixel_values"][0].numpy()
            assert np.abs(found - (seen - mean) / std).max() < most, (width, height, type(processor.image_processor))
            assert inputs["input_ids"].shape[1] == model.vision_tokens
