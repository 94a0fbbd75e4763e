"""Which tokens of an LLM are readable words, for every kind of tokenizer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from pad_pipeline.analysis.tally import WordTally
from pad_pipeline.measures.vocabulary import Vocabulary, beyond_chance, is_word
from tests.conftest import shared
from tests.training.small_tokenizers import QWEN_MARKS, byte_level, llama, sentencepiece_model

WORDS = (
    " dog",
    " Привет",
    " हिन्दी",
    " بيت",
    " 한국",
    " 개",
    "犬",
    " 犬",
    "大きい",
    "テレビ",
    "น้ำ",
    "แมว",
    "ພາສາ",
    " ḍog",
)
NO_WORDS = (
    "", " ", "  ", "\n", "\t ", "\u200b", "\x00", " \x07", "dog", " d", "d", "привет", "개", "の", "ข", "\ufffd",
    " \ufffd", " do\ufffd", "大\ufffd", ".", " ...", " -", " 12", " 2x", " dog's", " \u0301", "。", "、大",
    " dog ", "  dog", "🐕",
)  # fmt: skip


@pytest.mark.parametrize("text", WORDS)
def test_letters_of_any_script_are_words(text: str) -> None:
    """Catches `isalpha` alone, to which vowel signs are no letters, and a space wanted where a script has none."""
    assert is_word(text)


@pytest.mark.parametrize("text", NO_WORDS)
def test_whitespace_bytes_punctuation_and_parts_of_words_are_no_words(text: str) -> None:
    """Catches whatever else a vocabulary holds and a reader can't read as a word."""
    assert not is_word(text)


def spelled(data: bytes) -> str:
    """Bytes as byte-level BPE spells them."""
    return "".join(bytes_to_unicode()[byte] for byte in data)


def tokenizer_of(tokens: list[str], decoder: Any, **special: str) -> PreTrainedTokenizerFast:
    """A tokenizer with these tokens."""
    made = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token=tokens[0]))
    made.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


