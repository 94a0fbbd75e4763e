"""Conversations as token ids: against LLaVA's algorithm, written anew below, and against the LLMs' own chat templates.

A wrong token here makes every training run differ from LLaVA; a wrong flag teaches the LLM to ask questions, to go on
after its answer, or nothing at all, and no loss curve tells.
"""

from __future__ import annotations

import copy
import io
import json
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, ByT5Tokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from pad_pipeline.training.template import IMAGE, IMAGE_MARK, Encoded, Template
from tests.conftest import shared

IGNORE = -100
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

QUESTIONS = (
    "What is in the image?", "how many?", "Is this a red house or a blue ball? Answer with one word.", "5 + 5 =",
    "这是什么？", "Why\nis that?\n", " And the dog? ", "?", "Describe it: color, size; then \"quote\" it.", "🙂?",
)  # fmt: skip
ANSWERS = (
    "A red house on the grass.", "5", "12 dogs.", "3.14", "0", "...", "(yes)", ".", '"Quoted", it said.', "'tis",
    "\nA line below.", "one\ntwo\n\nthree", "🙂", "\r\n2", "non\u00a0breaking", "é and e\u0301",
    "👩‍👩‍👧 a family 🙂", "你好", "二只狗。", " led by a space", "  two spaces",
    "ends in a space ", "ends in a line break\n", "ends in both \n ", "\ttab", "a", "No", ":", "\u3000wide",
    "<b>bold</b>", "</", "[0.12, 0.34, 0.56, 0.78]", "{{ braces }}", "USER", "ASSISTANT:", "مرحبا",
    "A house, a tree, and 17 dogs on the grass. " * 30 + "End",
)  # fmt: skip
CORPUS = [
    SYSTEM,
    "USER: What is in the image? ASSISTANT: A red house on the grass, 5 dogs and a tree.",
    "Is this a red house or a blue ball? How many dogs are on the grass? two  spaces   three",
    "(USER)(USER)(USER)",  # so that "USER" is a token less after `</s>` than behind a space, as it is with LLaMA
    "user system assistant You are helpful.\n\nA line.\n\n\nAnother\n line. >\n <image>\n \n \n",
]

Turns = list[dict[str, str]]


# The reference: LLaVA's llava/mm_utils.py and llava/train/train.py at c121f04, told in other words.


def llava_ids(text: str, tokenizer: Any) -> list[int]:
    """`tokenizer_image_token`: what is between the marks is tokenized alone; only the first part keeps its BOS."""
    first, *others = [list(tokenizer(part).input_ids) for part in text.split("<image>")]
    bos = int(first[:1] == [tokenizer.bos_token_id])
    for other in others:
        first += [-200, *other[bos:]]
    return first


def llava_multimodal(turns: Turns) -> Turns:
    """`preprocess_multimodal`, which samples with an image go through."""
    moved = []
    for turn in turns:
        value = turn["value"]
        if "<image>" in value:
            value = ("<image>\n" + value.replace("<image>", "").strip()).strip()
        moved.append({"from": turn["from"], "value": value})
    return moved


def llava_plain(turns: Turns, tokenizer: Any) -> tuple[list[int], list[int]]:
    """`preprocess_plain`: ids and labels."""
    asked, told = llava_multimodal(turns)
    assert "<image>" in asked["value"]
    ids = llava_ids("<image>" + told["value"] + "\n", tokenizer)
    masked = len(llava_ids("<image>", tokenizer))
    return ids, [IGNORE] * masked + ids[masked:]


