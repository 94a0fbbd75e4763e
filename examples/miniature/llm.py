"""The small LLaMA: it reads captions and conversations, also about a grid of words as they will be about an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from examples.miniature.recipe import TRAIN_WORLD, VALIDATION_WORLD, Batch, Budget, Recipe
from pad_pipeline.geometry import View
from pad_pipeline.miniature.language import REFER_PROMPT, caption, questions
from pad_pipeline.miniature.world import COLORS, LABELS, Scene, draw_scene
from pad_pipeline.pretrained import quiet
from pad_pipeline.training.place import mean_size, place_waves
from pad_pipeline.workflows.miniature.scoring import grammatical, perplexity

WORDS = 640
"""Tokens of the vocabulary that are learned from texts: few enough that many labels have more than one."""
COORDINATES = tuple(f"{number / 100:.2f}" for number in range(101))
"""The numbers of a box, of which each is one token. From four pieces a number, this small LLM does not learn boxes."""
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
"""Vicuna's and LLaVA's."""
MOST_TOKENS, MOST_TOKENS_WITH_GRID = 320, 560
VIEW = View(size=112, patch=8, fit="pad")
"""Of the grids of words, as in stage 2."""
CELL = -1
"""Instead of a token's id, where the words of a place of the grid stand."""
NAMES = (*LABELS, *COLORS)
"""The words of places, in the order of the columns of `cells`."""


class LlmRecipe(Recipe):
    """Next-token cross-entropy over texts, and over texts about a grid of words.

    A large LLM has learned from text to read a sequence of words, and to say what and where they are. This one learns
    it from grids. Each place of a grid holds what an ideal vision token would: the mean of the word embeddings of the
    labels that are true there, to which the place is added as in `[train] place`. Of a batch, 2 of 5 are captions and
    conversations as text, and 3 of 5 are captions and conversations behind a grid.
    """

    name = "llm"
    validation = 300

    def __init__(self, seed: int = 0, steps: int = 4500) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.seed = seed
        self.budget = Budget(steps=steps, batch_size=20, learning_rate=4e-3, pool=900)
        scenes = (draw_scene(TRAIN_WORLD + seed, index) for index in range(600))
        rng = np.random.default_rng(seed)
        texts = [text for scene in scenes for text in (caption(scene), conversation(scene, rng, caption(scene), 3))]
        self.tokenizer = build_tokenizer([*LABELS, *texts], ["<unk>", "<s>", "</s>"])
        self.tokenizer.add_tokens(list(COORDINATES))
        self.network = LlamaForCausalLM(build_config(len(self.tokenizer)))
        self.register_buffer("shares", word_shares(self.tokenizer), persistent=False)
        self.register_buffer("places", place_waves(VIEW.grid, self.network.config.hidden_size), persistent=False)

    def batch(self, step: int) -> Batch:
        """Token ids, padded behind with 0: those of texts; those of texts with a grid, with the words of its places and
        the tokens that are answers."""
        batch: dict[str, list[Tensor]] = {"text": [], "grid": [], "answers": [], "cells": []}
        size = self.budget.batch_size
        for position in range(size):
            scene = draw_scene(TRAIN_WORLD + self.seed, step * size + position)
            rng = np.random.default_rng((self.seed, step, position))
            if position % 5 < 2:
                batch["text"].append(torch.tensor([1, *self.encode(text_of(scene, rng))][:MOST_TOKENS]))
            else:
                ids, answers = self.with_grid(scene, rng)
                batch["grid"].append(torch.tensor(ids[:MOST_TOKENS_WITH_GRID]))
                batch["answers"].append(torch.tensor(answers[:MOST_TOKENS_WITH_GRID]))
                batch["cells"].append(torch.from_numpy(words_of(scene, rng)))
        return {name: torch.nn.utils.rnn.pad_sequence(rows, batch_first=True) for name, rows in batch.items()}

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without BOS."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def with_grid(self, scene: Scene, rng: np.random.Generator) -> tuple[list[int], list[bool]]:
        """The token ids of a grid with a text about it, and which of them are answers."""
        pieces = [("", False), (caption(scene) + "\n</s>", True)]
        if rng.random() >= 0.2:
            text = conversation(scene, rng, "<image>", 8)
            before, _, after = text.partition("<image>")
            pieces = [(before, False)]
            for turn in after.split("</s>")[:-1]:
                question, mark, answer = turn.partition(" ASSISTANT:")
                pieces += [(question + mark, False), (answer + "</s>", True)]
        encoded = [(self.encode(text), is_answer) for text, is_answer in pieces]
        encoded.insert(1, ([CELL] * VIEW.grid**2, False))
        encoded.insert(0, ([1], False))
        ids = [token for tokens, _ in encoded for token in tokens]
        return ids, [is_answer for tokens, is_answer in encoded for _ in tokens]

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Of texts over all tokens, of texts with a grid over the answers, and over the numbers of boxes once more,
        each by itself: among so many words, boxes would be learned last."""
        table = self.network.get_input_embeddings()
        text = F.cross_entropy(*self.predicted(table(batch["text"]), batch["text"], batch["text"] > 0))
        shown = batch["grid"] == CELL
        words = table(batch["grid"].clamp_min(0))
        cells = batch["cells"].float() / 255 @ (self.get_buffer("shares") @ table.weight)
        cells = cells + mean_size(table.weight) * self.get_buffer("places")
        sequence = words.masked_scatter(shown[..., None], cells.to(words.dtype))
        logits, targets = self.predicted(sequence, batch["grid"], batch["answers"])
        answers = F.cross_entropy(logits, targets)
        numbers = targets >= len(self.tokenizer) - len(COORDINATES)
        boxes = F.cross_entropy(logits[numbers], targets[numbers])
        return (text + answers + boxes) / 3, {"text": text, "answers": answers, "boxes": boxes}

    def predicted(self, sequence: Tensor, ids: Tensor, supervised: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of the tokens that are supervised, and these tokens."""
        logits = self.network(inputs_embeds=sequence, use_cache=False).logits[:, :-1]
        return logits[supervised[:, 1:]].float(), ids[:, 1:][supervised[:, 1:]]

    def export(self, folder: Path) -> dict[str, float]:
        """A folder of transformers; gives perplexity and grammar on unseen scenes."""
        with quiet():
            self.network.save_pretrained(folder / "llm")
            self.tokenizer.save_pretrained(folder / "llm")
        self.network.cpu().float().eval()
        scenes = [draw_scene(VALIDATION_WORLD, index) for index in range(self.validation)]
        return {
            "validation_caption_perplexity": perplexity(self.network, self.tokenizer, scenes),
            "validation_captions_that_parse": grammatical(self.network, self.tokenizer, self.validation),
        }


