"""The small LLaMA: it reads captions, conversations, and captions that follow a row of words as they would an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from examples.miniature.recipe import TRAIN_WORLD, VALIDATION_WORLD, Batch, Budget, Recipe
from pad_pipeline.miniature.language import caption, questions
from pad_pipeline.miniature.world import LABELS, Scene, draw_scene
from pad_pipeline.pretrained import quiet
from pad_pipeline.workflows.miniature.scoring import grammatical, perplexity

WORDS = 640
"""Tokens of the vocabulary: few enough that many labels have more than one."""
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
"""Vicuna's and LLaVA's."""
MOST_TOKENS = 320


class LlmRecipe(Recipe):
    """Next-token cross-entropy over three kinds of text, a third each: see `text_of`."""

    name = "llm"
    validation = 300

    def __init__(self, seed: int = 0, steps: int = 2700) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.seed = seed
        self.budget = Budget(steps=steps, batch_size=24, learning_rate=4e-3, pool=700)
        scenes = (draw_scene(TRAIN_WORLD + seed, index) for index in range(600))
        rng = np.random.default_rng(seed)
        texts = [text for scene in scenes for text in (caption(scene), conversation(scene, rng))]
        self.tokenizer = build_tokenizer([*LABELS, *texts], ["<unk>", "<s>", "</s>"])
        self.network = LlamaForCausalLM(build_config(len(self.tokenizer)))

    def batch(self, step: int) -> Batch:
        """Token ids, padded behind with -1."""
        size = self.budget.batch_size
        ids = []
        for position in range(size):
            scene = draw_scene(TRAIN_WORLD + self.seed, step * size + position)
            text = text_of(scene, np.random.default_rng((self.seed, step, position)))
            ids.append(torch.tensor([1, *self.tokenizer(text, add_special_tokens=False)["input_ids"]][:MOST_TOKENS]))
        return {"ids": torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-1)}

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Over all tokens but the first."""
        logits = self.network(batch["ids"].clamp_min(0), use_cache=False).logits[:, :-1]
        loss = F.cross_entropy(logits.float().flatten(0, 1), batch["ids"][:, 1:].flatten(), ignore_index=-1)
        return loss, {}

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
    """A caption; or the words of the image's places, row by row, and then the caption; or a conversation.

    The second kind teaches what a large LLM brings along: to tell what a row of words before a text is about. Image
    tokens that are aligned to words are such a row.
    """
    kind = rng.integers(3)
    if kind == 0:
        return caption(scene) + "\n</s>"
    if kind == 1:
        return words_of(scene, int(rng.integers(3, 11)), rng) + caption(scene) + "\n</s>"
    return conversation(scene, rng)


def words_of(scene: Scene, grid: int, rng: np.random.Generator) -> str:
    """One of the words that are true of each place of a grid over the image, each after a space."""
    height, width = scene.regions[0].mask.shape
    colors = {thing.region: thing.color for thing in scene.things if thing.color}
    words = []
    for row in range(grid):
        for column in range(grid):
            y, x = int((row + 0.5) * height / grid), int((column + 0.5) * width / grid)
            here = [position for position, region in enumerate(scene.regions) if region.mask[y, x]]
            if here:
                position = int(rng.choice(here))
                tell_color = position in colors and rng.random() < 0.3
                words.append(colors[position] if tell_color else scene.regions[position].label)
    return "".join(f" {word}" for word in words)


def conversation(scene: Scene, rng: np.random.Generator) -> str:
    """Up to three turns in LLaVA's v1 template; the caption stands where an image will."""
    text = f"{SYSTEM} USER: {caption(scene)}\n"
    turns = questions(scene, rng)[: int(rng.integers(1, 4))]
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
    """Four layers of width 128."""
    return LlamaConfig(
        vocab_size=words, hidden_size=128, intermediate_size=288, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=1024, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
