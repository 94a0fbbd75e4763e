"""The word embeddings of an LLM at length 1, multiplied block by block, without a scaled copy of their table."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 4096
"""How many words are multiplied at a time; a block of 4,096 numbers a word takes 67 MB."""
SCORES = 2**28
"""How many products of tokens with words are held at a time, at most; they take 1.07 GB."""
KEPT = 2**27
"""How many products of words with words are kept, at most; they take 537 MB."""
TOKENS = 4096
"""How many tokens are multiplied at a time, at most."""


class WordVectors:
    """Some rows of a table of word embeddings, scaled to length 1; zeros stay zeros.

    Args:
        table: the embeddings, `[T, d]`, of any floating type. It is not copied.
        ids: the rows that are words, int64 `[V]`, on the CPU; all by default.
        block: how many words are multiplied at a time.
    """

    def __init__(self, table: Tensor, ids: Tensor | None = None, block: int = BLOCK) -> None:
        ids = torch.arange(len(table)) if ids is None else ids
        self._table, self._ids, self._block = table, ids.to(table.device), block
        # Most blocks are consecutive rows, and a slice of the table is no copy.
        self._rows: list[Tensor | slice] = []
        for part, on_device in zip(torch.split(ids, block), torch.split(self._ids, block), strict=True):
            first, end = int(part[0]), int(part[0]) + len(part)
            self._rows.append(slice(first, end) if torch.equal(part, torch.arange(first, end)) else on_device)
        self._scale = torch.cat([1 / table[rows].float().norm(dim=-1).clamp_min(1e-12) for rows in self._rows])
        self._kept: Tensor | None = None
        self._place = torch.full((len(ids),), -1)
        self._used = 0

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, words: Tensor) -> Tensor:
        """Return the vectors of words, float32 `[..., d]`, by their numbers among the words, int64 `[...]`."""
        return self._table[self._ids[words]].float() * self._scale[words][..., None]

    def chunks(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Return tokens `[N, d]` in float32, in parts whose products with all words fit into memory."""
        return torch.split(tokens.float(), max(1, min(TOKENS, SCORES // len(self))))

    def products(self, tokens: Tensor, out: Tensor) -> None:
        """Write the products of float32 tokens `[N, d]` with all words into `out`, float32 `[N, V]`."""
        for number, rows in enumerate(self._rows):
            place = slice(number * self._block, (number + 1) * self._block)
            torch.mul(tokens @ self._table[rows].float().mT, self._scale[place], out=out[:, place])

    def subtract(self, shares: Tensor, words: Tensor, most: int, out: Tensor) -> bool:
        """Subtract the products of the sums `shares @ self[words]` with all words from `out`, float32 `[N, V]`.

        The cosines of words with all words are kept, because the tokens of a run's images take the same words over and
        over. Only for the CPU.

        Args:
            shares: float32 `[N, U]`.
            words: the numbers of distinct words, int64 `[U]`.
            most: how many words' cosines may be computed.
            out: products of tokens with all words.

        Returns:
            False, with `out` unchanged, if more cosines than `most` are unknown, or more are needed than can be kept.
        """
        room = KEPT // len(self)
        if self._kept is None:
            self._kept = self._scale.new_empty(room, len(self))
        new = words[self._place[words] < 0]
        if len(new) <= most and self._used + len(new) > room:
            self._place.fill_(-1)
            self._used, new = 0, words
        if len(new) > min(most, room):
            return False
        if len(new):
            end = self._used + len(new)
            self._place[new] = torch.arange(self._used, end)
            self.products(self[new], self._kept[self._used : end])
            self._used = end
        places = self._place[words]
        blocks = (torch.split(products, self._block, 1) for products in (out, self._kept))
        for some, cosines in zip(*blocks, strict=True):
            some.addmm_(shares, cosines[places], alpha=-1)
        return True

    def nearest(self, tokens: Tensor) -> Tensor:
        """Return the number of the word with the highest cosine for each token `[N, d]`, int64 `[N]`."""
        found = []
        for some in self.chunks(tokens):
            products = some.new_empty(len(some), len(self))
            self.products(some, products)
            found.append(products.argmax(-1))
        return torch.cat(found)
