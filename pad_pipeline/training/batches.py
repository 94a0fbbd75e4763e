"""Collate examples into micro-batches. Threads decode the images ahead of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pad_pipeline.training.examples import Example, Examples, Preprocessor
from pad_pipeline.training.order import Ints
from pad_pipeline.training.patch_terms import Regions
from pad_pipeline.training.template import IMAGE


class Batch(NamedTuple):
    """A micro-batch of B sequences of T tokens, with I images of M vision tokens each, and R regions."""

    keys: list[str]
    """The keys of the B samples."""
    ids: Tensor
    """int64 `[B, T]`: token ids, padded at the right; 0 at the positions of vision tokens."""
    pixels: Tensor
    """float32 `[I, 3, size, size]`, normalized."""
    vision_at: Tensor
    """int64 `[I * M]`: the positions of the vision tokens in the flattened ids."""
    predicting: Tensor
    """int64 `[N]`: the positions in the flattened ids right before a supervised token. They are indices and not a mask,
    because with a mask the GPU would wait for the CPU."""
    targets: Tensor
    """int64 `[N]`: the supervised tokens."""
    regions: Regions
    """The regions of all images, with the coverage of patches, `[R, grid * grid]`."""

    def to(self, device: torch.device) -> Batch:
        """Return the batch with all tensors on `device`."""
        tensors = (part.to(device, non_blocking=True) for part in self[1:-1])
        return Batch(self.keys, *tensors, self.regions.to(device))  # type: ignore[call-arg, arg-type]


class StepBatches(NamedTuple):
    """The micro-batches of one optimizer step that one rank computes."""

    batches: list[Batch]
    problems: list[tuple[str, str]]
    """The samples from which nothing can be learned: key and reason."""
    left_out: int
    """The number of regions that `largest` and `without` leave out of L_patch."""


def collate(examples: list[Example], preprocessor: Preprocessor) -> Batch:
    """Stack one or more examples into a batch, and pad their texts to the longest one."""
    id_rows, supervised_rows = [], []
    for example in examples:
        tokens = torch.tensor(example.text.ids, dtype=torch.long)
        repeats = torch.where(tokens == IMAGE, preprocessor.tokens, 1)  # an image takes several tokens
        id_rows.append(tokens.repeat_interleave(repeats))
        supervised_rows.append(torch.tensor(example.text.supervised, dtype=torch.bool).repeat_interleave(repeats))
    ids = pad_sequence(id_rows, batch_first=True)
    if not ids.shape[1]:
        ids = ids.new_zeros(len(examples), 1)  # the LLM takes no sequence of length 0
    supervised = pad_sequence(supervised_rows, batch_first=True).flatten().nonzero().flatten()
    images = [example.pixels for example in examples if example.pixels is not None]
    counts = [len(example.coverage) for example in examples if example.pixels is not None]
    words = [torch.tensor(ids, dtype=torch.long) for example in examples for ids in example.words]
    return Batch(
        keys=[example.key for example in examples],
        ids=ids.masked_fill(ids == IMAGE, 0),
        pixels=torch.stack(images) if images else torch.zeros(0, 3, preprocessor.view.size, preprocessor.view.size),
        vision_at=(ids == IMAGE).flatten().nonzero().flatten(),
        predicting=supervised - 1,
        targets=ids.flatten()[supervised],
        regions=Regions.of(
            torch.from_numpy(np.concatenate([example.embeds for example in examples])),
            torch.from_numpy(np.concatenate([example.coverage for example in examples])),
            torch.from_numpy(np.repeat(np.arange(len(images)), counts)),
            pad_sequence(words, batch_first=True, padding_value=-1) if words else None,
            torch.from_numpy(np.concatenate([example.used for example in examples])),
        ),
    )


def load_steps(
    examples: Examples, order: Callable[[int], Ints], span: range, rank: int = 0, world: int = 1
) -> Iterator[StepBatches]:
    """Yield the micro-batches of one rank for each step of `span`. `order` returns the numbers of a step's samples.

    Threads decode images ahead of the model, for at most two steps. Texts of similar length share a micro-batch to save
    padding. This does not change the losses, because they do not depend on the order of a step's samples.
    """
    settings = examples.settings
    ahead: list[tuple[int, list[Future[Example]]]] = []
    upcoming = iter(span)
    with ThreadPoolExecutor(settings.loader_threads, thread_name_prefix="loader") as threads:
        try:
            for _ in span:
                # Start to decode the next steps.
                while len(ahead) < 2 and (later := next(upcoming, None)) is not None:
                    numbers = order(later)
                    of_rank = [threads.submit(examples.__getitem__, n) for n in numbers[rank::world].tolist()]
                    ahead.append((-(-len(numbers) // world), of_rank))
                # Wait for this step's samples, and collate them.
                most, futures = ahead.pop(0)
                ready = [future.result() for future in futures]
                problems = [(example.key, example.problem) for example in ready if example.problem]
                ready.sort(key=lambda example: -len(example.text.ids))
                # Every rank runs the same number of micro-batches, because a micro-batch may contain a collective.
                batches = [
                    collate(ready[at : at + settings.micro_batch] or [examples.empty_example], examples.preprocessor)
                    for at in range(0, most, settings.micro_batch)
                ]
                yield StepBatches(batches, problems, sum(int((~example.used).sum()) for example in ready))
        finally:
            threads.shutdown(cancel_futures=True)
