"""Names each vision token by the nearest label, and counts the right names: the numbers of the drawings as words."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pad_pipeline.analysis.patches import EncodedBatch
from pad_pipeline.analysis.study import Chart, Context, Mean, Study


class WordsStudy(Study):
    """The share of tokens whose nearest label, of all labels in the images, is one that the token shows.

    Grounds such as sky cover most tokens, so a model that knows only them looks good in `right`. In `right_by_label`
    every label counts the same. A blind choice, the most frequent label for every token, is right in `by_frequency`.
    """

    def __init__(self, context: Context) -> None:
        self.labels, self.numbers = list(context.labels), {label: n for n, label in enumerate(context.labels)}
        self.words = F.normalize(context.subject.embed(self.labels).float(), dim=-1)
        self.right = Mean()
        self.shown = torch.zeros(len(self.labels), dtype=torch.long)
        """Tokens that show each label."""
        self.named = torch.zeros(len(self.labels), dtype=torch.long)
        """Tokens that show each label, and have it as their name."""
        self.confused: Counter[tuple[int, int]] = Counter()
        """Label that a token shows, the smallest one, and the wrong one that it is named by."""

    def add(self, batch: EncodedBatch) -> None:
        """Add a batch of images."""
        self.words = self.words.to(batch.tokens.device)
        nearest = (F.normalize(batch.tokens.float(), dim=-1) @ self.words.T).argmax(-1).cpu()
        for image, names in zip(batch.images, nearest, strict=True):
            if image.labels:
                self._add_image(torch.tensor([self.numbers[label] for label in image.labels]), image.shown, names)

    def _add_image(self, numbers: Tensor, shown: Tensor, names: Tensor) -> None:
        known = shown.any(0)
        said = shown & (names[None] == numbers[:, None])  # of each label: tokens that show it and say it
        self.right.add(said.any(0)[known].float())
        self.shown.index_add_(0, numbers, shown.sum(1))
        self.named.index_add_(0, numbers, said.sum(1))
        smallest = numbers[torch.where(shown, shown.sum(1, keepdim=True), shown.numel() + 1).argmin(0)]
        wrong = known & ~said.any(0)
        self.confused.update(zip(smallest[wrong].tolist(), names[wrong].tolist(), strict=True))

    def result(self) -> dict[str, Any]:
        """Return the shares (0..1), and the five most frequent confusions as texts with their numbers of tokens."""
        seen = self.shown > 0
        shares = self.named[seen].double() / self.shown[seen]
        most = {f"{self.labels[a]} named {self.labels[b]}": n for (a, b), n in self.confused.most_common(5)}
        return {
            "right": self.right.value(),
            "right_by_label": float(shares.mean()) if len(shares) else float("nan"),
            "by_frequency": float(self.shown.max()) / self.right.count if self.right.count else float("nan"),
            "labels": len(shares),
            "confused": most,
        }

    @staticmethod
    def chart(result: dict[str, Any]) -> Chart:
        """Return bars of the shares."""
        names = ("right", "right_by_label", "by_frequency")
        bars = {name.replace("_", " "): result[name] for name in names}
        return Chart("share of patches that are named by a label that they show", bars, plain=("frequency",))
