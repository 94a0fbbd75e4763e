"""What holds for every template: how a question is put, what is refused, and where a text is cut."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

from pad_pipeline.training.template import IMAGE, IMAGE_MARK, EncodedText, Template
from tests.training.dialogues import ANSWERS, QUESTIONS, Turns, dialogues, place_mark, talk, taught
from tests.training.llava_reference import llava_v1


def check_question(template: Template, question: str, answer: str) -> None:
    encoded = template(talk(question, answer), True)
    assert template.question(question) == encoded.ids[: encoded.supervised.index(True)], question


def test_a_question_is_asked_as_in_training(llamas: dict[str, Any], chats: dict[str, Any]) -> None:
    """Catches a prompt that differs from the training's: the mark in another place, blanks around the question, a space
    after "ASSISTANT:". The LLM answers worse then, and no test of training alone shows it."""
    templates = [Template(name, llama) for llama in llamas.values() for name in ("plain", "v1")]
    templates += [Template("chat", tokenizer) for tokenizer in chats.values()]
    for question in (*QUESTIONS, "", "  ", *(place_mark(QUESTIONS[0], place) for place in range(5))):
        for template in templates:
            for answer in ("A dog.", "5", " led by a space", "二"):
                check_question(template, question, answer)


@settings(max_examples=40, deadline=None)
@given(question=st.text(), answer=st.text().filter(lambda text: bool(text.strip()) and not text[0].isspace()))
def test_any_question_is_asked_as_in_training(
    llamas: dict[str, Any], chats: dict[str, Any], question: str, answer: str
) -> None:
    """The same for random letters."""
    for name, tokenizer in (
        ("v1", llamas["vicuna"]),
        ("v1", llamas["classic"]),
        *(("chat", c) for c in chats.values()),
    ):
        check_question(Template(name, tokenizer), question, answer)  # type: ignore[arg-type]


def test_an_image_without_a_mark_goes_before_the_first_question(llamas: dict[str, Any], chats: dict[str, Any]) -> None:
    """Catches a sample that is trained without its image, as LLaVA would; also where the mark is in a turn that is
    dropped: a first answer without a question, a last question without an answer."""
    spoken = talk("What?", "A dog.", "Sure?", "Yes.")
    for template in (Template("v1", llamas["vicuna"]), Template("chat", chats["qwen2"])):
        expected = template(talk(f"{IMAGE_MARK}\nWhat?", *(turn["value"] for turn in spoken[1:])), True)
        assert template(spoken, True) == expected
        assert template([{"from": "gpt", "value": IMAGE_MARK}, *spoken], True) == expected
        assert template([*spoken, {"from": "human", "value": f"And?\n{IMAGE_MARK}"}], True) == expected
        assert IMAGE not in template(spoken, False).ids


def test_speakers_may_be_named_as_in_chats(llamas: dict[str, Any], chats: dict[str, Any]) -> None:
    """`user` and `assistant` mean `human` and `gpt`."""
    spoken = talk(IMAGE_MARK, "A dog.", "Sure?", "Yes.")
    named = [{"from": {"human": "user", "gpt": "assistant"}[turn["from"]], "value": turn["value"]} for turn in spoken]
    for template in (Template("v1", llamas["vicuna"]), Template("chat", chats["qwen2"])):
        assert template(named, True) == template(spoken, True)


def test_the_conversation_is_left_as_it_was(llamas: dict[str, Any]) -> None:
    """Catches a change of the data in place, after which a second epoch would differ from the first. (LLaVA copies its
    data first.)"""
    turns = talk(f"What?\n{IMAGE_MARK}", " A dog. ", "And?")
    before = copy.deepcopy(turns)
    Template("v1", llamas["vicuna"])(turns, True)
    assert turns == before


HUMAN, GPT = {"from": "human", "value": "What?"}, {"from": "gpt", "value": "A dog."}


@pytest.mark.parametrize(
    ("turns", "image", "words"),
    [
        (talk(f"{IMAGE_MARK}{IMAGE_MARK}", "A dog."), True, "2 <image> marks"),
        (talk(f"{IMAGE_MARK} What?", "A dog.", f"And {IMAGE_MARK}?", "A cat."), True, "2 <image> marks"),
        (talk(f"{IMAGE_MARK}\nWhat?", f"{IMAGE_MARK} A dog."), True, "2 <image> marks"),
        (talk(f"{IMAGE_MARK}\nWhat?", "A dog."), False, "mark and no image"),
        ([], True, "no answer"),
        ([HUMAN], True, "no answer"),
        ([GPT], True, "no answer"),
        ([GPT, HUMAN], True, "no answer"),
        ([HUMAN, HUMAN, GPT], True, "turn 1 is of 'human'"),
        ([GPT, GPT, HUMAN], True, "turn 0 is of 'gpt'"),
        ([HUMAN, GPT, GPT], False, "turn 2 is of 'gpt'"),
        ([HUMAN, GPT, {"from": "bing", "value": "?"}], False, "turn 2 is of 'bing'"),
        ([{"from": "system", "value": "Be kind."}, HUMAN, GPT], False, "turn 0 is of 'system'"),
        (talk("What?", ""), False, "turn 1, an answer, is empty"),
        (talk("What?", "A dog.", "Sure?", " \n\t"), True, "turn 3, an answer, is empty"),
        (talk("What?", IMAGE_MARK), True, "turn 1, an answer, is empty"),
    ],
)
def test_a_conversation_that_does_not_fit_says_why(
    llamas: dict[str, Any], chats: dict[str, Any], turns: Turns, image: bool, words: str
) -> None:
    """Catches a bad record that teaches something else than it says, or ends a run with a KeyError. Each becomes a
    reason that the user reads beside the record's name."""
    for name, tokenizer in (("plain", llamas["vicuna"]), ("v1", llamas["vicuna"]), ("chat", chats["llama3"])):
        with pytest.raises(ValueError, match=words):
            Template(name, tokenizer)(turns, image)  # type: ignore[arg-type]


