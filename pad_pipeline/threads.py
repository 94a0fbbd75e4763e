"""Calls a function in threads or elsewhere, ahead of the code that needs its results."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS = min(16, os.cpu_count() or 1)
Track = Callable[[Iterable[Result], str, int], Iterator[Result]]
"""Shows the progress of an iteration: the steps, what they do, and their number."""

Say = Callable[[str], None]
"""Shows a line of text to the user."""


def untracked(steps: Iterable[Result], what: str, total: int) -> Iterator[Result]:
    """Show no progress."""
    return iter(steps)


class OverShards(Protocol):
    """Calls a function for each shard of a run in other processes or on other machines."""

    shares_disk: bool
    """Whether the function sees the files of this machine."""

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield `function(item)` for each item, in order, as `map_ahead` does. An item is the name of a shard, or a
        tuple that begins with it. Function, items and results are sent between processes."""


def map_shards(over: OverShards | None, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Call a function for each shard through `over`, or in threads of this process if it is None."""
    return over(function, items) if over else map_ahead(function, items, THREADS, 2 * THREADS)


def map_ahead(function: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int) -> Iterator[Result]:
    """Yield `function(item)` for each item, in order.

    At most `ahead` calls run or are done before their turn, so that memory does not grow with the number of items.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
