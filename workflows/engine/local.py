"""Run a chain of stages over shards in this process, one after another."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pydantic import BaseModel, ValidationError

from pad_pipeline.errors import UserError
from pad_pipeline.storage import Folder
from pad_pipeline.workflows.engine.attempts import Attempts
from pad_pipeline.workflows.engine.chain import Chain, Done, Link
from pad_pipeline.workflows.engine.progress import StageState, Watch
from pad_pipeline.workflows.engine.supervise import alive

Begin = Callable[[int], Attempts]
"""A shard's number -> the first attempt at it."""
JOURNAL_NAME = ".attempt.json"


class LocalEngine:
    """All steps in this process: the same callables as on Ray, so the same bytes.

    A process that dies leaves a note about what it was at; the next one takes that for an attempt that failed.

    Args:
        out: the run's folder.
        run: what the note is about; one about anything else says nothing.
    """

    def __init__(self, out: Folder, run: str) -> None:
        self.journal = Journal(out, run)

    def run(self, chain: list[Link], numbers: Iterable[int], begin: Begin, watch: Watch) -> Iterator[Done]:
        """What each shard came to, as it is committed."""
        steps = [step for link in chain for step in link.steps]
        built: Chain | None = None

        def look() -> None:
            states = built.worked() if built else {}
            watch.look({name: StageState(worked, workers=1) for name, worked in states.items()})

        for number in self.journal.left(numbers):
            built = built or Chain(Link("all", steps, breaker=chain[0].breaker), look)
            attempts = self.journal.resumed(begin(number))
            with self.journal.kept(attempts):
                while True:
                    done = self._attempt(built, attempts)
                    if attempts.survived():
                        break
            look()
            yield done

    def _attempt(self, chain: Chain, attempts: Attempts) -> Done:
        self.journal.write(attempts)
        alive()
        if not attempts.alone:
            return chain.run(attempts.task())
        item: Any = attempts.task()
        for number, name in enumerate(chain.names):  # so that the note says which stage it was
            attempts.stage = name
            self.journal.write(attempts)
            item = chain.run(item, number, number + 1)
        return item


class _Note(BaseModel):
    run: str
    attempts: Attempts
    retried: list[int] = []
    """Shards that this retry is through with: what failed in them again would be tried without end, at each death."""
    in_hand: bool
    """Somebody is at it, or died at it."""


class Journal:
    """A file that records which shard this process works on: the next process can tell whether this one died there."""

    def __init__(self, out: Folder, run: str) -> None:
        self.out, self.run = out, run
        self.retried: list[int] = []

    def left(self, numbers: Iterable[int]) -> Iterator[int]:
        """The shards that no dead process of this retry was through with."""
        note = self._read()
        self.retried = note.retried if note else []
        return (number for number in numbers if number not in self.retried)

    def resumed(self, fresh: Attempts) -> Attempts:
        """The attempts at a shard: those of a process that died over it, or else fresh ones.

        Raises:
            UserError: the shard kills every process.
        """
        note = self._read()
        if note is None or (note.attempts.number, note.attempts.rows, note.attempts.retry) != (
            fresh.number,
            fresh.rows,
            fresh.retry,
        ):
            return fresh
        if note.in_hand:
            try:
                note.attempts.died()
            except UserError:
                self.out.delete(JOURNAL_NAME, durable=False)  # with more memory the next run may get through
                raise
        return note.attempts

    def write(self, attempts: Attempts, in_hand: bool = True) -> None:
        """Note what is tried now."""
        with self.out.commit(JOURNAL_NAME, durable=False) as partial:
            partial.write_text(
                _Note(run=self.run, attempts=attempts, retried=self.retried, in_hand=in_hand).model_dump_json()
            )

    @contextmanager
    def kept(self, attempts: Attempts) -> Iterator[None]:
        """Guards the work on one shard. An exception or a signal is an orderly stop and does not count as a death."""
        try:
            yield
        except BaseException:
            with suppress(OSError):  # the first trouble is the one to tell
                if attempts.parts or attempts.killers:
                    self.write(attempts, in_hand=False)  # the search goes on where it was stopped
                else:
                    self.out.delete(JOURNAL_NAME, durable=False)
            raise
        if attempts.retry:
            self.retried.append(attempts.number)
            self.write(attempts, in_hand=False)
        else:
            self.out.delete(JOURNAL_NAME, durable=False)

    def _read(self) -> _Note | None:
        if not self.out.has(JOURNAL_NAME):
            return None
        try:
            note = _Note.model_validate(json.loads(self.out.read(JOURNAL_NAME)))
        except (ValueError, ValidationError, RecursionError):
            return None
        return note if note.run == self.run and note.attempts.sound else None
