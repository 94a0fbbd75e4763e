"""A lens for vision tokens: their nearest hidden states of words in real sentences."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pad_pipeline.analysis.patches import EncodedBatch
from pad_pipeline.analysis.study import Chart, Context, Mean, Study
from pad_pipeline.analysis.tally import WordTally
from pad_pipeline.errors import UserError


class Words(NamedTuple):
    """The words of all sentences."""

    ids: Tensor
    """The token ids, int64 `[W]`, on the CPU."""
    image: Tensor
    """The number of the image that each word's sentence is about, int64 `[W]`."""
    states: Tensor
    """Their hidden states in the compared layers, one layer after another, each at length 1, `[layers * W, d]`."""


NO_WORDS = Words(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0, 0))


class SentencesStudy(Study):
    """Finds for each vision token the nearest word of real sentences, by the cosine of hidden states.

    It is the idea of LatentLens (arXiv 2602.00462): a vision token may be near a word in its context, and far from all
    input embeddings and output rows, which the study `lens` compares. A token's state in a layer is compared with the
    words' states in all compared layers. The sentences are captions of the images; an image's own caption is left out
    for its tokens.
    """

    needs_captions = True

    def __init__(self, context: Context) -> None:
        self.subject = context.subject
        self._numbers = {key: number for number, key in enumerate(context.captions)}
        count = int(self.subject.llm.config.get_text_config().num_hidden_layers)
        chosen = context.settings.sentence_layers or tuple(round(count * third / 3) for third in range(4))
        if wrong := [layer for layer in chosen if not -count - 1 <= layer <= count]:
            rule, remedy = f"the LLM has {count} layers", f"name layers from 0 to {count}, or -1 for the last"
            raise UserError("settings.sentence_layers", wrong[0], rule, remedy)
        # With one caption, its image would have nothing to be compared with.
        self.layers = sorted({layer % (count + 1) for layer in chosen}) if len(self._numbers) > 1 else []
        self.words = self._read([*context.captions.values()]) if self.layers else NO_WORDS
        every = context.vocabulary.token_ids("all")
        self.tallies = {layer: WordTally(context.vocabulary, every) for layer in self.layers}
        self.nearest_layer = {layer: Mean() for layer in self.layers}

    @torch.inference_mode()
    def _read(self, sentences: list[str]) -> Words:
        ids, image = list[Tensor](), list[Tensor]()
        states: dict[int, list[Tensor]] = {layer: [] for layer in self.layers}
        for number, sentence in enumerate(sentences):
            words = self.subject.word_ids(sentence)
            if not len(words):
                continue
            sequence = self.subject.with_bos(self.subject.words[words][None])
            found = self.subject.language_model(
                inputs_embeds=sequence, use_cache=False, output_hidden_states=True
            ).hidden_states
            ids.append(words.cpu())
            image.append(torch.full((len(words),), number))
            for layer, kept in states.items():
                kept.append(F.normalize(found[layer][0, -len(words) :].float(), dim=-1))
        joined = torch.cat([torch.cat(kept) for kept in states.values()])
        return Words(torch.cat(ids), torch.cat(image).to(self.subject.device), joined)

    @torch.inference_mode()
    def add(self, batch: EncodedBatch) -> None:
        """Add a batch of images."""
        if not self.layers:
            return
        states, layers = self.subject.hidden_states(batch.tokens), torch.tensor(self.layers)
        for layer in self.layers:
            for image, state in zip(batch.images, states[layer], strict=True):
                cosines = F.normalize(state.float(), dim=-1) @ self.words.states.T
                if (own := self._numbers.get(image.key)) is not None:
                    cosines[:, (self.words.image == own).repeat(len(self.layers))] = -2
                nearest = cosines.argmax(-1).cpu()
                found = self.words.ids[nearest % len(self.words.ids)]
                self.tallies[layer].add(found[:, None], image.labels, image.shown)
                self.nearest_layer[layer].add(layers[nearest // len(self.words.ids)])

    def result(self) -> dict[str, Any]:
        """Return the shares of readable and true words by the layer of the vision tokens, and the mean layer of the
        words that are nearest; no layer where fewer than two images have a caption."""
        return {
            f"layer {layer}": tally.result() | {"nearest_layer": self.nearest_layer[layer].value()}
            for layer, tally in self.tallies.items()
        } | {"words": len(self.words.ids), "sentences": len(self._numbers)}

    @staticmethod
    def chart(result: dict[str, Any]) -> Chart:
        """Return bars of the share of patches whose word is true, by layer."""
        bars = {name: of_layer["first_true"] for name, of_layer in result.items() if isinstance(of_layer, dict)}
        return Chart("share of patches whose nearest word in a sentence is true", bars)
