"""A shard that kills its process is searched by halves, and just the images that kill are set aside."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pad_pipeline.errors import UserError
from pad_pipeline.workflows.engine.attempts import TRIES, Attempts
from pad_pipeline.workflows.engine.chain import Task

ROWS = 16


def alive(task: Task, deadly: set[int]) -> bool:
    """Whether a process lives through a task: a row that is known to kill is not worked on."""
    rows = set(range(*task.part)) if task.part else set(range(ROWS))
    return not rows & deadly - {row for row, _ in task.killers}


def carried_out(deadly: set[int], dies: int = -1) -> tuple[Attempts, int]:
    """The attempts at a shard to their end, and the number of deaths.

    Args:
        deadly: rows that kill whoever works on them.
        dies: the number of a task over which the process dies for reasons of its own.
    """
    attempts, deaths, number = Attempts(number=0, rows=ROWS), 0, 0
    while True:
        if alive(attempts.task(), deadly) and number != dies:
            if attempts.survived():
                return attempts, deaths
        else:
            attempts.died("tag")
            deaths += 1
        number += 1
        assert number < 1000, "it has no end"


@given(deadly=st.sets(st.integers(0, ROWS - 1), max_size=4))
@settings(deadline=None)
def test_the_images_that_kill_are_found_and_no_others(deadly: set[int]) -> None:
    """A search that drops what shared a half with the killer loses good images; one without bounds costs a night."""
    attempts, deaths = carried_out(deadly)
    assert {row for row, _ in attempts.killers} == deadly
    assert {stage for _, stage in attempts.killers} <= {"tag"}
    assert deaths <= TRIES + len(deadly) * (TRIES + 5)


@pytest.mark.parametrize("dies", range(12))
def test_a_process_that_dies_once_of_its_own_costs_no_image(dies: int) -> None:
    """The OOM killer comes by at any time: an image is set aside only after it died alone, three times in a row."""
    for deadly in (set[int](), {5}):
        attempts, _ = carried_out(deadly, dies)
        assert {row for row, _ in attempts.killers} == deadly


def test_a_shard_that_kills_only_as_a_whole_ends_the_run() -> None:
    """No image kills alone, so none can be set aside: the run must say so, and not search for ever."""
    attempts = Attempts(number=3, rows=ROWS)
    with pytest.raises(UserError, match="pad-000003: each process that works on it dies"):
        for _ in range(1000):
            if attempts.task().part is None:
                attempts.died()
            else:
                attempts.survived()