def test_a_last_question_without_an_answer_is_left_out(llamas: dict[str, Any], chats: dict[str, Any]) -> None:
    """Catches a question that is learned, and the loss of the whole sample's labels, which happens in LLaVA."""
    spoken = talk(f"{IMAGE_MARK}\nWhat?", "A dog.", "Sure?")
    assert llava_v1(spoken, True, llamas["vicuna"], False)[1] is None
    for template in (Template("v1", llamas["vicuna"]), Template("chat", chats["llama3"])):
        assert template(spoken, True) == template(spoken[:2], True)


def test_an_empty_question_spoils_no_supervision(llamas: dict[str, Any], chats: dict[str, Any]) -> None:
    """Catches the loss of the whole sample's labels, which happens in LLaVA."""
    spoken = talk("", "A dog.", "Sure?", "5")
    assert llava_v1(spoken, False, llamas["vicuna"], False)[1] is None
    assert taught(llamas["vicuna"], Template("v1", llamas["vicuna"])(spoken, False)) == [" A dog.</s>", " 5</s>"]
    found = taught(chats["llama3"], Template("chat", chats["llama3"])(spoken, False))
    assert found == ["A dog.<|eot_id|>", "5<|eot_id|>"]


def without(tokenizer: Any, **parts: Any) -> Any:
    tokenizer = copy.deepcopy(tokenizer)
    for name, value in parts.items():
        setattr(tokenizer, name, value)
    return tokenizer


def test_a_tokenizer_that_lacks_something_is_told_at_once(llamas: dict[str, Any], chats: dict[str, Any]) -> None:
    """Catches the word "None" that is learned as the end of each answer, the message of transformers about what a slow
    tokenizer can't do, and a run in which every sample fails."""
    with pytest.raises(ValueError, match="EOS"):
        Template("v1", without(llamas["vicuna"], eos_token=None))
    with pytest.raises(ValueError, match="no chat template"):
        Template("chat", without(chats["qwen2"], chat_template=None))
    for name in ("v1", "chat"):
        with pytest.raises(ValueError, match="fast tokenizer"):
            Template(name, ByT5Tokenizer())
    assert Template("plain", ByT5Tokenizer()).caption("ab").supervised == [False, True, True, True]


def expanded(encoded: EncodedText, image_tokens: int) -> list[tuple[int, bool]]:
    """Return the ids and flags with the image's tokens put in."""
    return [
        pair
        for token, supervised in zip(encoded.ids, encoded.supervised, strict=True)
        for pair in [(token, supervised)] * (image_tokens if token == IMAGE else 1)
    ]


@pytest.mark.parametrize("image", [True, False])
def test_cut_is_llavas_after_the_image_was_put_in(llamas: dict[str, Any], image: bool) -> None:
    """Catches a text that is cut as if the image were one token, and overruns the LLM's context; and a negative length,
    with which the sequence came out longer than asked for, with answers to an image that was not there."""
    template = Template("v1", llamas["vicuna"])
    values = ("What?" + IMAGE_MARK * image, "A dog. " * 20, "Sure?", "5")
    encoded = template(talk(*values), image)
    tokens = 36
    whole = expanded(encoded, tokens)
    for length in range(-2, len(whole) + 3):
        cut = encoded.truncated(length, tokens)
        assert len(cut.ids) == len(cut.supervised)
        if image and length < encoded.ids.index(IMAGE) + tokens:
            assert cut == EncodedText([], [])  # it ends before the image does, and with it before any answer
            assert not any(supervised for _, supervised in whole[: max(length, 0)])
        else:
            assert expanded(cut, tokens) == whole[: max(length, 0)]


def test_threads_may_share_a_template(llamas: dict[str, Any], chats: dict[str, Any]) -> None:
    """The loader's threads encode at once. Catches tokenizers that change their settings for a call, and mix up those
    of other threads."""
    drawn = dialogues(60, seed=6, answers=[answer for answer in ANSWERS if answer.strip() == answer])
    encode: Callable[[tuple[Template, tuple[Turns, bool]]], EncodedText] = lambda job: job[0](*job[1])  # noqa: E731
    for template in (Template("v1", llamas["vicuna"]), Template("chat", chats["llama3"])):
        jobs = [(template, dialogue) for dialogue in drawn]
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(encode, jobs)) == [encode(job) for job in jobs]
