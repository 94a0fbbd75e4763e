"""Count the words that a study finds for patches."""

from __future__ import annotations

import torch
from torch import Tensor

from pad_pipeline.analysis.study import Mean
from pad_pipeline.measures.vocabulary import Vocabulary, beyond_chance


class WordTally:
    """Counts how many of the words found for patches are readable, and how many are true.

    `readable` and `first_readable` are shares of all words and of the first words. `readable_by_chance` is the share
    that a blind choice among all words would reach. `first_readable_beyond_chance` is the part of the rest that
    `first_readable` reaches (`beyond_chance`). A word is true if it is a token of a label that the patch shows, in
    upper or lower case (`Vocabulary.in_label`). `precision` is the share of true words among the K words of a patch. It
    is at most 1/K for a patch with one label of one token. Therefore `first_true` counts only the first word. `recall`
    is the share of a patch's labels that have a true word. The last three are means over the patches that show a label.

    Args:
        vocabulary: the tokens of the LLM.
        ids: the token ids of the words that could be found, int64 `[n]`.
    """

    def __init__(self, vocabulary: Vocabulary, ids: Tensor) -> None:
        self.vocabulary, self.chance = vocabulary, vocabulary.readable_by_chance(ids)
        self.means = {name: Mean() for name in ("readable", "first_readable", "precision", "first_true", "recall")}

    def add(self, words: Tensor, labels: list[str], shown: Tensor, counted: Tensor | None = None) -> None:
        """Add an image: the token ids of the words of its patches, int64 `[M, K]`, and its labels.

        `shown`, bool `[L, M]`, says which patches show a label. `counted`, bool `[M, K]`, says which words can count as
        true; all by default.
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
        shares = {name: mean.value() for name, mean in self.means.items()}
        beyond = beyond_chance(shares["first_readable"], self.chance)
        chance = {"readable_by_chance": self.chance, "first_readable_beyond_chance": beyond}
        return shares | chance | {"patches": self.means["precision"].count}