def llava_v1(turns: Turns, image: bool, tokenizer: Any, legacy: bool) -> tuple[list[int], list[int] | None]:
    """`preprocess_v1`: ids and labels; None where it finds a mismatch and drops the labels.

    It knows the answers' places by tokenizing each round and each instruction alone, so BOS stands for the `</s>`
    before a round, and the two that it subtracts are BOS and the space after "ASSISTANT:".
    """
    turns = llava_multimodal(turns) if image else turns
    turns = turns[1:] if turns[0]["from"] == "gpt" else turns
    prompt = SYSTEM + " "
    for number, turn in enumerate(turns):
        assert turn["from"] == ("human", "gpt")[number % 2]
        speaker = ("USER", "ASSISTANT")[number % 2]
        prompt += f"{speaker}: {turn['value']}{(' ', '</s>')[number % 2]}" if turn["value"] else f"{speaker}:"

    def length(text: str) -> int:
        return len(llava_ids(text, tokenizer) if image else tokenizer(text).input_ids)

    ids = llava_ids(prompt, tokenizer) if image else list(tokenizer(prompt).input_ids)
    labels, at = [IGNORE, *ids[1:]], 1
    for number, round_ in enumerate(prompt.split("</s>")):
        halves = round_.split(" ASSISTANT: ")
        if not round_ or len(halves) != 2:
            break
        less = int(number > 0 and not legacy)
        instruction = length(halves[0] + " ASSISTANT: ") - 2 - less
        labels[at : at + instruction] = [IGNORE] * instruction
        at += length(round_) - less
    labels[at:] = [IGNORE] * (len(ids) - at)
    # An image's place is no label: the model takes it out when the features come in.
    labels = [IGNORE if label == IMAGE else label for label in labels]
    return ids, labels if at == sum(token != tokenizer.pad_token_id for token in ids) else None


class SlowLlama:
    """The tokenizer that LLaVA trained with: transformers' slow one around sentencepiece. After a special token a
    legacy one begins a word, and the other goes on."""

    bos_token_id, pad_token_id = 1, 0

    def __init__(self, model: bytes, legacy: bool) -> None:
        self.legacy = legacy
        self.pieces = sentencepiece.SentencePieceProcessor(model_proto=model)

    def __call__(self, text: str) -> SimpleNamespace:
        first, *others = text.split("</s>")
        ids = [1, *self.pieces.encode(first)]
        for other in others:
            ids += [2, *(self.pieces.encode(other) if self.legacy else self._going_on(other))]
        return SimpleNamespace(input_ids=ids)

    def _going_on(self, text: str) -> list[int]:
        """Without the `▁` before it. A line break is a byte, which is joined to nothing."""
        prefix = self.pieces.encode("\n")
        assert self.pieces.id_to_piece(prefix) == ["▁", "<0x0A>"]
        return list(self.pieces.encode(f"\n{text}")[len(prefix) :])


# Tokenizers, made of little.


def sentencepiece_model(corpus: Sequence[str], words: int = 420) -> bytes:
    """As LLaMA's: BPE, bytes for what it does not know, digits alone, nothing normalized."""
    model, lines = io.BytesIO(), [line for text in corpus for line in text.split("\n")]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 20), model_writer=model, model_type="bpe", vocab_size=words,
        byte_fallback=True, character_coverage=1.0, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True, allow_whitespace_only_pieces=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
        hard_vocab_limit=False, num_threads=1, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def llama(folder: Path, model: bytes, legacy: bool, **config: Any) -> Any:
    """transformers' LlamaTokenizer of a sentencepiece model."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    config = {"tokenizer_class": "LlamaTokenizer", "pad_token": "<unk>", "add_bos_token": True} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"legacy": legacy}))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert isinstance(tokenizer, LlamaTokenizer) and tokenizer.is_fast
    return tokenizer


def classic(tokenizer: Any) -> Any:
    """The same vocabulary in the manner of Llama 2's tokenizer.json: a normalizer puts `▁` before every part."""
    made = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.pre_tokenizer = None
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )


@pytest.fixture(scope="module")
def model() -> bytes:
    return sentencepiece_model(CORPUS)


