"""Train small tokenizers of LLaMA's, Llama 3's and Qwen's kinds on a few sentences; each has its family's chat
template."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from tests.training.llava_reference import SYSTEM

CORPUS = [
    SYSTEM,
    "USER: What is in the picture? ASSISTANT: A red house on the grass, 5 dogs and a tree.",
    "Is this a red house or a blue ball? How many dogs are on the grass? two  spaces   three",
    "(USER)(USER)(USER)",  # so that "USER" is a token less after `</s>` than behind a space, as it is with LLaMA
    "user system assistant You are helpful.\n\nA line.\n\n\nAnother\n line. >\n <image>\n \n \n",
]


def sentencepiece_model(corpus: Sequence[str], words: int = 420) -> bytes:
    """Train a sentencepiece model with LLaMA's settings: BPE, bytes for unknown characters, single digits, no
    normalization."""
    model, lines = io.BytesIO(), [line for text in corpus for line in text.split("\n")]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 20), model_writer=model, model_type="bpe", vocab_size=words,
        byte_fallback=True, character_coverage=1.0, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True, allow_whitespace_only_pieces=True, unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
        hard_vocab_limit=False, num_threads=1, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def llama(folder: Path, model: bytes, legacy: bool, **config: Any) -> Any:
    """Return the LlamaTokenizer of transformers for a sentencepiece model."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    config = {"tokenizer_class": "LlamaTokenizer", "pad_token": "<unk>", "add_bos_token": True} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"legacy": legacy}))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert isinstance(tokenizer, LlamaTokenizer) and tokenizer.is_fast
    return tokenizer


def classic(tokenizer: Any, marks: Sequence[str] = (), template: str | None = None) -> Any:
    """Return a tokenizer of the same vocabulary in the form of Llama 2's tokenizer.json, whose normalizer puts `▁`
    before every part."""
    made = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.pre_tokenizer = None
    made.add_special_tokens([AddedToken(mark, normalized=False) for mark in marks])
    found = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>", **({} if template else PADDING)
    )
    found.chat_template = template
    return found


PADDING = {"pad_token": "<unk>"}


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
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)
PHI_MARKS = ("<|user|>", "<|assistant|>", "<|end|>")
PHI = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
GEMMA_MARKS = ("<bos>", "<start_of_turn>", "<end_of_turn>")
GEMMA = (
    "{{ bos_token }}{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else 'user' %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
QWEN3_EMPTY = CHATML.replace(
    "message['content']",
    "('<think>\\n\\n</think>\\n\\n' if loop.last and message['role'] == 'assistant' else '') + message['content']",
)
"""As Qwen 3's own: the last answer has an empty thought, and the text that asks for it too, if thinking is off."""
QWEN3_ASKING = QWEN3_EMPTY.replace(
    "assistant\\n' }}",
    "assistant\\n' }}{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}",
)


def byte_level(marks: Sequence[str], template: str | None, trim: bool, bos: str | None = None, eos: str = "") -> Any:
    """Return a byte-level BPE tokenizer: with BOS and trimmed offsets (Llama 3's kind), or with neither (Qwen's
    kind)."""
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
FAMILIES = {"llama3": "<|eot_id|>", "qwen2": "<|im_end|>"}
"""How each ends a turn."""