def text_of(scene: Scene, rng: np.random.Generator) -> str:
    """A caption, or a conversation about a caption."""
    return caption(scene) + "\n</s>" if rng.random() < 0.5 else conversation(scene, rng, caption(scene), 3)


def words_of(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """How much of each name there is at each place of a grid over the scene, uint8 `[places, names]`, 255 in all.

    A label has the share that its region covers of the patch, as L_patch weighs it. Half of the scenes also name the
    colors of things.
    """
    counts = np.zeros((VIEW.grid**2, len(NAMES)), np.float32)
    colors = {thing.region: thing.color for thing in scene.things if thing.color} if rng.random() < 0.5 else {}
    for position, region in enumerate(scene.regions):
        covered = VIEW.coverage(region.mask).flatten()
        counts[:, NAMES.index(region.label)] += covered
        if position in colors:
            counts[:, NAMES.index(colors[position])] += covered / 2
    return np.round(255 * counts / np.maximum(counts.sum(1, keepdims=True), 1)).astype(np.uint8)


def word_shares(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """The share of each token in the embedding of each name, float32 `[names, tokens]`."""
    shares = torch.zeros(len(NAMES), len(tokenizer))
    for row, name in enumerate(NAMES):
        ids = tokenizer(f"a {name}", add_special_tokens=False)["input_ids"][1:]
        shares[row].index_add_(0, torch.tensor(ids), torch.full((len(ids),), 1 / len(ids)))
    return shares


def conversation(scene: Scene, rng: np.random.Generator, image: str, most: int) -> str:
    """Up to `most` turns in LLaVA's v1 template; `image` stands where an image will."""
    text = f"{SYSTEM} USER: {image}\n"
    turns = questions(scene, rng)
    if rng.random() < 0.7:  # boxes are learned last
        turns.sort(key=lambda turn: not turn[0].startswith(REFER_PROMPT))
    turns = turns[: int(rng.integers(most // 2, most + 1))]
    for number, (question, answer) in enumerate(turns):
        text += f"{'' if number == 0 else 'USER: '}{question} ASSISTANT: {answer}</s>"
    return text


def build_tokenizer(
    texts: list[str], special: list[str], words: int = WORDS, ends: bool = False
) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on texts.

    Args:
        texts: of the world.
        special: unknown (and padding), beginning and end of a text; the end is the last one.
        words: size of the vocabulary.
        ends: whether it puts the end token behind a text, as CLIP's does and LLaMA's does not.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=special[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=words,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    begin, end = special[1], special[-1]
    template = f"{begin} $A {end}" if ends else f"{begin} $A"
    ids = [(begin, 1), (end, len(special) - 1)]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=special[0], bos_token=begin, eos_token=special[-1], pad_token=special[0]
    )


def build_config(words: int) -> LlamaConfig:
    """Four layers of width 128, with the rotary base of Llama 3."""
    return LlamaConfig(
        vocab_size=words, hidden_size=128, intermediate_size=288, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=1024, rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