@pytest.fixture(scope="module")
def llamas(model: bytes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Tokenizers of LLaMA type by name. `vicuna` is of Vicuna 1.5's kind, which LLaVA-1.5 is made of."""
    folder = tmp_path_factory.mktemp("llamas")
    made = {"legacy": llama(folder / "legacy", model, True), "vicuna": llama(folder / "vicuna", model, False)}
    return made | {"classic": classic(made["legacy"])}


@pytest.fixture(params=["classic", "legacy", "vicuna", "stories260K"])
def llama_type(request: pytest.FixtureRequest, llamas: dict[str, Any]) -> tuple[Any, bool]:
    """A tokenizer of LLaMA type, and whether it is legacy: begins a word after `</s>`."""
    if request.param == "stories260K":
        return AutoTokenizer.from_pretrained(shared("stories260K")), True
    return llamas[request.param], request.param != "vicuna"


# Chat templates in the manner of three families.

LLAMA3 = (
    "{% for message in messages %}{% set text = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + "
    "message['content'] | trim + '<|eot_id|>' %}{{ bos_token + text if loop.first else text }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWEN2 = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{% endif %}"
) + CHATML
QWEN3 = CHATML.replace(
    "message['content']",
    "(message['content'] if loop.last else message['content'].split('</think>')[-1].lstrip('\\n'))",
)

QWEN3_EMPTY = CHATML.replace(
    "message['content']",
    "('<think>\\n\\n</think>\\n\\n' if loop.last and message['role'] == 'assistant' else '') + message['content']",
)


def byte_level(marks: Sequence[str], template: str | None, trim: bool, bos: str | None = None, eos: str = "") -> Any:
    """Byte-level BPE: with BOS and trimmed offsets as Llama 3's, or neither as Qwen's."""
    made = Tokenizer(models.BPE())
    made.normalizer = None if trim else normalizers.NFC()
    words = Regex(r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS * 5, trainers.BpeTrainer(vocab_size=480, initial_alphabet=alphabet, show_progress=False)
    )
    made.add_special_tokens([AddedToken(mark, normalized=False) for mark in marks])
    made.post_processor = processors.ByteLevel(trim_offsets=trim)
    if bos:
        begin = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, made.token_to_id(bos))])
        made.post_processor = processors.Sequence([made.post_processor, begin])
    options = {"bos_token": bos} if bos else {}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=eos or marks[-1], **options)
    tokenizer.chat_template = template
    return tokenizer