SENTENCEPIECE = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
FAMILIES: dict[str, tuple[Any, list[str], list[str]]] = {
    "sentencepiece": (
        SENTENCEPIECE,
        ["▁dog", "▁при", "犬"],
        ["dog", "▁", "▁▁▁", "▁▁dog", "<0x0A>", "<0xE7>", "<0x41>", "▁d", ".", "▁.", "▁12", "\n"],
    ),
    "byte-level": (
        decoders.ByteLevel(),
        [spelled(text.encode()) for text in (" dog", " при", "犬", "แมว")],
        ["dog", *map(spelled, (b" ", b"  ", b"\n", b" \n", b"\x00", b"\xe7", b" \xc3", b" d", b" .", b" 12"))],
    ),
    "wordpiece": (decoders.WordPiece(cleanup=False), ["dog", "犬", "при"], ["##dog", "d", "##d", ".", "12", "##при"]),
    "metaspace": (decoders.Metaspace(), ["▁dog", "▁при", "犬"], ["dog", "▁", "▁d", ".", "▁12"]),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_spells_the_same_words(family: str) -> None:
    """The space before a word is `▁`, `Ġ` or the lack of `##`, and bytes are `<0x41>` or letters. Catches whitespace
    ("ĠĠ") that counts as a word because its spelling has letters only, parts of words, special tokens."""
    decoder, words, others = FAMILIES[family]
    tokens = ["<unk>", *others, *words, "special"]
    made = tokenizer_of(tokens, decoder, unk_token="<unk>", eos_token="special")
    found = Vocabulary(made, len(tokens), {})
    readable = [token for token, yes in zip(tokens, found.readable.tolist(), strict=True) if yes]
    assert readable == words
    assert found.words[tokens.index(words[0])] == "dog"
    ids = found.token_ids("all")
    assert found.readable_by_chance(ids) == pytest.approx(len(words) / (len(tokens) - 2))
    assert found.token_ids("whole").tolist() == found.readable.nonzero()[:, 0].tolist()


def test_trained_tokenizers_of_two_families_agree(tmp_path: Path) -> None:
    """The same corpus as SentencePiece with byte tokens and as byte-level BPE: words that both have are words in both,
    and no byte is one."""
    corpus = ["A red house and a blue ball on the grass, 5 dogs and a tree."]
    one = llama(tmp_path / "llama", sentencepiece_model(corpus, 330), legacy=False)
    other = byte_level(QWEN_MARKS, None, trim=False)
    found = []
    for tokenizer in (one, other):
        vocabulary = Vocabulary(tokenizer, 10**6, {})
        words = [vocabulary.words[number] for number in vocabulary.token_ids("whole").tolist()]
        assert len(words) > 5 and all(word.isalpha() and word.isascii() and len(word) > 1 for word in words)
        found.append(set(words))
    assert {"red", "house", "grass"} <= found[0] & found[1]


def test_bytes_whitespace_and_punctuation_are_true_of_no_label() -> None:
    """Incomplete bytes all read alike: with a label of an emoji, every byte of the vocabulary was a true word. A hyphen
    says nothing of "t-shirt"."""
    tokens = ["<unk>", "▁dog", "▁Dog", "dog", "▁", "▁▁", "<0xF0>", "<0x9F>", "<0x41>", "-", "▁t", "shirt", "▁12"]
    made = tokenizer_of(tokens, SENTENCEPIECE, unk_token="<unk>")
    labels = {"emoji": [6, 7], "t-shirt": [10, 9, 11], "dog": [4, 1], "12": [12]}
    vocabulary, every = Vocabulary(made, len(tokens), labels), torch.arange(len(tokens))
    said = {label: [tokens[n] for n in vocabulary.in_label(every, label).nonzero()[:, 0]] for label in labels}
    assert said == {"emoji": [], "t-shirt": ["▁t", "shirt"], "dog": ["▁dog", "▁Dog", "dog"], "12": ["▁12"]}


def test_a_share_stands_beside_its_chance() -> None:
    """Blind choices reach nothing beyond chance, readable words all of it; where every word is readable, nothing can be
    said. Catches the chance of the whole vocabulary for a choice among a part of it."""
    tokens = ["<unk>", "▁dog", "▁cat", "x", "y", "z"]
    vocabulary = Vocabulary(tokenizer_of(tokens, SENTENCEPIECE, unk_token="<unk>"), len(tokens), {})
    for ids, words, beyond in (
        ([1, 2, 3, 4, 5], [1, 2], 1.0),
        ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5], 0.0),
        ([1, 3], [3, 3], -1.0),
        ([1, 2], [1, 2], math.nan),
    ):
        tally = WordTally(vocabulary, torch.tensor(ids))
        tally.add(torch.tensor(words)[:, None], [], torch.zeros(0, len(words), dtype=torch.bool))
        result = tally.result()
        assert result["readable_by_chance"] == pytest.approx(vocabulary.readable[torch.tensor(ids)].double().mean())
        assert result["first_readable_beyond_chance"] == pytest.approx(beyond, nan_ok=True)
    assert beyond_chance(0.75, 0.5) == 0.5


@pytest.mark.parametrize(
    ("name", "words", "others", "chance"),
    [
        ("vicuna15", ["▁dog", "▁при", "给"], ["▁▁", "<0xE4>", "dog", "ied", "▁", "▁a", "."], 0.519),
        ("mistral", ["▁Device", "梦", "一个"], ["▁▁", "<0x0A>", "ข", "ला", "er"], 0.523),
        ("qwen3", [spelled(text.encode()) for text in (" dog", " точки", "如果", "狗", "เชื่อม")],
         [*map(spelled, (b"  ", b"\n", b" \n", b"\xe5", b"dog", b"NING", b" !"))], 0.530),
    ],
)  # fmt: skip
def test_real_vocabularies(name: str, words: list[str], others: list[str], chance: float) -> None:
    """The tokenizers of Vicuna 1.5, Mistral and Qwen3: half of what they choose from is readable by chance."""
    tokenizer = AutoTokenizer.from_pretrained(shared(f"tokenizers/{name}"))
    vocabulary = Vocabulary(tokenizer, len(tokenizer), {})
    known = tokenizer.get_vocab()
    assert [token for token in words if not vocabulary.readable[known[token]]] == []
    assert [token for token in others if token in known and vocabulary.readable[known[token]]] == []
    assert sum(token in known for token in others) >= 4
    assert vocabulary.readable_by_chance(vocabulary.token_ids("all")) == pytest.approx(chance, abs=0.002)
