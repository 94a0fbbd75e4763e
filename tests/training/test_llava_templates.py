"""The templates v1 and plain turn a conversation into the token ids and labels that LLaVA makes of it.

The reference is LLaVA's algorithm, written anew in llava_reference.py. A wrong token here makes every training run
differ from LLaVA; a wrong flag teaches the LLM to ask questions, to go on after its answer, or nothing at all, and the
loss curve does not show it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from pad_pipeline.training.template import IMAGE, IMAGE_MARK, Template
from tests.training.dialogues import ANSWERS, answers_of, dialogues, place_mark, talk, taught
from tests.training.llava_reference import SlowLlama, flags, llava_plain, llava_v1
from tests.training.small_tokenizers import CORPUS, LLAMA3_MARKS, QWEN_MARKS, byte_level, llama, sentencepiece_model


def test_v1_is_llavas_token_for_token(llama_type: tuple[Any, bool]) -> None:
    """Catches a token more or less than LLaVA's, and a flag in the wrong place: a doubled BOS, a lost space before a
    digit, an image in the wrong place, a question that is learned, an `</s>` that is not."""
    tokenizer, legacy = llama_type
    template = Template("v1", tokenizer)
    dropped = 0
    for turns, image in dialogues(200, seed=1):
        encoded = template(turns, image)
        ids, labels = llava_v1(turns, image, tokenizer, legacy)
        assert encoded.ids == ids, turns
        assert encoded.ids.count(IMAGE) == image and encoded.ids.count(tokenizer.bos_token_id) == 1
        assert taught(tokenizer, encoded) == [f" {answer}</s>" for answer in answers_of(turns)], turns
        if labels is None:
            dropped += 1
        else:
            assert encoded.supervised == flags(labels), turns
    assert dropped == 0  # or the comparison says little


@settings(max_examples=60, deadline=None)
@given(question=st.text(), answer=st.text().filter(str.strip), image=st.booleans())
def test_v1_teaches_any_answer_and_nothing_else(
    llamas: dict[str, Any], question: str, answer: str, image: bool
) -> None:
    """Catches offsets that do not count characters as Python does, with random letters."""
    for name, tokenizer in llamas.items():
        turns = talk(question, answer, question, answer)
        encoded = Template("v1", tokenizer)(turns, image)
        assert taught(tokenizer, encoded) == [f" {answer}</s>".replace("▁", " ")] * 2
        marked = talk(f"{IMAGE_MARK}{question}" if image else question, *answers_of(turns)[:1], question, answer)
        ids, labels = llava_v1(marked, image, tokenizer, name != "vicuna")
        if question:  # an empty one LLaVA writes without its spaces, and then it drops the labels
            assert encoded.ids == ids
            assert labels is None or encoded.supervised == flags(labels)


@pytest.mark.parametrize("legacy", [True, False])
def test_v1_is_what_llava_made_with_the_slow_tokenizer(llamas: dict[str, Any], pieces: bytes, legacy: bool) -> None:
    """LLaVA's ids came from sentencepiece. Catches a `▁` that is lost where the LlamaTokenizer of transformers puts
    none, because the text begins with a space: after an image without words."""
    slow = SlowLlama(pieces, legacy)
    for name in ["legacy", "classic"] if legacy else ["vicuna"]:
        template = Template("v1", llamas[name])
        for turns, image in dialogues(200, seed=2):
            encoded = template(turns, image)
            ids, labels = llava_v1(turns, image, slow, legacy)
            assert labels is not None
            assert (encoded.ids, encoded.supervised) == (ids, flags(labels)), turns


def test_v1_supervises_the_space_before_a_digit(llama_type: tuple[Any, bool]) -> None:
    """The space is a token before a digit. Catches an LLM that answers with a number only where it is given that
    space."""
    tokenizer, _ = llama_type
    encoded = Template("v1", tokenizer)(talk("how many?", "5"), False)
    tokens = tokenizer.convert_ids_to_tokens(encoded.ids)
    assert tokens[-4:] == [":", "▁", "5", "</s>"]
    assert encoded.supervised[-4:] == [False, True, True, True]


def test_v1_is_right_where_llavas_arithmetic_drops_the_sample(tmp_path: Path) -> None:
    """LLaVA assumes that "USER" takes one token less after `</s>` than alone. Where that is wrong, LLaVA prints
    "tokenization mismatch" and learns nothing from dialogues of several rounds. Catches a mask by such arithmetic,
    which would be off by one."""
    corpus = [*CORPUS, "USER: USER: USER: USER: a USER: b USER: c ASSISTANT: ASSISTANT: ASSISTANT:"]
    tokenizer = llama(tmp_path / "joined", sentencepiece_model(corpus, 440), False)
    assert tokenizer.tokenize("USER") == ["▁USER"] and tokenizer.tokenize("</s>USER")[1:] != ["▁", "USER"]
    template, dropped = Template("v1", tokenizer), 0
    for turns, image in dialogues(60, seed=3):
        encoded = template(turns, image)
        ids, labels = llava_v1(turns, image, tokenizer, legacy=False)
        assert encoded.ids == ids
        assert taught(tokenizer, encoded) == [f" {answer}</s>" for answer in answers_of(turns)]
        dropped += labels is None
    assert dropped > 30


@pytest.mark.parametrize(
    ("values", "llava"),
    [
        (("a</s>b", "yes", "and?", "no"), "dropped"),
        (("why?", "yes</s>no", "and?", "2"), "dropped"),
        (("why?", "</s>", "and?", "no"), "dropped"),
        (("<s>why?", "<s>yes<s>", "and?", "2"), "the same"),
        (("a <unk> b", "<unk>"), "dropped"),
        (("why?", "he said: ASSISTANT: 7"), "dropped"),
        (("why? ASSISTANT: 7</s>USER: and?", "no"), "deceived"),
    ],
)
def test_v1_keeps_supervision_straight_around_special_tokens_in_the_data(
    llama_type: tuple[Any, bool], values: tuple[str, ...], llava: str
) -> None:
    """An untrusted dataset writes `</s>` or a turn in its texts. As in LLaVA it becomes the special token. Catches
    LLaVA's mask, which looks for `</s>`: it loses its way then, or takes a forged answer for one to learn."""
    tokenizer, legacy = llama_type
    turns = talk(*values)
    encoded = Template("v1", tokenizer)(turns, False)
    ids, labels = llava_v1(turns, False, tokenizer, legacy)
    assert encoded.ids == ids
    assert ("dropped" if labels is None else "the same" if encoded.supervised == flags(labels) else "deceived") == llava
    # Behind a special token a legacy tokenizer begins a word, with a space that is not in the text.
    found = [text.replace(" ", "") for text in taught(tokenizer, encoded)]
    assert found == [f"{answer}</s>".replace(" ", "") for answer in answers_of(turns)]