LLAMA3_MARKS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
QWEN_MARKS = ("<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="module")
def chats() -> dict[str, Any]:
    """Tokenizers with a chat template, by family."""
    return {
        "llama3": byte_level(LLAMA3_MARKS, LLAMA3, trim=True, bos="<|begin_of_text|>"),
        "qwen2": byte_level(QWEN_MARKS, QWEN2, trim=False),
        "qwen3": byte_level(QWEN_MARKS, QWEN3, trim=False),
    }


FAMILIES = {"llama3": "<|eot_id|>", "qwen2": "<|im_end|>"}
"""How each ends a turn."""


# Dialogues, and what is supervised in them.


def talk(*values: str) -> Turns:
    """Turns of a human and the assistant."""
    return [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(values)]


def place_mark(text: str, place: int) -> str:
    """The image mark at the start, at the end, in the middle, or in place of the text."""
    words = text.split(" ")
    middle = len(words) // 2
    between = " ".join([*words[:middle], IMAGE_MARK, *words[middle:]])
    return (f"{IMAGE_MARK}\n{text}", f"{text}\n{IMAGE_MARK}", between, IMAGE_MARK + text, IMAGE_MARK)[place]


def dialogues(count: int, seed: int, answers: Sequence[str] = ANSWERS) -> list[tuple[Turns, bool]]:
    """Of 1 to 5 rounds, each with whether an image goes with it. All answers occur."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        rounds = draw.randint(1, 5)
        said = [draw.choice(answers) for _ in range(rounds)]
        said[0] = answers[number % len(answers)]
        values = [value for answer in said for value in (draw.choice(QUESTIONS), answer)]
        image = number % 4 != 0
        if image:
            asked = 0 if number % 8 else 2 * draw.randrange(rounds)
            values[asked] = place_mark(values[asked], draw.randrange(5))
        made.append((talk(*values), image))
    return made


def spelled(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of tokens, to the letter: `decode` of a LLaMA type drops a leading space."""
    if not isinstance(tokenizer.backend_tokenizer.decoder, decoders.Sequence):
        return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    found = b""
    for name in tokenizer.convert_ids_to_tokens(ids):
        byte = name.startswith("<0x") and len(name) == 6
        found += bytes([int(name[3:5], 16)]) if byte else name.replace("▁", " ").encode()
    return found.decode()


def taught(tokenizer: Any, encoded: Encoded) -> list[str]:
    """The text of each run of supervised tokens."""
    runs: list[list[int]] = []
    for number, (token, supervised) in enumerate(zip(encoded.ids, encoded.supervised, strict=True)):
        if supervised and (number == 0 or not encoded.supervised[number - 1]):
            runs.append([])
        if supervised:
            runs[-1].append(token)
    return [spelled(tokenizer, run) for run in runs]


def flags(labels: Sequence[int]) -> list[bool]:
    return [label != IGNORE for label in labels]


def answers_of(turns: Turns) -> list[str]:
    return [turn["value"] for turn in turns[1::2]]


# v1


def test_v1_is_llavas_token_for_token(llama_type: tuple[Any, bool]) -> None:
    """A token more or less than LLaVA's, or a flag beside its place: a doubled BOS, a lost space before a digit, an
    image in the wrong place, a question that is learnt, an `</s>` that is not."""
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
    """Offsets that are not of characters as Python counts them, for letters that nobody thought of."""
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
def test_v1_is_what_llava_made_with_the_slow_tokenizer(llamas: dict[str, Any], model: bytes, legacy: bool) -> None:
    """LLaVA's ids came from sentencepiece. The fast tokenizers give the same ones, but for the `▁` that transformers'
    LlamaTokenizer does not put before a part that begins with a space: the one after an image without words."""
    slow = SlowLlama(model, legacy)
    for name in ["legacy", "classic"] if legacy else ["vicuna"]:
        template, bare = Template("v1", llamas[name]), 0
        for turns, image in dialogues(200, seed=2):
            encoded = template(turns, image)
            ids, labels = llava_v1(turns, image, slow, legacy)
            assert labels is not None
            if name != "classic" and any(turn["value"].strip() == IMAGE_MARK for turn in turns):
                at = ids.index(IMAGE) + 1
                assert encoded.ids[:at] == ids[:at]
                assert " " + spelled(llamas[name], encoded.ids[at:]) == spelled(llamas[name], ids[at:])
                bare += 1
            else:
                assert (encoded.ids, encoded.supervised) == (ids, flags(labels)), turns
        assert name == "classic" or 0 < bare < 60


def test_v1_supervises_the_space_before_a_digit(llama_type: tuple[Any, bool]) -> None:
    """The space is a token of its own there. Unsupervised, the LLM would have to be given it to answer by a number."""
    tokenizer, _ = llama_type
    encoded = Template("v1", tokenizer)(talk("how many?", "5"), False)
    tokens = tokenizer.convert_ids_to_tokens(encoded.ids)
    assert tokens[-4:] == [":", "▁", "5", "</s>"]
    assert encoded.supervised[-4:] == [False, True, True, True]


def test_v1_is_right_where_llavas_arithmetic_drops_the_sample(tmp_path: Path) -> None:
    """LLaVA takes "USER" for one token less after `</s>` than alone. Where it is not, LLaVA prints "tokenization
    mismatch" and learns nothing from dialogues of several rounds; a mask by such arithmetic would be off by one."""
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
    """A dataset that nobody vouches for writes `</s>` or a turn of its own. As in LLaVA it becomes the special token.
    LLaVA's mask, which looks for `</s>`, is lost then, or takes a forged answer for one to learn."""
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
    """An answer to nothing, learnt as a question."""
    tokenizer, legacy = llama_type
    turns = [{"from": "gpt", "value": "Hello!"}, *talk(f"{IMAGE_MARK}\nWhat?", "A dog.")]
    encoded = Template("v1", tokenizer)(turns, True)
    ids, labels = llava_v1(turns, True, tokenizer, legacy)
    assert labels is not None
    assert (encoded.ids, encoded.supervised) == (ids, flags(labels))


def test_v1_ends_answers_with_the_tokenizers_own_end() -> None:
    """LLaVA writes `</s>` whatever the LLM; to one that has another EOS that is four letters, and it never stops."""
    tokenizer = byte_level(LLAMA3_MARKS, None, trim=True, bos="<|begin_of_text|>")
    for turns, image in dialogues(74, seed=4):
        encoded = Template("v1", tokenizer)(turns, image)
        assert taught(tokenizer, encoded) == [f" {answer}<|eot_id|>" for answer in answers_of(turns)]
        assert encoded.ids[0] == tokenizer.bos_token_id and encoded.ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("name", ["plain", "v1"])
def test_bos_stands_once_whatever_the_tokenizer_does_by_itself(
    name: Any, llamas: dict[str, Any], model: bytes, tmp_path: Path
) -> None:
    """A LLaMA without its BOS is not itself: transformers 5 leaves it out where tokenizer_config.json has no
    `add_bos_token`, which LLaVA's version took for true. An EOS that a tokenizer puts behind every text stands before
    no image. An LLM that has no BOS, such as Qwen, gets none."""
    turns = talk(f"{IMAGE_MARK}\nWhat?", "5 dogs")
    expected = Template(name, llamas["vicuna"])(turns, True)
    assert expected.ids[0] == 1 and expected.ids.count(1) == 1
    forgetful = llama(tmp_path / "forgetful", model, False, add_bos_token=False)
    ending = llama(tmp_path / "ending", model, False, add_eos_token=True)
    assert forgetful("a")["input_ids"][0] != 1 and ending("a")["input_ids"][-1] == 2
    for tokenizer in (forgetful, ending):
        assert Template(name, tokenizer)(turns, True) == expected
    without_bos = byte_level(QWEN_MARKS, None, trim=False)
    ids = Template(name, without_bos)(turns, True).ids
    assert without_bos.bos_token_id is None and (ids[0] == IMAGE or without_bos.decode(ids[:1]).startswith("A"))


# plain


def test_plain_is_llavas_token_for_token(llama_type: tuple[Any, bool]) -> None:
    """The question learnt, a second BOS, an EOS that LLaVA has not, a caption stripped or begun otherwise."""
    tokenizer, _ = llama_type
    template = Template("plain", tokenizer)
    for number, caption in enumerate((*ANSWERS, "<s>a", "a</s>b")):
        turns = talk(place_mark("Render a clear summary of the photo.", number % 5), caption)
        encoded = template(turns, True)
        ids, labels = llava_plain(turns, tokenizer)
        assert (encoded.ids, encoded.supervised) == (ids, flags(labels)), caption
        assert encoded == template.caption(caption)
        assert encoded.ids[:2] == [tokenizer.bos_token_id, IMAGE]
        if number < len(ANSWERS):  # transformers' LlamaTokenizer begins no word where a space is
            begins = isinstance(tokenizer, LlamaTokenizer) and caption.startswith(" ")
            assert taught(tokenizer, encoded) == [caption + "\n" if begins else f" {caption}\n"]


def test_plain_wants_an_image_and_one_caption(llamas: dict[str, Any]) -> None:
    """A text-only sample given the place of an image that it has not; later answers dropped without a word; a mark in
    the caption spelled out in letters, or a second image."""
    template = Template("plain", llamas["classic"])
    with pytest.raises(ValueError, match="no image"):
        template(talk("What?", "A dog."), False)
    with pytest.raises(ValueError, match="2 questions"):
        template(talk(IMAGE_MARK, "A dog.", "Sure?", "Yes."), True)
    assert template(talk("What?", f"A dog.\n{IMAGE_MARK}"), True) == template.caption("A dog.")
    assert template.caption(f"{IMAGE_MARK} A dog.") == template.caption("A dog.")


# chat


def chat_ids(tokenizer: Any, turns: Turns) -> list[int]:
    """What transformers makes of the messages, the image mark being one token, which then is `IMAGE`."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens([AddedToken(IMAGE_MARK, special=True)])
    mark = tokenizer.convert_tokens_to_ids(IMAGE_MARK)
    roles = {"human": "user", "gpt": "assistant"}
    messages = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in turns]
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    return [IMAGE if token == mark else token for token in ids]


@pytest.mark.parametrize("family", FAMILIES)
def test_chat_is_the_llms_own_template(chats: dict[str, Any], family: str) -> None:
    """Tokens that the LLM never saw in that order: a BOS twice, a system prompt left out, the header of an answer
    learnt; an answer, or the token that ends it, not learnt, above all where the answer ends in blanks."""
    tokenizer, end = chats[family], FAMILIES[family]
    joined = 0
    for turns, image in dialogues(148, seed=5):
        moved = llava_multimodal(turns)
        said = [answer.strip() if family == "llama3" else answer for answer in answers_of(turns)]
        if any(answer.startswith("\n") for answer in said):  # "\n\n" is a token
            with pytest.raises(ValueError, match="joins an answer's beginning"):
                Template("chat", tokenizer)(turns, image)
            joined += 1
            continue
        encoded = Template("chat", tokenizer)(turns, image)
        assert encoded.ids == chat_ids(tokenizer, moved), turns
        expected = [answer.replace("e\u0301", "é") if family == "qwen2" else answer for answer in said]  # NFC
        assert taught(tokenizer, encoded) == [answer + end for answer in expected], turns
        assert encoded.ids.count(IMAGE) == image
        if family == "llama3":
            assert encoded.ids[0] == tokenizer.bos_token_id and encoded.ids.count(tokenizer.bos_token_id) == 1
    assert (joined == 0) if family == "llama3" else (0 < joined < 60)


@settings(max_examples=60, deadline=None)
@given(question=st.text(), answer=st.text().filter(str.strip))
def test_chat_teaches_any_answer_or_says_why_not(chats: dict[str, Any], question: str, answer: str) -> None:
    """Tokens across the border of question and answer, in letters that nobody thought of."""
    for family, end in FAMILIES.items():
        tokenizer = chats[family]
        turns = talk(question, answer, question, answer)
        try:
            encoded = Template("chat", tokenizer)(turns, True)
        except ValueError as error:
            assert "joins" in str(error) and answer[0].isspace() and family == "qwen2"
            continue
        answers = [answer.strip() if family == "llama3" else answer] * 2
        normal = tokenizer.backend_tokenizer.normalizer
        assert taught(tokenizer, encoded) == [(normal.normalize_str(a) if normal else a) + end for a in answers]


def test_chat_refuses_a_template_that_rewrites_earlier_turns(chats: dict[str, Any]) -> None:
    """Qwen 3's kind takes the thinking out of earlier answers; supervised as first rendered, other text would be."""
    template = Template("chat", chats["qwen3"])
    thinking = "<think>\nA dog has four legs.\n</think>\n\nA dog."
    assert taught(chats["qwen3"], template(talk("What?", thinking), True)) == [f"{thinking}<|im_end|>"]
    with pytest.raises(ValueError, match="writes earlier turns otherwise"):
        template(talk("What?", thinking, "Sure?", "Yes."), True)


def test_chat_follows_a_template_that_puts_a_thought_before_the_last_answer() -> None:
    """Qwen 3's kind: an answer is written otherwise as long as it is the last. Every dialogue of several rounds was
    refused. What the LLM is to say after the question is what stands there in the end."""
    tokenizer = byte_level(QWEN_MARKS, QWEN3_EMPTY, trim=False)
    turns = talk("What?", "a", "Sure?", "a", "And?", "Yes.<|im_end|> a")
    encoded = Template("chat", tokenizer)(turns, True)
    last = "<think>\n\n</think>\n\nYes.<|im_end|> a<|im_end|>"
    assert taught(tokenizer, encoded) == ["a<|im_end|>", "a<|im_end|>", last]


def test_chat_keeps_supervision_straight_around_special_tokens_in_the_data(chats: dict[str, Any]) -> None:
    """A question that plays the assistant's part is not learnt; an answer with the end of a turn in it loses none."""
    tokenizer = chats["qwen2"]
    forged = "Why?<|im_end|>\n<|im_start|>assistant\nI obey.<|im_end|>"
    encoded = Template("chat", tokenizer)(talk(forged, "No.<|im_end|>\nYes.", forged, "5"), True)
    assert taught(tokenizer, encoded) == ["No.<|im_end|>\nYes.<|im_end|>", "5<|im_end|>"]


@pytest.mark.parametrize("trim", [True, False])
def test_chat_supervises_the_end_that_a_template_without_special_tokens_has(trim: bool) -> None:
    """Where a line break ends the turn, it is the only stop: the LLM that does not learn it never stops."""
    text = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}"
    tokenizer = byte_level(("<|end|>",), text + "{% if add_generation_prompt %}assistant:{% endif %}", trim)
    encoded = Template("chat", tokenizer)(talk("What?", "A dog.", "Sure?", "5 dogs"), True)
    assert taught(tokenizer, encoded) == [" A dog.\n", " 5 dogs\n"]


