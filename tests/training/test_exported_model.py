"""An exported model computes what the training's own model computes, and stops where its answers stopped.

All models are small and random, so every test compares with the training's own model. transformers and peft load the
exported folder as others would.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import GenerationConfig

from pad_pipeline.training.chat import Chat
from pad_pipeline.training.export import export, export_llava
from pad_pipeline.training.ranks import Ranks
from pad_pipeline.training.settings import LoraSettings
from tests.training.trained_models import build, difference, stock, view_for

pytestmark = pytest.mark.usefixtures("no_gpu")


@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("llm", ["vicuna", "llama3", "qwen2", "qwen3", "gemma3", "phi3", "mistral"])
@pytest.mark.parametrize("projector", ["mlp", "linear"])
def test_stock_transformers_gives_our_logits(parts: Path, tower: str, llm: str, projector: str, tmp_path: Path) -> None:
    """Catches CLS dropped where there is none, a layer off by one, an activation behind the single Linear, and
    embeddings that come apart, or come back random, once `<image>` has a row."""
    model = build(parts, llm, tower, projector=projector)
    export_llava(model, view_for(model), tmp_path)
    llava = stock(tmp_path)
    assert difference(model, llava) < 1e-5
    tied = llm.startswith(("qwen", "gemma"))
    assert (llava.lm_head.weight is llava.get_input_embeddings().weight) == tied
    assert len(llava.lm_head.weight) == len(model.tokenizer) + (20 if llm == "qwen3" else 1)
    assert llava.config.text_config.vocab_size == len(llava.lm_head.weight)


def test_stock_transformers_gives_our_logits_from_the_towers_last_layer(parts: Path, tmp_path: Path) -> None:
    """Honeybee takes -1. transformers can put the state after the last norm there; the tower itself gives the one
    before."""
    for tower in ("clip", "siglip"):
        model = build(parts, tower=tower, vision_layer=-1)
        export_llava(model, view_for(model), tmp_path / tower)
        assert difference(model, stock(tmp_path / tower)) < 1e-5


@pytest.mark.parametrize("settings", [{}, {"llm": "lora"}, {"llm": "full"}, {"llm": "lora", "lora": {"merge": False}}])
def test_export_leaves_the_model_as_it_was(parts: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    """An export that merges adapters into the model, or gives its LLM a row for `<image>`, changes the next loss."""
    model = build(parts, "qwen2", **settings)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    words, config = len(model.tokenizer), model.llm.config.to_dict()
    export(model, view_for(model), tmp_path, Ranks(0, 1, torch.device("cpu")))
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert (len(model.tokenizer), model.llm.config.to_dict()) == (words, config)
    assert model.tokenizer.chat_template
    assert (tmp_path / "mm_projector.bin").is_file()


@pytest.mark.parametrize("llm", ["vicuna", "qwen2"])
def test_lora_is_merged(parts: Path, llm: str, tmp_path: Path) -> None:
    """Catches adapters that are left out, or added without their scale."""
    model = build(parts, llm, llm="lora", lora=LoraSettings(rank=4, alpha=16))
    export_llava(model, view_for(model), tmp_path)
    assert difference(model, stock(tmp_path)) < 1e-5
    assert difference(build(parts, llm), stock(tmp_path)) > 0.01, "the adapters say nothing"
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("projector", ["mlp", "c-abstractor"])
def test_lora_is_kept_apart(parts: Path, projector: str, tmp_path: Path) -> None:
    """The base model in the folder, adapters for it in another. Catches adapters that fit the LLM alone and not LLaVA,
    names that match the vision tower's layers too, and `pad chat` that forgets them."""
    from peft import PeftModel

    chosen = {"projector": projector, "abstractor_tokens": 9}
    lora = LoraSettings(rank=4, alpha=16, merge=False)
    model = build(parts, "qwen2", llm="lora", lora=lora, **chosen)
    export_llava(model, view_for(model), tmp_path)
    chat = Chat(tmp_path)
    assert difference(model, chat.model) < 1e-5
    assert chat.answer(Image.new("RGB", (30, 20)), "What?", 4) is not None
    assert not any("lora" in name for name, _ in chat.model.get_base_model().model.vision_tower.named_modules())
    if projector == "mlp":
        base = stock(tmp_path)
        assert difference(build(parts, "qwen2", **chosen), base) < 1e-5
        assert difference(model, PeftModel.from_pretrained(base, tmp_path / "adapter")) < 1e-5
    text = (tmp_path / "adapter/adapter_config.json").read_text()
    assert str(parts) not in text, "a path of the machine that trained"


def test_a_generation_config_that_transformers_would_not_save_is_exported(parts: Path, tmp_path: Path) -> None:
    """Vicuna's config has a temperature and no sampling, which transformers loads with a warning and refuses to save
    after a change. Catches hours of training that end in that error."""
    folder = tmp_path / "llm"
    folder.mkdir()
    for path in (parts / "vicuna").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    odd = {"bos_token_id": 1, "eos_token_id": 2, "max_length": 4096, "temperature": 0.9, "top_p": 0.6}
    (folder / "generation_config.json").write_text(json.dumps(odd))
    model = build(tmp_path, "llm", str(parts / "clip"))
    export_llava(model, view_for(model), tmp_path / "hf")
    config = GenerationConfig.from_pretrained(tmp_path / "hf")
    assert (config.eos_token_id, config.do_sample, config.max_length) == ([2], None, 4096)


def test_generation_ends_where_answers_ended(parts: Path, tmp_path: Path) -> None:
    """A base LLM's config ends at `<|endoftext|>`, its chat template at `<|im_end|>`. Catches a model that goes on
    talking for both sides, and one that says `<image>`."""
    model = build(parts, "qwen2", template="chat")
    end = model.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    model.llm.generation_config = GenerationConfig(eos_token_id=end, do_sample=True, temperature=0.7)
    export_llava(model, view_for(model), tmp_path / "hf")
    config = GenerationConfig.from_pretrained(tmp_path / "hf")
    assert config.eos_token_id == [end, model.tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert config.suppress_tokens == [stock(tmp_path / "hf").config.image_token_index]
    assert (config.do_sample, config.temperature) == (True, 0.7)
