"""A whole run with the real vocabularies of Vicuna 1.5 and Qwen 3: build, both training stages, export, answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    AutoProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pad_pipeline.miniature.files import World
from pad_pipeline.pretrained import load_tokenizer
from tests.conftest import shared
from tests.training.trained_models import write_llm

Pad = Callable[..., Any]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "config", "template"),
    [("vicuna15", LlamaForCausalLM, LlamaConfig, "v1"), ("qwen3", Qwen3ForCausalLM, Qwen3Config, "chat")],
)
def test_from_images_to_answers(
    pad: Pad, world: World, models_toml: Path, tmp_path: Path, no_gpu: None, name: str, kind: Any, config: Any,
    template: str,
) -> None:  # fmt: skip
    """Catches a part of the way that only fits the miniature's tokenizer. The LLM is random, so its answers say
    nothing; but `pad chat` and stock transformers, alone and in a batch, give the same ones."""
    home = tmp_path / "models"
    shutil.copytree(models_toml.parent, home)
    shutil.rmtree(home / "llm")
    write_llm(home / "llm", kind, config, load_tokenizer("llm", shared(f"tokenizers/{name}")), spare=8, head_dim=8)
    for path in (home / "llm").glob("tokenizer*"):
        path.unlink()
    for path in shared(f"tokenizers/{name}").iterdir():
        shutil.copy(path, home / "llm")
    built, first, second = (tmp_path / part for part in ("shards", "stage1", "stage2"))
    images = ["--images", world.llava, "--image-root", world.images]
    done = pad(
        "build", *images, "--models", home / "models.toml", "--view-size", 112, "--engine", "local", "--out", built
    )
    assert done.code == 0, done.err
    parts = ["--vision", home / "clip", "--llm", home / "llm", "--batch-size", 5, "--micro-batch", 5]
    assert pad("train", "--stage", 1, "--shards", built, *parts, "--out", first).code == 0
    (tmp_path / "settings.toml").write_text(f'template = "{template}"\nllm = "frozen"\n')
    data = ["--data", world.llava.with_name("llava_chat.json"), "--image-root", world.images]
    more = ["--init", first / "mm_projector.bin", "--settings", tmp_path / "settings.toml"]
    done = pad("train", "--stage", 2, *data, *parts, *more, "--out", second)
    assert "L_patch 0.000" not in done.err and "no L_patch: no image has a region" in done.out
    assert done.code == 0, done.err
    steps = [json.loads(line) for line in (second / "log.jsonl").read_text().splitlines()]
    assert all(step["caption_loss"] > 0 for step in steps)

    image, questions = world.images / "scene-00000.png", ["What?", "How many houses are there in this picture?"]
    chats = [
        pad("chat", "--model", second, "--image", image, question, "--max-tokens", 5).out.strip()
        for question in questions
    ]
    model = LlavaForConditionalGeneration.from_pretrained(second / "hf", dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(second / "hf", backend="pil")
    roles = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}] for question in questions
    ]
    asked = [processor.apply_chat_template(one, add_generation_prompt=True) for one in roles]
    pixels = Image.open(image).convert("RGB")
    batch = processor(text=asked, images=[pixels, pixels], padding=True, return_tensors="pt")
    rows = model.generate(**batch, max_new_tokens=5, do_sample=False)[:, batch["input_ids"].shape[1] :]
    assert [processor.decode(row, skip_special_tokens=True).strip() for row in rows] == chats
