"""A shard that kills its process is searched by halves, and just the images that kill are set aside."""

from __future__ import annotations

from math import ceil, log2

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pad_pipeline.errors import UserError
from pad_pipeline.workflows.engine.attempts import TRIES, Attempts
from pad_pipeline.workflows.engine.chain import Task

ROWS = 16


def alive(task: Task, deadly: set[int], rows: int = ROWS) -> bool:
    """Whether a process lives through a task: a row that is known to kill is not worked on."""
    return not set(range(*(task.rows or (0, rows)))) & deadly - {row for row, _ in task.killers}


def carried_out(deadly: set[int], rows: int = ROWS, dies: int = -1) -> tuple[Attempts, int, int]:
    """The attempts at a shard to their end, and the numbers of tasks and of deaths.

    Args:
        deadly: rows that kill whoever works on them.
        rows: of the shard.
        dies: the number of a task over which the process dies for reasons of its own.
    """
    attempts, deaths, number = Attempts(number=0, rows=rows), 0, 0
    while True:
        number += 1
        if alive(attempts.task(), deadly, rows) and number - 1 != dies:
            if attempts.survived():
                return attempts, number, deaths
        else:
            attempts.died("tag")
            deaths += 1
        assert number < 100 * rows, "it has no end"


@given(data=st.data(), rows=st.integers(1, 600))
@settings(deadline=None)
def test_the_images_that_kill_are_found_and_no_others(data: st.DataObject, rows: int) -> None:
    """A search that drops what shared a half with the killer loses good images; one without bounds costs a night."""
    deadly = data.draw(st.sets(st.integers(0, rows - 1), max_size=6))
    attempts, _, deaths = carried_out(deadly, rows)
    assert attempts.killers == [(row, "tag") for row in sorted(deadly)]
    depth = ceil(log2(rows)) + 1
    assert deaths <= (TRIES + len(deadly) * (TRIES + depth) if deadly else 0)


@given(rows=st.integers(1, 40))
@example(rows=1)
@settings(deadline=None)
def test_a_shard_of_nothing_but_killers_ends_too(rows: int) -> None:
    """The worst that can be: each row is set aside, and the empty rest comes through."""
    attempts, tasks, deaths = carried_out(set(range(rows)), rows)
    assert {row for row, _ in attempts.killers} == set(range(rows))
    assert deaths <= TRIES + 2 * rows + TRIES * rows and tasks == deaths + 1


@pytest.mark.parametrize("dies", range(20))
def test_a_process_that_dies_once_of_its_own_costs_no_image(dies: int) -> None:
    """The OOM killer comes by at any time: an image is set aside only after it died alone, three times in a row."""
    for deadly in (set[int](), {5}, {0, 15}):
        attempts, *_ = carried_out(deadly, dies=dies)
        assert {row for row, _ in attempts.killers} == deadly


def test_a_shard_is_tried_whole_before_it_is_searched() -> None:
    """A search costs a dozen processes: not for one that ran out of memory once."""
    attempts = Attempts(number=7, rows=ROWS, retry=True)
    for _ in range(TRIES - 1):
        assert attempts.task() == Task(7, retry=True)
        attempts.died()
    assert attempts.task().rows is None and not attempts.alone
    attempts.died()
    assert attempts.task() == Task(7, retry=True, rows=(0, 8)) and attempts.parts == [(8, 16), (0, 8)]


def test_deaths_count_in_a_row() -> None:
    """One that came through between them starts the count anew, for a shard and for an image."""
    attempts = Attempts(number=0, rows=1)
    for _ in range(TRIES - 1):
        attempts.died()
    assert attempts.survived()
    for _ in range(TRIES):
        attempts.died()
    assert attempts.alone
    for _ in range(TRIES - 1):
        attempts.died("tag")
    assert attempts.alone and not attempts.killers
    assert not attempts.survived() and attempts.task().rows is None and attempts.deaths == 0


def test_a_part_that_kills_is_halved_at_its_first_death_and_left_when_it_lives() -> None:
    """More tries of each half would cost three times as many processes; only an image is judged."""
    attempts = Attempts(number=0, rows=5, parts=[(0, 5)])
    attempts.died("ground")
    assert (attempts.parts, attempts.killers) == ([(2, 5), (0, 2)], [])
    assert not attempts.survived()
    attempts.died()
    assert attempts.parts == [(3, 5), (2, 3)] and attempts.alone
    assert not attempts.survived()
    assert attempts.task().rows == (3, 5)


@pytest.mark.parametrize(("stage", "told"), [("segment", "segment"), ("", "unknown")])
def test_an_image_that_kills_alone_is_set_aside_with_the_stage(stage: str, told: str) -> None:
    """At the third death; then the rest is searched, and then the shard is tried without it."""
    attempts = Attempts(number=0, rows=2, parts=[(1, 2), (0, 1)], searches=1)
    for _ in range(TRIES):
        assert attempts.task().rows == (0, 1) and not attempts.killers
        attempts.died(stage)
    assert attempts.killers == [(0, told)]
    assert attempts.task() == Task(0, rows=(1, 2), killers=((0, told),))
    assert not attempts.survived()
    assert attempts.task() == Task(0, killers=((0, told),))
    assert attempts.survived()


def test_a_killer_is_noted_once() -> None:
    """Where a process dies of its own over a row that is not even worked on any more."""
    attempts = Attempts(number=0, rows=2, parts=[(0, 1)], killers=[(0, "tag")])
    for _ in range(TRIES):
        attempts.died("ground")
    assert attempts.killers == [(0, "tag")]


def test_a_shard_that_kills_only_as_a_whole_ends_the_run() -> None:
    """No image kills alone, so none can be set aside: the run must say so, and not search for ever."""
    attempts = Attempts(number=3, rows=ROWS)
    with pytest.raises(UserError, match="pad-000003: each process that works on it dies"):
        for _ in range(1000):
            if attempts.task().rows is None:
                attempts.died()
            else:
                attempts.survived()
    assert attempts.searches == 1


def test_a_search_that_found_a_killer_is_worth_another() -> None:
    """Two kinds of trouble in one shard: an image that kills alone, and one that kills in company. The second search is
    the last, if it finds nothing."""
    attempts = Attempts(number=0, rows=4)
    with pytest.raises(UserError, match="with none of its images alone"):
        for _ in range(1000):
            part = attempts.task().rows
            if part is None or (part[0] <= 2 < part[1] and not attempts.killers):
                attempts.died("tag")
            else:
                attempts.survived()
    assert attempts.killers == [(2, "tag")] and attempts.searches == 2
