"""Real tokenizers give the ids that their authors' code gives, and exports ask as the training did.

The tokenizers of Vicuna 1.5, Qwen 3 and Mistral, and the ids that LLaVA's own code made, are check data beside the
project. Without them these tests are skipped. The small tokenizers of the other tests are trained by the tests.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sentencepiece import SentencePieceProcessor
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    pipeline,
)

from pad_pipeline.errors import UserError
from pad_pipeline.labels import LabelEmbedder, LabelSettings
from pad_pipeline.pretrained import load_tokenizer
from pad_pipeline.training.chat import Chat
from pad_pipeline.training.export import export_llava
from pad_pipeline.training.template import IMAGE, IMAGE_MARK, Template
from tests.conftest import shared
from tests.training.dialogues import talk, taught
from tests.training.exported_processors import assistant, heard, user
from tests.training.small_tokenizers import CORPUS, llama, sentencepiece_model
from tests.training.trained_models import build, view_for, write_llm

pytestmark = pytest.mark.usefixtures("no_gpu")

FAMILIES: dict[str, tuple[Any, Any, Any]] = {
    "vicuna15": (LlamaForCausalLM, LlamaConfig, "v1"),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, "chat"),
    "mistral": (MistralForCausalLM, MistralConfig, "chat"),
}
"""Real tokenizer -> model, its config, and the template for dialogues."""

REFUSED = {
    "turn 1, an answer, is empty": "LLaVA learns the end of an answer after nothing, or a space",
    "marks, and one is the most": "LLaVA puts in the image several times, or drops marks within a turn",
    "mark and no image": "LLaVA spells the mark in letters",
}
"""What pad refuses in LLaVA's dialogues, by a part of the reason, and what LLaVA does."""