def test_v1_puts_a_mark_in_an_answer_where_llava_does(llama_type: tuple[Any, bool]) -> None:
    """The mark moves to the front of its own turn, and never counts as a word to say."""
    tokenizer, legacy = llama_type
    turns = talk("What?", f"A dog. {IMAGE_MARK}", "Sure?", "2")
    encoded = Template("v1", tokenizer)(turns, True)
    ids, labels = llava_v1(turns, True, tokenizer, legacy)
    assert labels is not None
    assert (encoded.ids, encoded.supervised) == (ids, flags(labels))
    assert not encoded.supervised[encoded.ids.index(IMAGE)]


def test_v1_drops_a_first_answer_without_question_as_llava_does(llama_type: tuple[Any, bool]) -> None:
    """Catches an answer without a question that is learned, or taken for a question."""
    tokenizer, legacy = llama_type
    turns = [{"from": "gpt", "value": "Hello!"}, *talk(f"{IMAGE_MARK}\nWhat?", "A dog.")]
    encoded = Template("v1", tokenizer)(turns, True)
    ids, labels = llava_v1(turns, True, tokenizer, legacy)
    assert labels is not None
    assert (encoded.ids, encoded.supervised) == (ids, flags(labels))


def test_v1_ends_answers_with_the_tokenizers_own_end() -> None:
    """LLaVA writes `</s>` whatever the LLM. For an LLM with another EOS these are four letters. Catches an LLM that
    never stops."""
    tokenizer = byte_level(LLAMA3_MARKS, None, trim=True, bos="<|begin_of_text|>")
    for turns, image in dialogues(74, seed=4):
        encoded = Template("v1", tokenizer)(turns, image)
        assert taught(tokenizer, encoded) == [f" {answer}<|eot_id|>" for answer in answers_of(turns)]
        assert encoded.ids[0] == tokenizer.bos_token_id and encoded.ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("name", ["plain", "v1"])
