"""Time and memory of matching pursuit at the size of real LLMs: `python -m benchmarks.pursuit`.

`now` is `matching_pursuit`, and `before` the plain way, which it replaced: in each step, the products of all residuals
with a copy of the table at length 1, and in the orthogonal form a pseudo-inverse for each token. Both take turns on the
same batches of images, and must find the same words. GB are the most memory beside the table.

The table is random. Tokens are as an image's: segments that say three of 200 words each, blended into another, with a
direction that all tokens share, and noise. The more noise, the more different words are taken. Independent random
tokens, which no vision encoder gives, are the worst case.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from pad_pipeline.measures.pursuit import matching_pursuit
from pad_pipeline.measures.vectors import WordVectors

GRID, STEPS = 24, 5
KINDS = {"alike": (1.0, 1.0), "varied": (0.5, 2.0), "independent": (0.0, 0.0)}
"""The length of the direction that all tokens share, and of the noise; a segment's words have length 1."""


def plain(tokens: Tensor, atoms: Tensor, orthogonal: bool) -> Tensor:
    """The words of the tokens, by all products in every step."""
    rest, words = tokens, torch.zeros(len(tokens), 0, dtype=torch.int64)
    for _ in range(STEPS):
        scores = rest @ atoms.mT
        strength = scores.abs()
        if orthogonal:
            strength = strength.scatter(1, words, -torch.inf)
        words = torch.cat([words, strength.argmax(-1)[:, None]], 1)
        if orthogonal:
            chosen = atoms[words]
            inverse = torch.linalg.pinv((chosen @ chosen.mT).double(), hermitian=True)
            coefficients = (inverse @ (chosen.double() @ tokens[..., None].double()))[..., 0].float()
            rest = tokens - (coefficients[..., None] * chosen).sum(1)
        else:
            rest = rest - scores.gather(1, words[:, -1:]) * atoms[words[:, -1]]
    return words


def images(table: Tensor, kind: str) -> Iterator[Tensor]:
    """Tokens of one image after another, float32 `[576, d]`."""
    generator = torch.Generator().manual_seed(1)
    width, (common, noise) = table.shape[1], KINDS[kind]
    pool = F.normalize(table[torch.randperm(len(table), generator=generator)[:200]], dim=-1)
    shared = F.normalize(pool.mean(0), dim=-1)
    patches = torch.cartesian_prod(torch.arange(GRID), torch.arange(GRID)).float()
    while True:
        random = torch.randn(GRID**2, width, generator=generator) / width**0.5
        if not noise:
            yield random
            continue
        words = pool[torch.randperm(len(pool), generator=generator)[:36]].view(12, 3, width)
        said = (words * torch.tensor([1.0, 0.6, 0.4])[:, None]).sum(1)
        distance = torch.cdist(patches, torch.rand(12, 2, generator=generator) * GRID)
        yield F.normalize((-distance).softmax(-1) @ said, dim=-1) + common * shared + noise * random


class Peak:
    """The most memory of this process inside a `with` block, beyond what it had before, in GB."""

    def __enter__(self) -> Peak:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self._before = self._read("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.gigabytes = (self._read("VmHWM") - self._before) / 1e6

    @staticmethod
    def _read(name: str) -> int:
        return int(re.findall(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())[0])


def timed(work: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """What `work` returns, and its seconds."""
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def measure(table: Tensor, kind: str, orthogonal: bool, count: int, calls: int) -> str:
    """A line of the table: an image alone, then `calls` batches of `count` images, as `pad analyze` takes them."""
    drawn = images(table, kind)
    alone = next(drawn)
    with Peak() as ours:
        vectors = WordVectors(table)
        _, alone_ours = timed(lambda: matching_pursuit(alone, vectors, STEPS, orthogonal).words)
        matching_pursuit(torch.cat([next(drawn) for _ in range(count)]), vectors, STEPS, orthogonal)
    with Peak() as theirs:
        atoms = F.normalize(table, dim=-1)
        _, alone_plain = timed(lambda: plain(alone, atoms, orthogonal))
    seconds: dict[str, list[float]] = {"plain": [], "ours": []}
    vectors = WordVectors(table)
    for _ in range(calls):
        tokens = torch.cat([next(drawn) for _ in range(count)])
        found, took = timed(lambda: matching_pursuit(tokens, vectors, STEPS, orthogonal).words)  # noqa: B023
        seconds["ours"].append(took / count)
        wanted, took = timed(lambda: torch.cat([plain(some, atoms, orthogonal) for some in tokens.split(1024)]))  # noqa: B023
        seconds["plain"].append(took / count)
        if (found != wanted).float().mean() > 0.001:  # words that are equal up to float32
            raise RuntimeError("both ways should find the same words")
    ratios = [a / b for a, b in zip(seconds["plain"], seconds["ours"], strict=True)]
    cells = (
        f"{len(table):,}", kind, "orthogonal" if orthogonal else "plain",
        ", ".join(str(len(step.unique())) for step in found[:GRID**2].T), f"{alone_plain:.1f} / {alone_ours:.1f}",
        f"{median(seconds['plain']):.1f}", f"{median(seconds['ours']):.1f}", f"{median(ratios):.1f}",
        f"{min(ratios):.1f}-{max(ratios):.1f}", f"{theirs.gigabytes:.1f}", f"{ours.gigabytes:.1f}",
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Measure in turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, nargs="+", default=[32_000])
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--images", type=int, default=4, help="in a batch")
    parser.add_argument("--calls", type=int, default=3, help="batches")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--forms", nargs="+", default=["plain", "orthogonal"])
    asked = parser.parse_args()
    print(f"{GRID**2} tokens an image, {STEPS} steps, {asked.calls} batches of {asked.images} images.\n")
    print("| words | tokens | form | different words a step | an image alone: before / now, s | before, s an image |"
          " now, s an image | faster | lowest-highest | before, GB | now, GB |")  # fmt: skip
    print("|" + " --- |" * 11)
    for words in asked.words:
        table = torch.randn(words, asked.width, generator=torch.Generator().manual_seed(0)) * 0.02
        for kind in asked.kinds:
            for form in asked.forms:
                print(measure(table, kind, form == "orthogonal", asked.images, asked.calls), flush=True)


if __name__ == "__main__":
    main()
