"""The five analyses over the images of a run. Each takes batch after batch and keeps sums alone, so that memory does
not grow with the images."""

from __future__ import annotations

import math
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from pad_pipeline.analysis.model import Subject
from pad_pipeline.analysis.patches import Seen, Shown, seeded
from pad_pipeline.errors import UserError
from pad_pipeline.geometry import PatchRule
from pad_pipeline.measures.align import Align, ThresholdRule
from pad_pipeline.measures.entropy import PooledEntropy, von_neumann_entropy
from pad_pipeline.measures.overlap import neighbor_overlap
from pad_pipeline.measures.pursuit import pursue, unit
from pad_pipeline.measures.vocabulary import ROWS, Vocabulary, WordFilter, nearest_word


class AnalysisSettings(BaseModel):
    """What the paper leaves open."""

    model_config = ConfigDict(extra="forbid")

    patches: PatchRule = "argmax"
    """Which patches show a label: those that a mask covers by half or, where none is, by most (`argmax`); `half` loses
    a third of real objects; `any` and `soft` take all that it touches."""
    seed: int = Field(0, ge=0)
    """Of the controls: shuffled labels, shuffled patches, the untrained projector."""
    unit: Literal["nats", "bits"] = "nats"
    """Of entropies."""
    center: bool = False
    """Entropy of vectors less their mean."""
    threshold_rule: ThresholdRule = "best"
    """When a token says a label, see `ThresholdRule`."""
    threshold: float = Field(0.5, ge=-1, le=1)
    """The cosine of the rule `fixed`."""
    among: Literal["image", "all"] = "image"
    """Which labels a patch chooses from by the rule `argmax`: those of its image, or those of all images."""
    steps: int = Field(5, ge=1)
    """Words that matching pursuit takes for a token; the paper's K."""
    orthogonal: bool = False
    """Orthogonal matching pursuit."""
    positive: bool = False
    """In each step take the word that points the token's way most, and none that is to be taken away."""
    words: WordFilter = "all"
    """Which tokens matching pursuit chooses from."""
    lens_layer: int = -1
    """Hidden state of the LLM that the logit lens reads; -1: the last."""
    neighbors: int = Field(10, ge=1)
    """k of the neighbor overlap."""
    least_align: float = Field(0.15, ge=0, le=1)
    """Align below it is a sign of failure; the paper's."""
    above_chance: float = Field(1.2, ge=0)
    """So is Align below so many times the best of its controls: where regions are large, chance alone is above 0.15."""
    most_unreadable: float = Field(0.5, ge=0, le=1)
    """A higher share of patches whose first word can't be read is another; the paper's."""


class Study(Protocol):
    """One analysis."""

    def add(self, batch: Seen) -> None:
        """Take images."""
        ...

    def result(self) -> dict[str, Any]:
        """Numbers by name; NaN where nothing could be measured."""
        ...


