"""Label -> tokens -> averaged embedding: the right tokens, the exact mean, and nothing else loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pad_pipeline.errors import UserError
from pad_pipeline.labels import EmbeddingTable, LabelEmbedder, LabelSettings
from tests.conftest import shared


def test_embedding_is_the_mean_of_the_tokens_inside_a_sentence(models_toml: Path) -> None:
    """Tokens as the label stands after a space, without BOS and without a token of the space alone, averaged in
    float32: compared with the loaded model."""
    folder = models_toml.parent / "llm"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    for context, text in (("sentence", " window"), ("bare", "window")):
        embedder = LabelEmbedder(LabelSettings(llm=str(folder), context=context))
        ids = [t for t in tokenizer(text, add_special_tokens=False)["input_ids"] if tokenizer.decode([t]) != " "]
        assert embedder.tokens("window") == ids
        expected = model.get_input_embeddings().weight[ids].detach().float().mean(0).numpy().astype(np.float16)
        assert (embedder(["window"]) == expected).all()
    assert embedder([]).shape == (0, model.config.hidden_size)


def test_sentencepiece_style_tokenizers_see_a_word_start() -> None:
    """LLaMA's tokenizer marks word starts: "dog" in a sentence is "▁dog", once, with no stray space token."""
    embedder = LabelEmbedder(LabelSettings(llm=str(shared("stories260K"))))
    for label in ("dog", "dining table"):
        pieces = embedder.tokenizer.convert_ids_to_tokens(embedder.tokens(label))
        assert pieces[0].startswith("▁")
        assert "".join(pieces) == "▁" + label.replace(" ", "▁")


@pytest.mark.parametrize("kind", ["bin", "sharded"])
def test_embedding_is_found_in_every_layout(models_toml: Path, tmp_path: Path, kind: str) -> None:
    """Vicuna's checkpoint is a sharded .bin; others are one or several safetensors. Same tensor, same fingerprint."""
    source = models_toml.parent / "llm"
    state = load_file(source / "model.safetensors")
    if kind == "bin":
        torch.save(state, tmp_path / "pytorch_model.bin")
    else:
        name = "model.embed_tokens.weight"
        save_file({name: state[name]}, tmp_path / "model-00002-of-00002.safetensors")
        index = {
            "weight_map": {
                "lm_head.weight": "model-00001-of-00002.safetensors",
                name: "model-00002-of-00002.safetensors",
            }
        }
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    table, truth = EmbeddingTable(tmp_path), EmbeddingTable(source)
    assert table.sha256() == truth.sha256()
    assert torch.equal(table.rows([5, 3, 5]), truth.rows([5, 3, 5]))


def test_a_folder_without_an_embedding_is_named(tmp_path: Path) -> None:
    save_file({"visual.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="no checkpoint in it holds an input embedding"):
        EmbeddingTable(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(UserError, match="can't be read"):
        EmbeddingTable(tmp_path)


@pytest.mark.parametrize(("table", "message"), [((4, 64), "its embedding has 4 rows"), ((400, 64), "beyond float16")])
def test_an_embedding_that_does_not_fit_the_tokenizer_is_refused(
    models_toml: Path, tmp_path: Path, table: tuple[int, int], message: str
) -> None:
    """Too few rows gave means of nothing, NaN, in shards that verified; numbers beyond float16 became infinite."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((models_toml.parent / "llm" / name).read_bytes())
    save_file({"model.embed_tokens.weight": torch.full(table, 1e9)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=message):
        LabelEmbedder(LabelSettings(llm=str(tmp_path)))(["window"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bert"}, "'bert', is no decoder for text alone"),
        ({"model_type": "t5"}, "'t5', is no decoder for text alone"),
        ({"model_type": "gemma3"}, "gemma3"),
        ({"model_type": "llava"}, "is no decoder for text alone"),
        ({"model_type": "gemma2"}, r"it changes its logits \(final_logit_softcapping = 30.0\)"),
        ({"model_type": "recurrent_gemma"}, r"it changes its logits \(logits_soft_cap = 30.0\)"),
        ({"model_type": "cohere"}, r"it changes its logits \(logit_scale = 0.0625\)"),
        ({"model_type": "unheard-of"}, "its config.json can't be read"),
    ],
)
def test_an_llm_that_no_training_could_use_is_refused_before_a_build(
    models_toml: Path, tmp_path: Path, config: dict[str, str], message: str
) -> None:
    """Catches days of annotation for an LLM that the training refuses, or whose exports give other logits."""
    for path in (models_toml.parent / "llm").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message) as error:
        LabelSettings(llm=str(tmp_path)).check()
    assert error.value.field == "llm.llm"


def test_a_pickle_in_place_of_an_embedding_is_refused(tmp_path: Path) -> None:
    torch.save({"model.embed_tokens.weight": [1, 2]}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="can't be read as a checkpoint"):
        EmbeddingTable(tmp_path)
