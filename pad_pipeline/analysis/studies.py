"""The studies entropy, align, pursuit, lens, overlap and place; and the list of all studies.

A study takes the images of a run batch by batch. It keeps sums, or little data per image, so that memory hardly grows.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pad_pipeline.analysis.patches import EncodedBatch, LabeledImage
from pad_pipeline.analysis.reliance import RelianceStudy
from pad_pipeline.analysis.sentences import SentencesStudy
from pad_pipeline.analysis.study import Chart, Context, Mean, Study
from pad_pipeline.analysis.tally import WordTally
from pad_pipeline.analysis.words import WordsStudy
from pad_pipeline.errors import UserError
from pad_pipeline.measures.align import Align
from pad_pipeline.measures.entropy import PooledEntropy, von_neumann_entropy
from pad_pipeline.measures.overlap import neighbor_overlap
from pad_pipeline.measures.pursuit import matching_pursuit
from pad_pipeline.measures.reading import LinearReader
from pad_pipeline.measures.vectors import WordVectors
from pad_pipeline.training.projector import place_of


class EntropyStudy(Study):
    """The von Neumann entropy of patches and tokens (`before` and `after` the projector), captions and labels.

    `text` is the entropy of the caption's words. `labels` is the entropy when each patch is replaced by the embedding
    of its labels: the value of `after` if L_patch were 0. So the patch loss raises dH = before - after if training with
    captions alone leaves `after` above `labels`, and lowers dH otherwise.
    """

    needs_labels = False

    def __init__(self, context: Context) -> None:
        self.subject, self.settings = context.subject, context.settings
        centers = (False, True) if self.settings.every_choice else (self.settings.center,)
        self.image = {center: {name: Mean() for name in ("before", "after", "text", "labels")} for center in centers}
        self.pooled: dict[str, PooledEntropy] = {}
        self.most: dict[str, float] = {}

    def add(self, batch: EncodedBatch) -> None:
        """Add a batch of images."""
        texts = [self._caption_words(image.caption) for image in batch.images]
        groups = {"before": [batch.patches], "after": [batch.tokens], "text": texts}
        self.most = {name: math.log(min(groups[name][0].shape[-2:])) for name in ("before", "after")}
        for name, sets in groups.items():
            for vectors in sets:
                if vectors.numel():
                    self._add_image(name, vectors)
                    self._pool(name, vectors.shape[-1]).add(vectors)
        for image in batch.images:
            if image.labels:
                self._add_labels(image, batch.tokens.device)

    def _add_image(self, name: str, vectors: Tensor) -> None:
        for center, means in self.image.items():
            means[name].add(von_neumann_entropy(vectors, center))

    def _pool(self, name: str, width: int) -> PooledEntropy:
        return self.pooled.setdefault(name, PooledEntropy(width))

    def _caption_words(self, caption: str) -> Tensor:
        ids = self.subject.tokenizer(caption, add_special_tokens=False)["input_ids"]
        return self.subject.words[torch.tensor(ids, dtype=torch.long)]

    def _add_labels(self, image: LabeledImage, device: torch.device) -> None:
        """Add the target of each patch that shows a label: the mean of its labels' embeddings, each scaled to length 1.

        N targets are mixtures of L embeddings. Their coordinates in an orthogonal basis of the embeddings, `[N, L]`,
        have the same entropy (the basis keeps lengths and angles). They take less time than the targets `[N, d]`.
        """
        words = F.normalize(self.subject.embed(image.labels).double(), dim=-1)
        shown = image.shown.double()
        mix = (shown.T / shown.sum(0).clamp_min(1)[:, None])[image.shown.any(0)]
        if not len(mix):
            return
        factor = torch.linalg.qr(words.mT, mode="r").R  # words = factor^T Q^T
        self._add_image("labels", mix @ factor.mT)
        self._pool("labels", words.shape[-1]).add_mixed(mix, words.to(device))

    def result(self) -> dict[str, Any]:
        """Return the mean entropy of an image (`image`) and the entropy of all vectors at once (`pooled`).

        Each comes with its upper bound, ln min(vectors, width). The bounds of an image before and after the projector
        are equal unless a width is below the number of patches.
        """
        unit, center = self.settings.unit, self.settings.center
        result: dict[str, Any] = {
            "unit": unit,
            "image": self._of_image(center, unit),
            "pooled": self._of_all(center, unit),
        }
        if self.settings.every_choice:
            result["choices"] = {
                f"{over}{', centered' if center else ''}, {unit}": entropies(center, unit)
                for over, entropies in (("image", self._of_image), ("pooled", self._of_all))
                for center in self.image
                for unit in UNITS
            }
        return result

    def _of_image(self, center: bool, unit: str) -> dict[str, float]:
        """Return the mean entropies of an image, their difference and their bounds."""
        return _with_bounds({name: mean.value() for name, mean in self.image[center].items()}, self.most, unit)

    def _of_all(self, center: bool, unit: str) -> dict[str, float]:
        """Return the entropies of the vectors of all images at once, their difference and their bounds."""
        most = {name: math.log(min(self.pooled[name].count, self.pooled[name].width)) for name in self.most}
        return _with_bounds({name: pool.entropy(center) for name, pool in self.pooled.items()}, most, unit)

    @staticmethod
    def chart(result: dict[str, Any]) -> Chart:
        """Return bars of the entropies."""
        where = ((part, name) for part in ("image", "pooled") for name in ("before", "after", "text"))
        bars = {f"{part} {name}": result[part].get(name) for part, name in where}
        return Chart(f"von Neumann entropy, {result['unit']}", bars, plain=("before", "text"))


UNITS = {"nats": 1.0, "bits": 1 / math.log(2)}
"""The units of entropies, each as a factor of an entropy in nats."""


def _with_bounds(values: dict[str, float], most: dict[str, float], unit: str) -> dict[str, float]:
    """Return entropies in a unit with dH, before - after, and the bounds `most`; all arguments are in nats."""
    dh = values.get("before", math.nan) - values.get("after", math.nan)
    found = values | {"dH": dh} | {f"bound_{name}": bound for name, bound in most.items()}
    return {name: value * UNITS[unit] for name, value in found.items()}


class AlignStudy(Study):
    """Align(V, W), and three controls: shuffled labels, shuffled patches, and an untrained projector."""

    SCORES = ("align", "shuffled_labels", "shuffled_patches", "untrained_projector")

    def __init__(self, context: Context) -> None:
        self.subject, self.settings, self.labels = context.subject, context.settings, list(context.labels)
        self.rivals: Tensor | None = self.subject.embed(self.labels) if self.settings.among == "all" else None
        self.untrained = self.subject.untrained(self.settings.seed)
        self.scores = {name: Align(self.settings.threshold_rule, self.settings.threshold) for name in self.SCORES}
        self.everywhere = Mean()

    def add(self, batch: EncodedBatch) -> None:
        """Add a batch of images."""
        if self.rivals is not None:
            self.rivals = self.rivals.to(batch.tokens.device)
        with torch.inference_mode():
            untrained = self.untrained(batch.patches)
        for image, tokens, raw in zip(batch.images, batch.tokens, untrained, strict=True):
            if not image.labels:
                continue
            # Seeded by the image's key, so that the result does not depend on the order of images.
            rng = np.random.default_rng([self.settings.seed, *image.key.encode()])
            self.everywhere.add(image.shown[image.shown.any(-1)].float().mean(-1))
            positions = torch.from_numpy(rng.permutation(len(tokens))).to(tokens.device)
            words, shown = self.subject.embed(image.labels).to(tokens.device), image.shown.to(tokens.device)
            self.scores["align"].add(tokens, words, shown, self.rivals)
            if wrong := self._other_labels(image.labels, rng):
                others = self.subject.embed(wrong).to(tokens.device)
                self.scores["shuffled_labels"].add(tokens, others, shown, self.rivals)
            self.scores["shuffled_patches"].add(tokens[positions], words, shown, self.rivals)
            self.scores["untrained_projector"].add(raw, words, shown, self.rivals)

    def _other_labels(self, labels: list[str], rng: np.random.Generator) -> list[str]:
        """Draw labels that an image does not have, as many as it has; return none if it has all labels."""
        others = [label for label in self.labels if label not in labels]
        if not others:
            return []
        return [others[number] for number in rng.choice(len(others), len(labels), replace=len(others) < len(labels))]

    def result(self) -> dict[str, Any]:
        """Return Align and its controls, the number of pairs of image and label, and the threshold.

        `everywhere` is the Align of a model that says every label on every patch. With the rule `best`, no model is
        below it, because with the lowest threshold every token says every label.
        """
        align, scores = self.scores["align"], {name: score.value() for name, score in self.scores.items()}
        more = {"everywhere": self.everywhere.value(), "pairs": align.pairs, "threshold": align.best_threshold()}
        return scores | more

    @staticmethod
    def chart(result: dict[str, Any]) -> Chart:
        """Return bars of Align and its controls."""
        bars = {name.replace("_", " "): result[name] for name in AlignStudy.SCORES}
        return Chart("Align(V, W), mean IoU", bars, plain=("shuffled", "untrained"))


class PursuitStudy(Study):
    """Decomposes each vision token into words of the LLM by matching pursuit."""

    def __init__(self, context: Context) -> None:
        settings, subject = context.settings, context.subject
        self.settings, self.vocabulary = settings, context.vocabulary
        self.atoms = self.vocabulary.token_ids(settings.words)
        if len(self.atoms) < settings.steps:
            rule = f"there are only {len(self.atoms)} words to choose from with words = {settings.words!r}"
            raise UserError("settings.steps", settings.steps, rule, "take fewer steps, or other words")
        self.vectors = WordVectors(subject.words, self.atoms)
        self.tally = WordTally(self.vocabulary, self.atoms)
        self.residual = [Mean() for _ in range(settings.steps + 1)]

    def add(self, batch: EncodedBatch) -> None:
        """Add a batch of images."""
        words, coefficients, residual = self.decompose(batch.tokens.flatten(0, 1))
        for mean, values in zip(self.residual, residual.T, strict=True):
            mean.add(values)
        images = len(batch.images)
        positive = coefficients > 0  # a word with a negative coefficient does not count as said
        for image, found, said in zip(batch.images, words.chunk(images), positive.chunk(images), strict=True):
            self.tally.add(found, image.labels, image.shown, said)

    def decompose(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the words of vision tokens `[M, d]` as token ids `[M, K]`, then the coefficients and the residual
        energies of `matching_pursuit`."""
        form = (self.settings.steps, self.settings.orthogonal, self.settings.positive)
        words, coefficients, residual = (part.cpu() for part in matching_pursuit(tokens, self.vectors, *form))
        return self.atoms[words], coefficients, residual

    def result(self) -> dict[str, Any]:
        """Return the shares of readable and true words, and the share of energy that remains after each step."""
        return {**self.tally.result(), "words": len(self.atoms), "residual": [mean.value() for mean in self.residual]}

    @staticmethod
    def chart(result: dict[str, Any]) -> Chart:
        """Return the curve of the energy that remains."""
        return Chart("share of a vision token's energy that is left", result["residual"], steps="words taken")