class Mean:
    """A mean that is fed part by part. The sum stays where the values are: to read it would wait for the GPU."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | float = 0.0

    def add(self, values: Tensor) -> None:
        """Take values of any shape."""
        self._sum = self._sum + values.double().sum()
        self.count += values.numel()

    def value(self) -> float:
        """NaN of nothing."""
        return float(self._sum) / self.count if self.count else math.nan


# ---------------------------------------------------------------- entropy


class EntropyStudy:
    """Von Neumann entropy before and after the projector, of the caption's words, and of what the patches should say.

    dH = before - after. The last, `labels`, is that of the label embeddings in the patches' places: where L_patch would
    bring `after` if it came to 0. So the patch loss raises dH where captions alone leave `after` above it, and lowers
    dH where they leave it below.
    """

    def __init__(self, subject: Subject, settings: AnalysisSettings) -> None:
        self.subject, self.settings = subject, settings
        self.image = {name: Mean() for name in ("before", "after", "text", "labels")}
        self.pooled: dict[str, PooledEntropy] = {}
        self.most: dict[str, float] = {}

    def add(self, batch: Seen) -> None:
        """Take images."""
        self.most = {
            name: math.log(min(one.shape[-2:])) for name, one in (("before", batch.before), ("after", batch.after))
        }
        texts = [self._text(one.caption) for one in batch.shown]
        for name, sets in (("before", [batch.before]), ("after", [batch.after]), ("text", texts)):
            for vectors in sets:
                if vectors.numel():
                    self.image[name].add(von_neumann_entropy(vectors, self.settings.center))
                    self._pool(name, vectors.shape[-1]).add(vectors)
        for one in batch.shown:
            if one.labels:
                self._labels(one, batch.after.device)

    def _pool(self, name: str, width: int) -> PooledEntropy:
        return self.pooled.setdefault(name, PooledEntropy(width, self.settings.center))

    def _text(self, caption: str) -> Tensor:
        ids = self.subject.tokenizer(caption, add_special_tokens=False)["input_ids"]
        return self.subject.words[torch.tensor(ids, dtype=torch.long)]

    def _labels(self, one: Shown, device: torch.device) -> None:
        """For each patch that shows a label, the mean direction of its labels' embeddings. They are mixtures of a few
        words, so of `[N, d]` numbers `[N, L]` are enough: in coordinates along the words' span lengths and angles are
        the same."""
        words = F.normalize(self.subject.embed(one.labels).double(), dim=-1)
        shown = one.shown.double()
        mix = (shown.T / shown.sum(0).clamp_min(1)[:, None])[one.shown.any(0)]
        if not len(mix):
            return
        across = torch.linalg.qr(words.mT, mode="r").R  # words = across^T Q^T
        self.image["labels"].add(von_neumann_entropy(mix @ across.mT, self.settings.center))
        self._pool("labels", words.shape[-1]).add_mixed(mix, words.to(device))

    def result(self) -> dict[str, Any]:
        """`image`: mean over images; `pooled`: of all vectors at once; each with its bounds, ln min(vectors, width),
        which for images are alike on both sides where neither width is below the number of patches."""
        scale = 1 / math.log(2) if self.settings.unit == "bits" else 1.0
        image = {name: mean.value() * scale for name, mean in self.image.items()}
        pooled = {name: one.entropy() * scale for name, one in self.pooled.items()}
        found = {"unit": self.settings.unit, "image": image, "pooled": pooled}
        widths = {name: math.log(min(one.count, one.width)) for name, one in self.pooled.items() if name in self.most}
        for values, most in ((image, self.most), (pooled, widths)):
            values["dH"] = values.get("before", math.nan) - values.get("after", math.nan)
            values.update({f"bound_{name}": bound * scale for name, bound in most.items()})
        return found


# ---------------------------------------------------------------- Align


class AlignStudy:
    """Align(V, W), and what it is when labels or patches are shuffled, or the projector has learned nothing."""

    def __init__(self, subject: Subject, settings: AnalysisSettings, labels: list[str]) -> None:
        self.subject, self.settings, self.labels = subject, settings, labels
        self.numbers = {label: number for number, label in enumerate(labels)}
        self._all: Tensor | None = None
        self.fresh = subject.untrained(settings.seed)
        names = ("align", "shuffled_labels", "shuffled_patches", "untrained_projector")
        self.scores = {name: Align(settings.threshold_rule, settings.threshold) for name in names}
        self.everywhere = Mean()

    def add(self, batch: Seen) -> None:
        """Take images."""
        with torch.inference_mode():
            untrained = self.fresh(batch.before)
        for one, tokens, raw in zip(batch.shown, batch.after, untrained, strict=True):
            if not one.labels:
                continue
            rng, shown = seeded(one.key, self.settings.seed), one.shown.to(tokens.device)
            visible = one.shown[one.shown.any(-1)]
            self.everywhere.add(visible.float().mean(-1))
            positions = torch.from_numpy(rng.permutation(len(tokens))).to(tokens.device)
            words = self.subject.embed(one.labels).to(tokens.device)
            rivals = self._rivals(tokens.device)
            self.scores["align"].add(tokens, words, shown, rivals)
            if wrong := self._others(one.labels, rng):
                strange = self.subject.embed(wrong).to(tokens.device)
                self.scores["shuffled_labels"].add(tokens, strange, shown, rivals)
            self.scores["shuffled_patches"].add(tokens[positions], words, shown, rivals)
            self.scores["untrained_projector"].add(raw, words, shown, rivals)

    def _rivals(self, device: torch.device) -> Tensor | None:
        if self.settings.among == "image":
            return None
        if self._all is None:
            self._all = self.subject.embed(self.labels).to(device)
        return self._all

    def _others(self, own: list[str], rng: np.random.Generator) -> list[str]:
        """As many labels that the image does not have; none where there is no other."""
        mine = sorted(self.numbers[label] for label in own)
        others = len(self.labels) - len(mine)
        if not others:
            return []
        chosen = rng.choice(others, len(mine), replace=others < len(mine))
        for number in mine:  # the n-th of the others is the n-th of all, with its own ones passed over
            chosen = chosen + (chosen >= number)
        return [self.labels[number] for number in chosen]

    def result(self) -> dict[str, Any]:
        """Align and its controls, the pairs of image and label that it is a mean over, the threshold. `everywhere` is
        what it would be were every label found on every patch: the best threshold never gives less, whatever the model.
        """
        found: dict[str, Any] = {name: score.value() for name, score in self.scores.items()}
        align = self.scores["align"]
        return found | {
            "everywhere": self.everywhere.value(),
            "pairs": align.pairs,
            "threshold": align.best_threshold(),
        }


# ---------------------------------------------------------------- words of patches


class WordTally:
    """Of words that were said for patches: how many can be read, and how many are true of the patch.

    Precision is the share of the K words of a patch that are said and belong to a label shown on it: where a patch
    shows one label of one token, 1/K is the most that there can be. `first_true` is the same of the first word alone,
    at most 1. Recall is the share of the labels shown on a patch of which a word was said. All three are means over the
    patches that show a label. A word belongs to a label if it is one of the label's tokens, in whatever case.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.readable, self.first, self.precision, self.recall = Mean(), Mean(), Mean(), Mean()
        self.first_true = Mean()

    def add(self, words: Tensor, labels: list[str], shown: Tensor, said_so: Tensor | None = None) -> None:
        """Take an image.

        Args:
            words: int64 `[M, K]`, what was said for each patch.
            labels: of the image.
            shown: bool `[L, M]`.
            said_so: bool `[M, K]`, which of the words are said; all by default. Others are true of nothing.
        """
        words = words.cpu()
        self.readable.add(self.vocabulary.readable[words])
        self.first.add(self.vocabulary.readable[words[:, 0]])
        covered = shown.any(0) if labels else torch.zeros(len(words), dtype=torch.bool)
        if not covered.any():
            return
        said = torch.stack([self.vocabulary.said(words, label) for label in labels])  # [L, M, K]
        hit = said & shown[:, :, None]
        if said_so is not None:
            hit &= said_so
        true = hit.any(0)[covered].float()
        self.precision.add(true.mean(-1))
        self.first_true.add(true[:, 0])
        self.recall.add((hit.any(-1).sum(0) / shown.sum(0).clamp_min(1))[covered])

    def result(self) -> dict[str, float]:
        """Shares, 0..1."""
        return {
            "readable": self.readable.value(),
            "first_readable": self.first.value(),
            "precision": self.precision.value(),
            "first_true": self.first_true.value(),
            "recall": self.recall.value(),
            "patches": self.precision.count,
        }