def test_bos_stands_once_whatever_the_tokenizer_does_by_itself(
    name: Any, llamas: dict[str, Any], pieces: bytes, tmp_path: Path
) -> None:
    """Catches a LLaMA without its BOS (transformers 5 leaves it out where tokenizer_config.json has no `add_bos_token`,
    and LLaVA's version put it in), an EOS before an image, of a tokenizer that puts EOS after every text, and a BOS for
    an LLM that has none, such as Qwen, or whose tokenizer is told to put none."""
    turns = talk(f"{IMAGE_MARK}\nWhat?", "5 dogs")
    expected = Template(name, llamas["vicuna"])(turns, True)
    assert expected.ids[0] == 1 and expected.ids.count(1) == 1
    llama(tmp_path / "forgetful", pieces, False)
    config = tmp_path / "forgetful/tokenizer_config.json"
    config.write_text(config.read_text().replace('"add_bos_token": true, ', ""))
    forgetful = AutoTokenizer.from_pretrained(tmp_path / "forgetful")
    ending = llama(tmp_path / "ending", pieces, False, add_eos_token=True)
    assert forgetful("a")["input_ids"][0] != 1 and ending("a")["input_ids"][-1] == 2
    for tokenizer in (forgetful, ending):
        assert Template(name, tokenizer)(turns, True) == expected
    told = llama(tmp_path / "told", pieces, False, add_bos_token=False)
    assert Template(name, told)(turns, True).ids == expected.ids[1:]
    unused = byte_level(QWEN_MARKS, None, trim=False)
    unused.bos_token = QWEN_MARKS[0]  # as SmolLM 2's, with which each turn begins
    assert unused.bos_token_id not in Template(name, unused)(turns, True).ids
    without_bos = byte_level(QWEN_MARKS, None, trim=False)
    ids = Template(name, without_bos)(turns, True).ids
    assert without_bos.bos_token_id is None and (ids[0] == IMAGE or without_bos.decode(ids[:1]).startswith("A"))


def test_plain_is_llavas_token_for_token(llama_type: tuple[Any, bool]) -> None:
    """Catches a question that is learned, a second BOS, an EOS that LLaVA does not have, and a caption that is stripped
    or begins in another way."""
    tokenizer, _ = llama_type
    template = Template("plain", tokenizer)
    for number, caption in enumerate((*ANSWERS, "<s>a", "a</s>b")):
        turns = talk(place_mark("Render a clear summary of the photo.", number % 5), caption)
        encoded = template(turns, True)
        ids, labels = llava_plain(turns, tokenizer)
        assert (encoded.ids, encoded.supervised) == (ids, flags(labels)), caption
        assert encoded == template.caption(caption)
        assert encoded.ids[:2] == [tokenizer.bos_token_id, IMAGE]
        if number < len(ANSWERS):
            assert taught(tokenizer, encoded) == [f" {caption}\n"]


def test_plain_wants_an_image_and_one_caption(llamas: dict[str, Any]) -> None:
    """Catches a sample of text alone with a place for an image, later answers that are dropped without a word, and a
    mark in the caption that is spelled in letters or makes a second image."""
    template = Template("plain", llamas["classic"])
    with pytest.raises(ValueError, match="no image"):
        template(talk("What?", "A dog."), False)
    with pytest.raises(ValueError, match="2 questions"):
        template(talk(IMAGE_MARK, "A dog.", "Sure?", "Yes."), True)
    assert template(talk("What?", f"A dog.\n{IMAGE_MARK}"), True) == template.caption("A dog.")
    assert template.caption(f"{IMAGE_MARK} A dog.") == template.caption("A dog.")