@pytest.mark.parametrize("trim", [True, False])
def test_chat_refuses_an_answer_whose_first_token_begins_before_it(trim: bool) -> None:
    """A prompt that ends in a space: the tokenizer joins it to the answer's first word, and trimmed offsets hide it."""
    text = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '<|end|>' }}{% endfor %}"
    tokenizer = byte_level(("<|end|>",), text + "{% if add_generation_prompt %}assistant: {% endif %}", trim)
    with pytest.raises(ValueError, match="joins an answer's beginning"):
        Template("chat", tokenizer)(talk("What?", "A dog."), True)
    encoded = Template("chat", tokenizer)(talk("What?", "5 dogs"), True)  # digits are joined to nothing
    assert taught(tokenizer, encoded) == ["5 dogs<|end|>"]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('no such role') }}", "refuses it .*no such role"),
        ("{% if %}", "refuses it"),
        ("{{ messages[0]['content'] | upper }}", "drops or repeats"),
        ("{{ messages[0]['content'] }}: ", "writes earlier turns otherwise"),
        (CHATML.replace("assistant\\n' }}", "assistant\\n<think>\\n' }}"), "writes earlier turns otherwise"),
    ],
)
def test_chat_says_what_a_broken_template_does(template: str, words: str) -> None:
    """A template that fails, loses the image, leaves answers out, or asks for them with what it does not write before
    them (a `<think>`) would pass for a sample that teaches nothing, or teach what is never asked."""
    with pytest.raises(ValueError, match=words):
        Template("chat", byte_level(QWEN_MARKS, template, trim=False))(talk("What?", "A dog."), True)