class LensStudy(Study):
    """Finds two words for each token: by the nearest input embedding, and by the LLM's output (logit lens)."""

    def __init__(self, context: Context) -> None:
        subject, settings, vocabulary = context.subject, context.settings, context.vocabulary
        self.subject, self.settings = subject, settings
        layers = int(subject.llm.config.get_text_config().num_hidden_layers)
        if not -layers - 1 <= settings.lens_layer <= layers:
            rule, remedy = f"the LLM has {layers} layers", f"name one from 0 to {layers}, or -1 for the last"
            raise UserError("settings.lens_layer", settings.lens_layer, rule, remedy)
        self.atoms = vocabulary.token_ids("all")
        self.vectors = WordVectors(subject.words, self.atoms)
        self.embedding, self.logit = WordTally(vocabulary, self.atoms), WordTally(vocabulary, self.atoms)

    @torch.inference_mode()
    def add(self, batch: EncodedBatch) -> None:
        """Add a batch of images."""
        likeliest = self._logit_lens(batch.tokens)
        nearest = self.atoms[self.vectors.nearest(batch.tokens.flatten(0, 1)).cpu()]
        for image, found, logit in zip(batch.images, nearest.chunk(len(likeliest)), likeliest, strict=True):
            self.embedding.add(found[:, None], image.labels, image.shown)
            self.logit.add(logit[:, None], image.labels, image.shown)

    def _logit_lens(self, tokens: Tensor) -> Tensor:
        """Return the LLM's likeliest ordinary token after each token of an image, int64 `[B, M]`."""
        llm = self.subject.llm
        states = self.subject.hidden_states(tokens)
        hidden = states[self.settings.lens_layer]
        if self.settings.lens_layer not in (-1, len(states) - 1):  # the last state is already normalized
            hidden = self.subject.language_model.norm(hidden)
        head, ordinary = llm.get_output_embeddings(), self.atoms.to(hidden.device)
        rows = [head(row)[:, ordinary].argmax(-1) for row in hidden]
        return self.atoms[torch.stack(rows).cpu()]

    def result(self) -> dict[str, Any]:
        """Return the shares of readable and true words: by input embeddings, and by the logit lens."""
        return {"embedding": self.embedding.result(), "logit": self.logit.result()}

    @staticmethod
    def chart(result: dict[str, Any]) -> Chart:
        """Return bars of the shares."""
        where = ((lens, name) for lens in ("embedding", "logit") for name in ("readable", "precision", "recall"))
        bars = {f"{lens} {name}": result[lens][name] for lens, name in where}
        chance = {"readable by chance": result["embedding"]["readable_by_chance"]}
        return Chart("share of patches", bars | chance, plain=("readable",))


