"""Reading a run starts no thread that could outlive the interpreter."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.shards.children import in_child
from tests.shards.conftest import Runs
from tests.shards.hostile import use

TASKS = Path("/proc/self/task")


def threads() -> int:
    """The threads of this process but that of Arrow's allocator, which holds no Python file."""
    return sum((task / "comm").read_text() != "jemalloc_bg_thd\n" for task in TASKS.iterdir())


def read_and_count(good: str) -> None:
    """In a child: read a run in every way, and say how many threads that started."""
    before = threads()
    assert not use(Path(good))
    until = time.monotonic() + 10  # a thread that was joined stays in /proc for a moment
    while threads() > before and time.monotonic() < until:
        time.sleep(0.01)
    if started := threads() - before:
        print(f"{started} threads were started")


@pytest.mark.skipif(not TASKS.exists(), reason="threads are counted in /proc")
def test_reading_a_run_starts_no_threads(runs: Runs) -> None:
    """Catches an index or a plan that Arrow reads in a thread of its own: if that drops the last reference to a Python
    file while the interpreter ends, the process aborts, and a command that did all its work exits with 134."""
    assert in_child(read_and_count, runs.good) == []