class PursuitStudy:
    """Matching pursuit of each token onto the LLM's words."""

    def __init__(self, subject: Subject, settings: AnalysisSettings, vocabulary: Vocabulary) -> None:
        self.settings, self.vocabulary = settings, vocabulary
        self.atoms = vocabulary.atoms(settings.words)
        if len(self.atoms) < settings.steps:
            rule = f"the words to choose from are {len(self.atoms)} with words = {settings.words!r}"
            raise UserError("settings.steps", settings.steps, rule, "take fewer steps, or other words")
        self.matrix = unit(subject.words[self.atoms.to(subject.words.device)])
        self.tally = WordTally(vocabulary)
        self.residual = [Mean() for _ in range(settings.steps + 1)]

    def add(self, batch: Seen) -> None:
        """Take images."""
        words, coefficients, residual = self.decompose(batch.after.flatten(0, 1))
        for mean, values in zip(self.residual, residual.T, strict=True):
            mean.add(values)
        images = len(batch.shown)
        for one, own, said in zip(batch.shown, words.chunk(images), (coefficients > 0).chunk(images), strict=True):
            self.tally.add(own, one.labels, one.shown, said)  # a word that is taken away is not said

    def decompose(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids `[M, K]`, coefficients and residual energy, as in `matching_pursuit`."""
        form = (self.settings.steps, self.settings.orthogonal, self.settings.positive)
        parts = [pursue(rows, self.matrix, *form) for rows in tokens.split(ROWS)]
        words, coefficients, residual = (torch.cat(values).cpu() for values in zip(*parts, strict=True))
        return self.atoms[words], coefficients, residual

    def result(self) -> dict[str, Any]:
        """Shares of readable and true words, and the energy that is left after each step."""
        return {**self.tally.result(), "words": len(self.atoms), "residual": [mean.value() for mean in self.residual]}


class LensStudy:
    """The nearest input embedding of each token, and what the LLM's output layer says at its place (logit lens)."""

    def __init__(self, subject: Subject, settings: AnalysisSettings, vocabulary: Vocabulary) -> None:
        self.subject, self.settings, self.vocabulary = subject, settings, vocabulary
        layers = int(subject.llm.config.get_text_config().num_hidden_layers)
        if not -layers - 1 <= settings.lens_layer <= layers:
            rule = f"the LLM has {layers} layers"
            remedy = f"name one from 0 to {layers}, or -1 for the last"
            raise UserError("settings.lens_layer", settings.lens_layer, rule, remedy)
        self.atoms = vocabulary.atoms("all")
        self.matrix = unit(subject.words[self.atoms.to(subject.words.device)])
        self.embedding, self.logit = WordTally(vocabulary), WordTally(vocabulary)

    @torch.inference_mode()
    def add(self, batch: Seen) -> None:
        """Take images."""
        said = self._logit_lens(batch.after)
        nearest = self.atoms[nearest_word(batch.after.flatten(0, 1), self.matrix).cpu()]
        for one, own, logit in zip(batch.shown, nearest.chunk(len(said)), said, strict=True):
            self.embedding.add(own[:, None], one.labels, one.shown)
            self.logit.add(logit[:, None], one.labels, one.shown)

    def _logit_lens(self, tokens: Tensor) -> Tensor:
        """int64 `[B, M]`: the likeliest ordinary token at each place of a sequence of BOS and image."""
        llm = self.subject.llm
        inner = getattr(llm.model, "language_model", llm.model)
        begin = self.subject.tokenizer.bos_token_id
        sequence = tokens.to(self.subject.words.dtype)
        if begin is not None:
            first = self.subject.words[begin].expand(len(tokens), 1, -1)
            sequence = torch.cat([first, sequence], 1)
        states = inner(inputs_embeds=sequence, use_cache=False, output_hidden_states=True).hidden_states
        hidden = states[self.settings.lens_layer]
        if self.settings.lens_layer not in (-1, len(states) - 1):  # the last one went through the norm already
            hidden = inner.norm(hidden)
        head = llm.get_output_embeddings()
        hidden = hidden[:, -tokens.shape[1] :]
        ordinary = self.atoms.to(hidden.device)
        return self.atoms[torch.stack([head(row)[:, ordinary].argmax(-1) for row in hidden]).cpu()]

    def result(self) -> dict[str, Any]:
        """Shares of readable and true words of each lens."""
        return {"embedding": self.embedding.result(), "logit": self.logit.result()}


class OverlapStudy:
    """The share of nearest neighbors that the projector keeps: among the patches of an image, and among images."""

    IMAGES = 2000
    """Whose mean vectors are compared; the first ones."""

    def __init__(self, settings: AnalysisSettings) -> None:
        self.k = settings.neighbors
        self.patches = Mean()
        self.means: list[tuple[Tensor, Tensor]] = []

    def add(self, batch: Seen) -> None:
        """Take images."""
        if batch.before.shape[1] == batch.after.shape[1] > self.k:  # a C-Abstractor's tokens are no patches
            self.patches.add(neighbor_overlap(batch.before, batch.after, self.k))
        for before, after in zip(batch.before, batch.after, strict=True):
            if len(self.means) < self.IMAGES:
                self.means.append((before.float().mean(0).cpu(), after.float().mean(0).cpu()))

    def result(self) -> dict[str, Any]:
        """Shares, 0..1, with what chance would give among the images."""
        found: dict[str, Any] = {"k": self.k, "patches": self.patches.value(), "images": math.nan}
        if len(self.means) > self.k:
            before, after = (torch.stack(vectors) for vectors in zip(*self.means, strict=True))
            found |= {"images": float(neighbor_overlap(before, after, self.k))}
            found |= {"images_by_chance": self.k / (len(self.means) - 1)}
        return found