class PlaceStudy(Study):
    """How well a linear function reads from patches and tokens where they are (row, column) and what they show.

    The patch loss makes tokens say what they show, and may make it harder to read where they are. An LLM that must say
    where something is needs both.
    """

    def __init__(self, context: Context) -> None:
        self.numbers = {label: number for number, label in enumerate(context.labels)}
        self.subject = context.subject
        names = ("patches", "tokens") if place_of(self.subject.projector) is None else ("patches", "tokens", "placed")
        self.readers = {name: LinearReader(len(self.numbers)) for name in names}

    def add(self, batch: EncodedBatch) -> None:
        """Add a batch of images."""
        for image, patches, tokens in zip(batch.images, batch.patches, batch.tokens, strict=True):
            label = torch.full((len(tokens),), -1)
            if image.labels:
                numbers = torch.tensor([self.numbers[label] for label in image.labels])
                alone = image.shown.sum(0) == 1
                label = torch.where(alone, numbers[image.shown.int().argmax(0)], label)
            # Where several patches make a token, no label is known for each patch.
            self.readers["patches"].add(image.key, patches, label if len(patches) == len(tokens) else None)
            self.readers["tokens"].add(image.key, tokens, label)
            if "placed" in self.readers:
                self.readers["placed"].add(image.key, self.subject.placed(tokens), label)

    def result(self) -> dict[str, Any]:
        """Return the numbers of `Reading`, for the patches before the projector and the tokens after it; and for the
        tokens with their place, if the model has one."""
        return {name: reader.result()._asdict() for name, reader in self.readers.items()}

    @staticmethod
    def chart(result: dict[str, Any]) -> Chart:
        """Return bars of the R2 of places, and of the share of labels that are read."""
        bars = {f"{kind} {what}": result[kind][what] for what in ("row", "column", "label") for kind in result}
        return Chart("read by a linear function", bars, plain=("patches",))


