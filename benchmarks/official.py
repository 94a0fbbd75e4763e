"""Models of official size with seeded random weights, in the official formats: for speed, not for what they find."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice, product
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    LlamaConfig,
    PreTrainedTokenizerFast,
    SwinConfig,
)

from pad_pipeline.analysis import model as analysis
from pad_pipeline.labels import LabelSettings
from pad_pipeline.pretrained import quiet
from pad_pipeline.stages.ground import DetectorSettings
from pad_pipeline.stages.ram.network import Ram, RamSettings
from pad_pipeline.stages.sam.network import SamShape, build_sam
from pad_pipeline.stages.segment import SegmenterSettings
from pad_pipeline.stages.spans import CLS, DOT, SEP
from pad_pipeline.stages.tag import TaggerSettings
from pad_pipeline.storage import atomic_write
from pad_pipeline.training import model
from pad_pipeline.workflows.models.settings import ModelSettings

SAMS = {
    "vit_b": SamShape(width=768, depth=12, heads=12, global_attention=[2, 5, 8, 11]),
    "vit_l": SamShape(width=1024, depth=24, heads=16, global_attention=[5, 11, 17, 23]),
    "vit_h": SamShape(width=1280, depth=32, heads=16, global_attention=[7, 15, 23, 31]),
}
SWINS: dict[str, dict[str, Any]] = {
    "swin_t": {
        "image_size": 224, "embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7,
    },
    "swin_b": {
        "image_size": 384, "embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12,
    },
}  # fmt: skip
"""Backbones of Grounding DINO tiny, and of Grounding DINO base."""
TAGS = 4585
"""As many as RAM knows."""
TAGS_ON = 18
"""As many as a photograph gets, about: the ones with the highest scores are on."""


def write_official_size(
    folder: Path,
    sam: str,
    swin: str = "swin_t",
    family: Literal["ram", "ram_plus"] = "ram",
    device: torch.device | str = "cpu",
) -> ModelSettings:
    """Write RAM or RAM++ with Swin-L, a Grounding DINO and a SAM into `folder`, once, and return their settings.

    The weights are drawn on `device`, which takes seconds on a GPU. They differ between kinds of devices.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tagger, segmenter = folder / f"{family}.safetensors", folder / f"sam_{sam}.safetensors"
    detector = folder / f"dino_{swin}"
    with quiet(), torch.random.fork_rng(), torch.device(device), torch.no_grad():
        torch.manual_seed(0)
        if not tagger.is_file():
            network = Ram(RamSettings(family=family), TAGS)
            torch.nn.init.normal_(network.label_embed)
            with atomic_write(tagger, durable=False) as partial:
                save_file(network.state_dict(), partial)
        if not detector.is_dir():
            with atomic_write(detector, durable=False) as partial:
                _write_detector(partial, swin)
        if not segmenter.is_file():
            network = build_sam(SAMS[sam])
            for name, parameter in network.named_parameters():
                if "rel_pos" in name or "pos_embed" in name:
                    torch.nn.init.normal_(parameter, std=0.02)
            with atomic_write(segmenter, durable=False) as partial:
                save_file(network.state_dict(), partial)
    (folder / "tags.txt").write_text("".join(f"{word}\n" for word in drawn_words(TAGS)))
    return ModelSettings(
        annotators=(
            TaggerSettings(family=family, weights=str(tagger), tag_list=str(folder / "tags.txt"), threshold=0.0),
            DetectorSettings(model=str(detector), unboxable="", box_threshold=0.0),
            SegmenterSettings(weights=str(segmenter)),
        ),
        llm=LabelSettings(llm=""),
    )


def drawn_words(count: int) -> list[str]:
    """Return different words, 4,913 of three letters and then 83,521 of four."""
    letters = "abcdefghijklmnopq"
    every = chain.from_iterable(product(letters, repeat=length) for length in (3, 4))
    return ["".join(word) for word in islice(every, count)]


def write_tokenizer(folder: Path, tokens: int) -> None:
    """Write a tokenizer with one token for each of the `drawn_words`."""
    words = {word: number + 3 for number, word in enumerate(drawn_words(tokens - 3))}
    tokenizer = Tokenizer(WordLevel(words | {"<unk>": 0, "<s>": 1, "</s>": 2}, "<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


def write_embedding(folder: Path, config: LlamaConfig) -> None:
    """Write an LLM's configuration, tokenizer and input embedding, once: what label embeddings need of it."""
    if (folder / "model.safetensors").is_file():
        return
    with quiet():
        config.save_pretrained(folder)
        write_tokenizer(folder, config.vocab_size)
    shape = config.vocab_size, config.hidden_size
    table = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.02
    with atomic_write(folder / "model.safetensors", durable=False) as partial:
        save_file({"model.embed_tokens.weight": table.half()}, partial)


@contextmanager
def drawn_on(device: torch.device) -> Iterator[None]:
    """Let the trainer and the analyses draw random weights on `device` where they would load a checkpoint's.

    The folder of a model then needs its config.json only. A 7B LLM is there in seconds.
    """

    def draw(_field: str, folder: Path, kind: Any, dtype: torch.dtype, *_extras: Any, **_options: Any) -> Any:
        before = torch.get_default_dtype()
        with quiet():
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)] if kind is AutoModelForCausalLM else kind
            torch.set_default_dtype(dtype)
            try:
                with torch.device(device):
                    return kind(config).eval()
            finally:
                torch.set_default_dtype(before)

    with patch.object(model, "load_pretrained", draw), patch.object(analysis, "load_pretrained", draw):
        yield


def _write_detector(folder: Path, swin: str) -> None:
    """Write a detector whose scores and boxes depend on the image and on the text.

    A fresh one has boxes of a grid, takes hardly anything over from the text, and all its scores are 1.
    """
    fixed = {0: "[PAD]", 100: "[UNK]", CLS: "[CLS]", SEP: "[SEP]", 103: "[MASK]", DOT: ".", 1029: "?"}
    letters = iter([*"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")])
    vocabulary = {fixed.get(index) or next(letters, f"[unused{index}]"): index for index in range(30522)}
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(**SWINS[swin], out_features=["stage2", "stage3", "stage4"]),
        text_config=BertConfig(), disable_custom_kernels=True,
    )  # fmt: skip
    network = GroundingDinoForObjectDetection(config)
    for layer in network.model.encoder.layers:
        layer.fusion_layer.vision_param.fill_(0.1)
        layer.fusion_layer.text_param.fill_(0.1)
    network.model.decoder.layer_norm.weight.fill_(config.d_model**-0.5)
    for head in network.bbox_embed:
        torch.nn.init.normal_(head.layers[-1].weight, std=0.02)
    network.save_pretrained(folder)
    BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    GroundingDinoImageProcessorPil().save_pretrained(folder)