@pytest.fixture(scope="module")
def llms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of tiny LLMs with the real vocabularies, and the files of the tokenizers that their authors publish."""
    folder = tmp_path_factory.mktemp("llms")
    for name, (kind, config, _) in FAMILIES.items():
        write_llm(folder / name, kind, config, load_tokenizer("llm", shared(f"tokenizers/{name}")), spare=8, head_dim=8)
        for path in (folder / name).glob("tokenizer*"):
            path.unlink()
        for path in shared(f"tokenizers/{name}").iterdir():
            shutil.copy(path, folder / name)
    return folder


@pytest.fixture(scope="module")
def tokenizers(llms: Path) -> dict[str, Any]:
    return {name: load_tokenizer("llm", llms / name) for name in FAMILIES}


def test_vicunas_tokenizer_is_sentencepieces(tokenizers: dict[str, Any], tmp_path: Path) -> None:
    """Catches merges in the order of their ids, which transformers 5 makes of a lone tokenizer.model: runs of spaces
    become other tokens than Vicuna was trained with. An exported tokenizer.json has the right merges, too."""
    vicuna, pieces = tokenizers["vicuna15"], SentencePieceProcessor(str(shared("tokenizers/vicuna15/tokenizer.model")))
    assert vicuna("A photo of a fire hydrant.")["input_ids"] == [1, 319, 15373, 310, 263, 3974, 27246, 21867, 29889]
    right = [263, 3974, 29871, 27246, 21867]
    assert vicuna("a fire  hydrant", add_special_tokens=False)["input_ids"] == right
    vicuna.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    draw = random.Random(0)
    for _ in range(300):
        words = [draw.choice(["a", "fire", "hydrant", "def", "二", "é", "🔥", "3.5", "\n", "\t", "(x)", "ASSISTANT:"])]
        words += [draw.choice([" ", "  ", "    ", "\n", "\t", "of", "dog", "½", "[0.1,", "</p>"]) for _ in range(8)]
        text = "".join(words)
        for one in (vicuna, again):
            assert one(text, add_special_tokens=False)["input_ids"] == pieces.Encode(text), repr(text)


@pytest.mark.parametrize("name", ["v1", "plain"])
def test_every_dialogue_is_llavas_or_differs_by_a_written_rule(tokenizers: dict[str, Any], name: str) -> None:
    """Catches any token that differs from those of LLaVA's own code. Where LLaVA drops all labels of a dialogue,
    because its arithmetic fails, pad supervises the answers; what pad refuses stands in `REFUSED`."""
    template, found = Template(name, tokenizers["vicuna15"]), Counter[str]()  # type: ignore[arg-type]
    for case in json.loads(shared("tokenizers/llava_ids.json").read_text()):
        llava = case[name]
        try:
            ours = template(case["turns"], case["image"])
        except ValueError as error:
            if "ids" not in llava:
                found["LLaVA fails on it, and pad refuses it"] += 1
                continue
            (why,) = [reason for reason in REFUSED if reason in str(error)]
            found[why] += 1
            continue
        if "ids" not in llava:  # LLaVA asserts one round; pad takes the dialogue with an image that has no mark
            found["LLaVA fails on it"] += 1
            continue
        assert ours.ids == llava["ids"], case["turns"]
        labels = [token if supervised else -100 for token, supervised in zip(*ours, strict=True)]
        if labels != llava["labels"]:
            assert set(llava["labels"]) == {-100} and "mismatch" in llava["print"], case["turns"]
            # The text that is learned is the answers', each with its end.
            said = [turn["value"] for turn in case["turns"] if turn["from"] == "gpt"]
            learned = [text.replace(" ", "") for text in taught(template.tokenizer, ours)]
            assert learned == [f"{answer}</s>".replace(" ", "") for answer in said]
            found["LLaVA drops all labels"] += 1
        else:
            found["the same"] += 1
    assert found["the same"] >= {"v1": 220, "plain": 80}[name], found


def odd_dialogues(count: int) -> list[tuple[str, ...]]:
    """Dialogues of one to three rounds: unicode, code with indents, empty questions, coordinates, special tokens."""
    draw = random.Random(1)
    texts = [
        "What is this?", "", "  two  spaces ", "5 + 5 =", "这是什么？", "def f(x):\n    if x:\n        return [x]\n",
        "café 🔥 \u200b e\u0301", "</s> and <|im_end|>", "[INST] x [/INST]", "USER: hi ASSISTANT: ho", "\tTab", "3.14",
    ]  # fmt: skip
    answers = [text for text in texts if text.strip()] + ["[0.1, 0.25, 0.5, 1.0]", "A dog.", "[]", " led", "\n\nlines"]
    return [
        tuple(draw.choice(answers if turn % 2 else texts) for turn in range(2 * draw.randint(1, 3)))
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def exported(parts: Path, llms: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Exported models with the tiny LLMs."""
    folder = tmp_path_factory.mktemp("exported")
    for name, (_, _, template) in FAMILIES.items():
        model = build(llms, name, str(parts / "clip"), template=template)
        export_llava(model, view_for(model), folder / name)
    return {name: folder / name for name in FAMILIES}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_export_asks_as_the_training_did(exported: dict[str, Path], tokenizers: dict[str, Any], name: str) -> None:
    """On 50 odd dialogues. Catches a prompt of other tokens in one call of the processor, in two (as lmms-eval does
    it), or in `pad chat`, so that the LLM answers a question that it was never trained on."""
    template, processor = Template(FAMILIES[name][2], tokenizers[name]), AutoProcessor.from_pretrained(exported[name])
    tokens = processor.image_seq_length if hasattr(processor, "image_seq_length") else 16
    chat, image, parted = Chat(exported[name]), Image.new("RGB", (30, 20)), 0
    for said in odd_dialogues(50):
        trained = template(talk(*said), True)
        first = trained.supervised.index(True)
        asked = template.question(said[0])
        assert trained.ids[:first] == asked or len(said) > 2, said
        assert heard(processor, [user(said[0])], tokens) == asked, said
        prepared = chat.prepare(image, said[0])["input_ids"][0].tolist()
        mark = processor.image_token_id
        once = [IMAGE if t == mark else t for n, t in enumerate(prepared) if t != mark or prepared[n - 1] != mark]
        assert once == asked
        text = processor.tokenizer.apply_chat_template(
            [{"role": "user", "content": f"{IMAGE_MARK}\n{said[0].strip()}"}],
            tokenize=False,
            add_generation_prompt=True,
        )
        assert processor(text=text, images=image)["input_ids"][0] == prepared, said
        # A whole dialogue, as the history of a further question. Only there can a token hold the end of a question and
        # the start of an answer, where the LLM's template has no special token between them.
        roles = [assistant(t) if n % 2 else user(t, image=n == 0) for n, t in enumerate(said)]
        history = heard(processor, roles, tokens, False)
        if history != trained.ids:
            one, two = (processor.tokenizer.decode([t for t in ids if t >= 0]) for ids in (history, trained.ids))
            assert one.replace(" ", "") == two.replace(" ", ""), said
            parted += 1
    assert parted <= {"vicuna15": 0, "qwen3": 3, "mistral": 12}[name], parted


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pipeline_of_transformers_answers_alone_and_in_a_batch(exported: dict[str, Path], name: str) -> None:
    """Catches an export without a pad token, or one that fills up on the wrong side: a batch fails, or its short
    questions get other answers than alone."""
    model = LlavaForConditionalGeneration.from_pretrained(exported[name], dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(exported[name])
    assert processor.tokenizer.pad_token_id == model.generation_config.pad_token_id is not None
    asking = pipeline("image-text-to-text", model=model, processor=processor)
    image = Image.new("RGB", (30, 20))
    questions = ["What?", "Is there a fire hydrant in this photo, or is there none at all?"]
    messages = [
        [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
        for question in questions
    ]
    options = {"max_new_tokens": 6, "do_sample": False}
    alone = [asking(text=one, return_full_text=False, generate_kwargs=options)[0]["generated_text"] for one in messages]
    together = asking(text=messages, return_full_text=False, generate_kwargs=options, batch_size=2)
    assert [found[0]["generated_text"] for found in together] == alone


def test_ram_tags_have_tokens_that_say_something(tokenizers: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """RAM's 4585 tags in each family. Catches a lone space that is averaged into the embedding of "formula 1", and a
    tag without any token."""
    tags = [line.strip() for line in shared("ram/ram_tag_list.txt").read_text("utf-8-sig").splitlines() if line.strip()]
    embedder = object.__new__(LabelEmbedder)
    for name, tokenizer in tokenizers.items():
        embedder.tokenizer, embedder._special = tokenizer, set(tokenizer.all_special_ids)
        for context in ("sentence", "bare"):
            embedder.settings = LabelSettings(llm=name, context=context)  # type: ignore[arg-type]
            shortened = 0
            for tag in tags:
                ids = embedder.tokens(tag)
                assert ids and all(tokenizer.decode([token]).strip() for token in ids), (name, tag)
                whole = tokenizer(tag if context == "bare" else f"a {tag}", add_special_tokens=False)["input_ids"]
                shortened += len(ids) < len(whole) - (context == "sentence")
            assert shortened < 10, "a rule for lone spaces that drops more than lone spaces"


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    """Catches a training on texts of no tokens, exit code 0, because a download left the tokenizer out."""
    llama(tmp_path / "llm", sentencepiece_model(CORPUS), False)
    (tmp_path / "llm/tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"its tokenizer (makes no tokens|can't be loaded).*; .*tokenizer.model"):
        load_tokenizer("llm", tmp_path / "llm")


def test_a_tokenizer_that_disagrees_with_its_sentencepiece_model_is_refused(tmp_path: Path) -> None:
    """A tokenizer.json of another model, or of a wrong conversion, beside a tokenizer.model. Catches a training on
    tokens that the LLM never saw."""
    folder = tmp_path / "llm"
    llama(folder, sentencepiece_model(CORPUS), False).save_pretrained(folder)
    load_tokenizer("llm", folder)
    text = json.loads((folder / "tokenizer.json").read_text())
    text["model"]["merges"] = text["model"]["merges"][::-1]
    (folder / "tokenizer.json").write_text(json.dumps(text))
    with pytest.raises(UserError, match=r"llm = .*its tokenizer makes the tokens .* and its tokenizer.model"):
        load_tokenizer("llm", folder)
