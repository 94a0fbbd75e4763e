"""Fixtures of the training tests: small tokenizers, and small models in the form in which others publish theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from pad_pipeline.pretrained import quiet
from tests.conftest import shared
from tests.training.small_tokenizers import (
    CORPUS,
    GEMMA,
    GEMMA_MARKS,
    LLAMA3,
    LLAMA3_MARKS,
    MISTRAL,
    PHI,
    PHI_MARKS,
    QWEN2,
    QWEN3,
    QWEN_MARKS,
    byte_level,
    classic,
    llama,
    sentencepiece_model,
)
from tests.training.trained_models import EYES, QWEN, write_llm


@pytest.fixture(scope="session")
def pieces() -> bytes:
    """Return a sentencepiece model of LLaMA's kind."""
    return sentencepiece_model(CORPUS)


@pytest.fixture(scope="session")
def llamas(pieces: bytes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return tokenizers of LLaMA type by name. `vicuna` is of the kind of Vicuna 1.5, the LLM of LLaVA-1.5."""
    folder = tmp_path_factory.mktemp("llamas")
    made = {"legacy": llama(folder / "legacy", pieces, True), "vicuna": llama(folder / "vicuna", pieces, False)}
    return made | {"classic": classic(made["legacy"])}


@pytest.fixture(params=["classic", "legacy", "vicuna", "stories260K"])
def llama_type(request: pytest.FixtureRequest, llamas: dict[str, Any]) -> tuple[Any, bool]:
    """Yield a tokenizer of LLaMA type, and whether it is a legacy one, which begins a new word after `</s>`."""
    if request.param == "stories260K":
        return AutoTokenizer.from_pretrained(shared("stories260K")), True
    return llamas[request.param], request.param != "vicuna"


@pytest.fixture(scope="session")
def chats() -> dict[str, Any]:
    """Return tokenizers with a chat template, by family."""
    return {
        "llama3": byte_level(LLAMA3_MARKS, LLAMA3, trim=True, bos="<|begin_of_text|>"),
        "qwen2": byte_level(QWEN_MARKS, QWEN2, trim=False),
        "qwen3": byte_level(QWEN_MARKS, QWEN3, trim=False),
    }


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `pad chat` compute in float32 on every machine; with a GPU it would compute in bfloat16."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.fixture(scope="session")
def parts(llamas: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return folders of two towers, and of LLMs by the name of their tokenizer's kind."""
    folder = tmp_path_factory.mktemp("parts")
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPVisionModel(CLIPVisionConfig(image_size=56, patch_size=14, **EYES)).save_pretrained(folder / "clip")
        CLIPImageProcessorPil().save_pretrained(folder / "clip")
        SiglipVisionModel(SiglipVisionConfig(image_size=48, patch_size=16, **EYES)).save_pretrained(folder / "siglip")
        SiglipImageProcessorPil().save_pretrained(folder / "siglip")
        llama3 = byte_level(LLAMA3_MARKS, LLAMA3, trim=True, bos=LLAMA3_MARKS[0], eos=LLAMA3_MARKS[3])
        qwen2, qwen3 = (byte_level(QWEN, text, trim=False, eos=QWEN_MARKS[1]) for text in (QWEN2, QWEN3))
        for name, tokenizer in llamas.items():
            write_llm(folder / name, LlamaForCausalLM, LlamaConfig, tokenizer)
        write_llm(folder / "llama3", LlamaForCausalLM, LlamaConfig, llama3)
        gemma = byte_level(GEMMA_MARKS, GEMMA, trim=False, bos=GEMMA_MARKS[0], eos=GEMMA_MARKS[2])
        write_llm(folder / "gemma3", Gemma3ForCausalLM, Gemma3TextConfig, gemma, tie_word_embeddings=True, head_dim=8)
        phi = classic(llamas["legacy"], PHI_MARKS, PHI)
        write_llm(folder / "phi3", Phi3ForCausalLM, Phi3Config, phi)
        mistral = classic(llamas["legacy"], (), MISTRAL)
        write_llm(folder / "mistral", MistralForCausalLM, MistralConfig, mistral)
        write_llm(folder / "qwen2", Qwen2ForCausalLM, Qwen2Config, qwen2, tie_word_embeddings=True)
        write_llm(
            folder / "qwen3", Qwen3ForCausalLM, Qwen3Config, qwen3, spare=20, tie_word_embeddings=True, head_dim=16
        )
    return folder