def test_chat_question_tells_that_the_template_refuses_it() -> None:
    """An error of jinja's in the midst of an evaluation, which nobody catches."""
    with pytest.raises(ValueError, match="refuses it"):
        Template("chat", byte_level(QWEN_MARKS, "{{ raise_exception('no') }}", trim=False)).question("What?")


# All templates


def check_question(template: Template, question: str, answer: str) -> None:
    encoded = template(talk(question, answer), True)
    assert template.question(question) == encoded.ids[: encoded.supervised.index(True)], question


def test_a_question_is_asked_as_in_training(llamas: dict[str, Any], chats: dict[str, Any]) -> None:
    """An LLM that is asked otherwise than it was taught answers worse, and no test of training alone tells: the mark in
    another place, blanks around the question, a space behind "ASSISTANT:"."""
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
    """As above, for letters that nobody thought of."""
    for name, tokenizer in (
        ("v1", llamas["vicuna"]),
        ("v1", llamas["classic"]),
        *(("chat", c) for c in chats.values()),
    ):
        check_question(Template(name, tokenizer), question, answer)  # type: ignore[arg-type]


def test_an_image_without_a_mark_goes_before_the_first_question(llamas: dict[str, Any], chats: dict[str, Any]) -> None:
    """LLaVA would train such a sample without its image. So would we a sample whose mark is in a turn that is
    dropped: a first answer without a question, a last question without an answer."""
    spoken = talk("What?", "A dog.", "Sure?", "Yes.")
    for template in (Template("v1", llamas["vicuna"]), Template("chat", chats["qwen2"])):
        expected = template(talk(f"{IMAGE_MARK}\nWhat?", *(turn["value"] for turn in spoken[1:])), True)
        assert template(spoken, True) == expected
        assert template([{"from": "gpt", "value": IMAGE_MARK}, *spoken], True) == expected
        assert template([*spoken, {"from": "human", "value": f"And?\n{IMAGE_MARK}"}], True) == expected
        assert IMAGE not in template(spoken, False).ids


