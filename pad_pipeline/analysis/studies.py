"""The five studies: entropy, align, pursuit, lens and overlap.

Each takes batch after batch of a run's images, and keeps sums, or little for each image, so that memory hardly grows.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pad_pipeline.analysis.patches import Seen, Shown
from pad_pipeline.analysis.study import Chart, Context, Mean, Study
from pad_pipeline.errors import UserError
from pad_pipeline.measures.align import Align
from pad_pipeline.measures.entropy import PooledEntropy, von_neumann_entropy
from pad_pipeline.measures.overlap import neighbor_overlap
from pad_pipeline.measures.pursuit import matching_pursuit, unit_length
from pad_pipeline.measures.vocabulary import ROWS, Vocabulary, nearest_word


class EntropyStudy(Study):
    """The von Neumann entropy `before` and `after` the projector, of the caption's words (`text`), and of the `labels`.

    `labels` is the entropy when each patch is replaced by the embedding of its labels: the value that `after` would
    reach if L_patch were 0. So the patch loss raises dH = before - after if training on captions alone leaves `after`
    above `labels`, and lowers it otherwise.
    """

    needs_labels = False

    def __init__(self, context: Context) -> None:
        self.subject, self.settings = context.subject, context.settings
        self.image = {name: Mean() for name in ("before", "after", "text", "labels")}
        self.pooled: dict[str, PooledEntropy] = {}
        self.most: dict[str, float] = {}

    def add(self, batch: Seen) -> None:
        """Add a batch of images."""
        texts = [self._caption_words(one.caption) for one in batch.shown]
        groups = {"before": [batch.before], "after": [batch.after], "text": texts}
        self.most = {name: math.log(min(groups[name][0].shape[-2:])) for name in ("before", "after")}
        for name, sets in groups.items():
            for vectors in sets:
                if vectors.numel():
                    self.image[name].add(von_neumann_entropy(vectors, self.settings.center))
                    self._pool(name, vectors.shape[-1]).add(vectors)
        for one in batch.shown:
            if one.labels:
                self._add_labels(one, batch.after.device)

    def _pool(self, name: str, width: int) -> PooledEntropy:
        return self.pooled.setdefault(name, PooledEntropy(width, self.settings.center))

    def _caption_words(self, caption: str) -> Tensor:
        ids = self.subject.tokenizer(caption, add_special_tokens=False)["input_ids"]
        return self.subject.words[torch.tensor(ids, dtype=torch.long)]

    def _add_labels(self, one: Shown, device: torch.device) -> None:
        """Add the target of each patch that shows a label: the mean of its labels' embeddings, each scaled to length 1.

        The targets of N patches are mixtures of L embeddings. An orthogonal basis of the embeddings keeps lengths and
        angles, so the `[N, L]` coordinates in it have the same entropy as the `[N, d]` targets, at less cost.
        """
        words = F.normalize(self.subject.embed(one.labels).double(), dim=-1)
        shown = one.shown.double()
        mix = (shown.T / shown.sum(0).clamp_min(1)[:, None])[one.shown.any(0)]
        if not len(mix):
            return
        factor = torch.linalg.qr(words.mT, mode="r").R  # words = factor^T Q^T
        self.image["labels"].add(von_neumann_entropy(mix @ factor.mT, self.settings.center))
        self._pool("labels", words.shape[-1]).add_mixed(mix, words.to(device))

    def result(self) -> dict[str, Any]:
        """Return the entropies as a mean over images (`image`) and over all vectors at once (`pooled`).

        Each comes with its upper bounds, ln min(vectors, width). For images, the bounds before and after the projector
        are equal unless a width is below the number of patches.
        """
        scale = 1 / math.log(2) if self.settings.unit == "bits" else 1.0
        image = {name: mean.value() * scale for name, mean in self.image.items()}
        pooled = {name: one.entropy() * scale for name, one in self.pooled.items()}
        result = {"unit": self.settings.unit, "image": image, "pooled": pooled}
        widths = {name: math.log(min(one.count, one.width)) for name, one in self.pooled.items() if name in self.most}
        for values, most in ((image, self.most), (pooled, widths)):
            values["dH"] = values.get("before", math.nan) - values.get("after", math.nan)
            values.update({f"bound_{name}": bound * scale for name, bound in most.items()})
        return result

    @staticmethod
    def chart(result: dict[str, Any]) -> Chart:
        """Return bars of the entropies, of an image and pooled."""
        where = ((part, name) for part in ("image", "pooled") for name in ("before", "after", "text"))
        bars = {f"{part} {name}": result[part].get(name) for part, name in where}
        return Chart(f"von Neumann entropy, {result['unit']}", bars, plain=("before", "text"))


class AlignStudy(Study):
    """Align(V, W), and three controls: shuffled labels, shuffled patches, and an untrained projector."""

    SCORES = ("align", "shuffled_labels", "shuffled_patches", "untrained_projector")

    def __init__(self, context: Context) -> None:
        self.subject, self.settings, self.labels = context.subject, context.settings, list(context.labels)
        self._all: Tensor | None = None
        self.fresh = self.subject.untrained(self.settings.seed)
        self.scores = {name: Align(self.settings.threshold_rule, self.settings.threshold) for name in self.SCORES}
        self.everywhere = Mean()

    def add(self, batch: Seen) -> None:
        """Add a batch of images."""
        with torch.inference_mode():
            untrained = self.fresh(batch.before)
        for one, tokens, raw in zip(batch.shown, batch.after, untrained, strict=True):
            if not one.labels:
                continue
            rng = np.random.default_rng([self.settings.seed, *one.key.encode()])  # so the order of images is no matter
            self.everywhere.add(one.shown[one.shown.any(-1)].float().mean(-1))
            positions = torch.from_numpy(rng.permutation(len(tokens))).to(tokens.device)
            words, shown = self.subject.embed(one.labels).to(tokens.device), one.shown.to(tokens.device)
            rivals = self._rivals(tokens.device)
            self.scores["align"].add(tokens, words, shown, rivals)
            if wrong := self._other_labels(one.labels, rng):
                self.scores["shuffled_labels"].add(tokens, self.subject.embed(wrong).to(tokens.device), shown, rivals)
            self.scores["shuffled_patches"].add(tokens[positions], words, shown, rivals)
            self.scores["untrained_projector"].add(raw, words, shown, rivals)

    def _rivals(self, device: torch.device) -> Tensor | None:
        if self.settings.among == "all" and self._all is None:
            self._all = self.subject.embed(self.labels).to(device)
        return self._all

    def _other_labels(self, labels: list[str], rng: np.random.Generator) -> list[str]:
        """Draw as many labels as the image has, from those that it does not have; none if there are no others."""
        others = [label for label in self.labels if label not in labels]
        if not others:
            return []
        return [others[number] for number in rng.choice(len(others), len(labels), replace=len(others) < len(labels))]

    def result(self) -> dict[str, Any]:
        """Return Align and its controls, the number of pairs of image and label, and the threshold.

        `everywhere` is the Align of a model that says every label on every patch. With the rule `best` no model gets
        less, because the lowest threshold does just that.
        """
        result: dict[str, Any] = {name: score.value() for name, score in self.scores.items()}
        align = self.scores["align"]
        more = {"everywhere": self.everywhere.value(), "pairs": align.pairs, "threshold": align.best_threshold()}
        return result | more

    @staticmethod
    def chart(result: dict[str, Any]) -> Chart:
        """Return bars of Align and its controls."""
        bars = {name.replace("_", " "): result[name] for name in AlignStudy.SCORES}
        return Chart("Align(V, W), mean IoU", bars, plain=("shuffled", "untrained"))


class WordTally:
    """Counts how many of the words found for patches are readable, and how many are true of their patch.

    A word is true of a patch if it is a token of a label that the patch shows; case makes no difference. `precision` is
    the share of the K words of a patch that are true. It is at most 1/K for a patch that shows one label of one token,
    so `first_true` counts the first word alone. `recall` is the share of the labels shown on a patch that have a true
    word. All three are means over the patches that show a label.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.means = {name: Mean() for name in ("readable", "first_readable", "precision", "first_true", "recall")}

    def add(self, words: Tensor, labels: list[str], shown: Tensor, counted: Tensor | None = None) -> None:
        """Add an image: the token ids of its patches' words, int64 `[M, K]`, and the patches that show each label.

        `shown` is bool `[L, M]`. Only the words in `counted`, bool `[M, K]`, can count as true; by default, all can.
        """
        words = words.cpu()
        self.means["readable"].add(self.vocabulary.readable[words])
        self.means["first_readable"].add(self.vocabulary.readable[words[:, 0]])
        covered = shown.any(0)
        if not covered.any():
            return
        hit = torch.stack([self.vocabulary.in_label(words, label) for label in labels]) & shown[:, :, None]  # [L, M, K]
        if counted is not None:
            hit &= counted
        true = hit.any(0)[covered].float()
        self.means["precision"].add(true.mean(-1))
        self.means["first_true"].add(true[:, 0])
        self.means["recall"].add((hit.any(-1).sum(0) / shown.sum(0).clamp_min(1))[covered])

    def result(self) -> dict[str, float]:
        """Return the shares (0..1), and the number of patches that show a label."""
        return {name: mean.value() for name, mean in self.means.items()} | {"patches": self.means["precision"].count}