class OverlapStudy(Study):
    """The share of nearest neighbors that are also neighbors after the projector, among patches and among images."""

    IMAGES = 2000
    """The highest number of images whose mean vectors are compared."""
    needs_labels = False

    def __init__(self, context: Context) -> None:
        self.k = context.settings.neighbors
        self.patches = Mean()
        self.means: list[tuple[Tensor, Tensor]] = []

    def add(self, batch: EncodedBatch) -> None:
        """Add a batch of images."""
        if batch.patches.shape[1] == batch.tokens.shape[1] > self.k:  # the tokens of a C-Abstractor are not patches
            self.patches.add(neighbor_overlap(batch.patches, batch.tokens, self.k))
        for before, after in zip(batch.patches, batch.tokens, strict=True):
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
        """Return bars of the shares."""
        bars = {name.replace("_", " "): result.get(name) for name in ("patches", "images", "images_by_chance")}
        return Chart(f"share of {result['k']} nearest neighbors kept", bars, plain=("chance",))


STUDIES: dict[str, type[Study]] = {
    "entropy": EntropyStudy,
    "align": AlignStudy,
    "pursuit": PursuitStudy,
    "lens": LensStudy,
    "overlap": OverlapStudy,
    "place": PlaceStudy,
    "words": WordsStudy,
    "sentences": SentencesStudy,
    "reliance": RelianceStudy,
}
"""All studies by name, in the order in which tables list them."""