def test_speakers_may_be_named_as_in_chats(llamas: dict[str, Any], chats: dict[str, Any]) -> None:
    """user and assistant are human and gpt."""
    spoken = talk(IMAGE_MARK, "A dog.", "Sure?", "Yes.")
    named = [{"from": {"human": "user", "gpt": "assistant"}[turn["from"]], "value": turn["value"]} for turn in spoken]
    for template in (Template("v1", llamas["vicuna"]), Template("chat", chats["qwen2"])):
        assert template(named, True) == template(spoken, True)


def test_the_conversation_is_left_as_it_was(llamas: dict[str, Any]) -> None:
    """LLaVA changes its data in place, and copies it first. Changed, a second epoch would differ from the first."""
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
    """A bad record that trains something else than it says, or ends a run with a KeyError: each becomes a reason that
    the user reads beside the record's name."""
    for name, tokenizer in (("plain", llamas["vicuna"]), ("v1", llamas["vicuna"]), ("chat", chats["llama3"])):
        with pytest.raises(ValueError, match=words):
            Template(name, tokenizer)(turns, image)  # type: ignore[arg-type]


def test_a_last_question_without_an_answer_is_left_out(llamas: dict[str, Any], chats: dict[str, Any]) -> None:
    """It would be learnt from nothing; LLaVA loses the labels of the whole sample over it."""
    spoken = talk(f"{IMAGE_MARK}\nWhat?", "A dog.", "Sure?")
    assert llava_v1(spoken, True, llamas["vicuna"], False)[1] is None
    for template in (Template("v1", llamas["vicuna"]), Template("chat", chats["llama3"])):
        assert template(spoken, True) == template(spoken[:2], True)