class PursuitStudy(Study):
    """Decomposes each token into words of the LLM by matching pursuit."""

    def __init__(self, context: Context) -> None:
        settings, subject = context.settings, context.subject
        self.settings, self.vocabulary = settings, context.vocabulary
        self.atoms = self.vocabulary.token_ids(settings.words)
        if len(self.atoms) < settings.steps:
            rule = f"the words to choose from are {len(self.atoms)} with words = {settings.words!r}"
            raise UserError("settings.steps", settings.steps, rule, "take fewer steps, or other words")
        self.matrix = unit_length(subject.words[self.atoms.to(subject.words.device)])
        self.tally = WordTally(self.vocabulary)
        self.residual = [Mean() for _ in range(settings.steps + 1)]

    def add(self, batch: Seen) -> None:
        """Add a batch of images."""
        words, coefficients, residual = self.decompose(batch.after.flatten(0, 1))
        for mean, values in zip(self.residual, residual.T, strict=True):
            mean.add(values)
        images = len(batch.shown)
        positive = coefficients > 0  # a word with a negative coefficient is not said
        for one, of_image, said in zip(batch.shown, words.chunk(images), positive.chunk(images), strict=True):
            self.tally.add(of_image, one.labels, one.shown, said)

    def decompose(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Decompose tokens `[M, d]` into token ids `[M, K]`, with coefficients and residual energy as in `Pursuit`."""
        form = (self.settings.steps, self.settings.orthogonal, self.settings.positive)
        parts = [matching_pursuit(rows, self.matrix, *form) for rows in torch.split(tokens, ROWS)]
        words, coefficients, residual = (torch.cat(values).cpu() for values in zip(*parts, strict=True))
        return self.atoms[words], coefficients, residual

    def result(self) -> dict[str, Any]:
        """Return the shares of readable and true words, and the share of energy that is left after each step."""
        return {**self.tally.result(), "words": len(self.atoms), "residual": [mean.value() for mean in self.residual]}

    @staticmethod
    def chart(result: dict[str, Any]) -> Chart:
        """Return the curve of the energy that is left."""
        return Chart("share of a vision token's energy that is left", result["residual"], steps="words taken")


class LensStudy(Study):
    """Finds for each token its nearest input embedding, and the word that the LLM's output layer gives (logit lens)."""

    def __init__(self, context: Context) -> None:
        subject, settings, vocabulary = context.subject, context.settings, context.vocabulary
        self.subject, self.settings = subject, settings
        layers = int(subject.llm.config.get_text_config().num_hidden_layers)
        if not -layers - 1 <= settings.lens_layer <= layers:
            rule, remedy = f"the LLM has {layers} layers", f"name one from 0 to {layers}, or -1 for the last"
            raise UserError("settings.lens_layer", settings.lens_layer, rule, remedy)
        self.atoms = vocabulary.token_ids("all")
        self.matrix = unit_length(subject.words[self.atoms.to(subject.words.device)])
        self.embedding, self.logit = WordTally(vocabulary), WordTally(vocabulary)

    @torch.inference_mode()
    def add(self, batch: Seen) -> None:
        """Add a batch of images."""
        likeliest = self._logit_lens(batch.after)
        nearest = self.atoms[nearest_word(batch.after.flatten(0, 1), self.matrix).cpu()]
        for one, of_image, logit in zip(batch.shown, nearest.chunk(len(likeliest)), likeliest, strict=True):
            self.embedding.add(of_image[:, None], one.labels, one.shown)
            self.logit.add(logit[:, None], one.labels, one.shown)

    def _logit_lens(self, tokens: Tensor) -> Tensor:
        """Return the likeliest ordinary token at each position of the image, int64 `[B, M]`; BOS comes first."""
        llm = self.subject.llm
        inner = getattr(llm.model, "language_model", llm.model)
        sequence = tokens.to(self.subject.words.dtype)
        if (begin := self.subject.tokenizer.bos_token_id) is not None:
            sequence = torch.cat([self.subject.words[begin].expand(len(tokens), 1, -1), sequence], 1)
        states = inner(inputs_embeds=sequence, use_cache=False, output_hidden_states=True).hidden_states
        hidden = states[self.settings.lens_layer]
        if self.settings.lens_layer not in (-1, len(states) - 1):  # the last one has been normalized already
            hidden = inner.norm(hidden)
        head, ordinary = llm.get_output_embeddings(), self.atoms.to(hidden.device)
        rows = [head(row)[:, ordinary].argmax(-1) for row in hidden[:, -tokens.shape[1] :]]
        return self.atoms[torch.stack(rows).cpu()]

    def result(self) -> dict[str, Any]:
        """Return the shares of readable and true words, for the input embeddings and for the logit lens."""
        return {"embedding": self.embedding.result(), "logit": self.logit.result()}

    @staticmethod
    def chart(result: dict[str, Any]) -> Chart:
        """Return bars of the shares of words, by both lenses."""
        where = ((lens, name) for lens in ("embedding", "logit") for name in ("readable", "precision", "recall"))
        return Chart("share of patches", {f"{lens} {name}": result[lens][name] for lens, name in where}, ("readable",))


class OverlapStudy(Study):
    """The share of nearest neighbors that remain neighbors after the projector: among patches, and among images."""

    IMAGES = 2000
    """The number of images, the first ones, whose mean vectors are compared."""
    needs_labels = False

    def __init__(self, context: Context) -> None:
        self.k = context.settings.neighbors
        self.patches = Mean()
        self.means: list[tuple[Tensor, Tensor]] = []

    def add(self, batch: Seen) -> None:
        """Add a batch of images."""
        if batch.before.shape[1] == batch.after.shape[1] > self.k:  # the tokens of a C-Abstractor are not patches
            self.patches.add(neighbor_overlap(batch.before, batch.after, self.k))
        for before, after in zip(batch.before, batch.after, strict=True):
            if len(self.means) < self.IMAGES:
                self.means.append((before.float().mean(0).cpu(), after.float().mean(0).cpu()))

    def result(self) -> dict[str, Any]:
        """Return the shares (0..1), and the share that chance alone gives among images."""
        result: dict[str, Any] = {"k": self.k, "patches": self.patches.value(), "images": math.nan}
        if len(self.means) > self.k:
            before, after = (torch.stack(vectors) for vectors in zip(*self.means, strict=True))
            result["images"] = float(neighbor_overlap(before, after, self.k))
            result["images_by_chance"] = self.k / (len(self.means) - 1)
        return result

    @staticmethod
    def chart(result: dict[str, Any]) -> Chart:
        """Return bars of the shares, and of chance."""
        bars = {name.replace("_", " "): result.get(name) for name in ("patches", "images", "images_by_chance")}
        return Chart(f"share of {result['k']} nearest neighbors kept", bars, plain=("chance",))


STUDIES: dict[str, type[Study]] = {
    "entropy": EntropyStudy,
    "align": AlignStudy,
    "pursuit": PursuitStudy,
    "lens": LensStudy,
    "overlap": OverlapStudy,
}
"""Every study by its name, in the order of tables."""