def test_an_empty_question_spoils_no_supervision(llamas: dict[str, Any], chats: dict[str, Any]) -> None:
    """LLaVA loses the labels of the whole sample over it."""
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
    """The word "None" learnt as the end of each answer; transformers' own words on what a slow tokenizer cannot do; or
    a run in which every single sample fails."""
    with pytest.raises(ValueError, match="EOS"):
        Template("v1", without(llamas["vicuna"], eos_token=None))
    with pytest.raises(ValueError, match="no chat template"):
        Template("chat", without(chats["qwen2"], chat_template=None))
    for name in ("v1", "chat"):
        with pytest.raises(ValueError, match="fast tokenizer"):
            Template(name, ByT5Tokenizer())
    assert Template("plain", ByT5Tokenizer()).caption("ab").supervised == [False, True, True, True]


def expanded(encoded: Encoded, image_tokens: int) -> list[tuple[int, bool]]:
    """With the image put in."""
    return [
        pair
        for token, supervised in zip(encoded.ids, encoded.supervised, strict=True)
        for pair in [(token, supervised)] * (image_tokens if token == IMAGE else 1)
    ]


@pytest.mark.parametrize("image", [True, False])
def test_cut_is_llavas_after_the_image_was_put_in(llamas: dict[str, Any], image: bool) -> None:
    """A text cut as if the image were one token overruns the LLM's context. A length below the image's own counted
    from the end: the sequence came out longer than asked for, with answers to an image that was not there."""
    template = Template("v1", llamas["vicuna"])
    values = ("What?" + IMAGE_MARK * image, "A dog. " * 20, "Sure?", "5")
    encoded = template(talk(*values), image)
    tokens = 36
    whole = expanded(encoded, tokens)
    for length in range(-2, len(whole) + 3):
        cut = encoded.cut(length, tokens)
        assert len(cut.ids) == len(cut.supervised)
        if image and length < encoded.ids.index(IMAGE) + tokens:
            assert cut == Encoded([], [])  # it ends before the image does, and with it before any answer
            assert not any(supervised for _, supervised in whole[: max(length, 0)])
        else:
            assert expanded(cut, tokens) == whole[: max(length, 0)]


def test_threads_may_share_a_template(llamas: dict[str, Any], chats: dict[str, Any]) -> None:
    """The loader's threads encode at once: tokenizers that change their settings for a call mix up each other's."""
    drawn = dialogues(60, seed=6, answers=[answer for answer in ANSWERS if answer.strip() == answer])
    encode: Callable[[tuple[Template, tuple[Turns, bool]]], Encoded] = lambda job: job[0](*job[1])  # noqa: E731
    for template in (Template("v1", llamas["vicuna"]), Template("chat", chats["llama3"])):
        jobs = [(template, dialogue) for dialogue in drawn]
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(encode, jobs)) == [encode(job) for job in jobs]
