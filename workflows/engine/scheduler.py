"""Give shards to the workers on a Ray cluster, pass them from link to link, and repeat them when a worker died."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from pad_pipeline.records import shard_name
from pad_pipeline.workflows.engine.attempts import Attempts
from pad_pipeline.workflows.engine.chain import NO_MEMORY, Done
from pad_pipeline.workflows.engine.crew import LOST_NODES, Crew, Wanted, Worker
from pad_pipeline.workflows.engine.progress import Progress, StageState

AHEAD = 2
"""Shards at each worker: it works on one while the next is transferred, so that it does not wait for the transfer."""
UPDATE_EVERY = 2.0
"""Seconds between two looks at the cluster, and between two updates of the progress."""


class _Job:
    """A shard on its way through the links."""

    def __init__(self, attempts: Attempts) -> None:
        self.attempts = attempts
        self.lost_nodes = 0
        """How often a node was lost while one of its workers worked on the shard."""
        self.restart()

    def restart(self) -> None:
        """Begin the next task at the first link."""
        self.item: Any = self.attempts.task()
        self.link = self.operation = 0
        """Positions of the next link in the chain, and of the next operation in the link."""
        self.node = ""
        """The node that holds `item`."""


class Scheduler:
    """Gives shards to the workers of a crew.

    A single image that is tried alone goes through one operation per call, to find out which one kills the process.
    """

    def __init__(self, ray: Any, wanted: Wanted, shards: Iterator[Attempts], progress: Progress) -> None:
        self.ray, self.pools, self.shards, self.progress = ray, wanted.pools, shards, progress
        self.crew = Crew(ray, wanted, progress)
        self.waiting: list[deque[_Job]] = [deque() for _ in self.pools]
        """The jobs that wait for a worker, for each link."""
        self.jobs = 0
        """Number of shards that were begun and are not finished."""
        self.all_begun = False

    def results(self) -> Iterator[Done]:
        """Yield the result of each shard.

        Raises:
            UnavailableError: too few workers are there for too long, or the machine of this process left the cluster.
            UserError: the workers die while they load, or a shard kills every worker.
        """
        updated = -UPDATE_EVERY
        while True:
            self._begin_jobs()
            if not self.jobs:
                self._last_update()
                return
            if time.monotonic() - updated >= UPDATE_EVERY:
                updated = time.monotonic()
                self.crew.update()
                self.crew.resize()
                self._show()
            elif self.crew.gone:
                self.crew.resize()
            self._dispatch()
            for answer in self._answers():
                handler = self.crew.handlers.pop(answer, None) or self.crew.trials.pop(answer, (0, None))[1]
                yield from (handler(answer) if handler else None) or ()

    def _begin_jobs(self) -> None:
        while self.jobs < AHEAD * max(self.crew.ready(), 1) and not self.all_begun:
            attempts = next(self.shards, None)
            if attempts is None:
                self.all_begun, self.crew.left = True, self.jobs
                return
            self.waiting[0].append(_Job(attempts))
            self.jobs += 1

    def _answers(self) -> list[Any]:
        """Wait for an answer, and return all that have come. Fetch nothing: an answer is small, but the second value of
        an actor may be a whole shard."""
        asked = [*self.crew.handlers, *self.crew.trials]
        if not asked:
            time.sleep(UPDATE_EVERY)
            return []
        first, rest = self.ray.wait(asked, num_returns=1, timeout=UPDATE_EVERY, fetch_local=False)
        more = self.ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)[0] if first and rest else []
        return [*first, *more]

    def _dispatch(self) -> None:
        """Give waiting jobs to free workers. The last link comes first, so that shards leave before others enter."""
        for link in reversed(range(len(self.pools))):
            while self.waiting[link]:
                job = self.waiting[link][0]
                free = [w for w in self.crew.workers if w.link == link and w.state == "ready" and len(w.jobs) < AHEAD]
                if not free:
                    break
                worker = min(free, key=lambda worker: (len(worker.jobs), worker.node != job.node))
                self.waiting[link].popleft()
                last = job.operation + 1 if job.attempts.alone else None
                answer, item = worker.actor.run.options(num_returns=2).remote(job.item, job.operation, last)
                job.item = item
                if not worker.jobs:
                    worker.moved = time.monotonic()
                worker.jobs[answer] = job
                self.crew.handlers[answer] = partial(self._finished, worker)

    def _finished(self, worker: Worker, answer: Any) -> Iterator[Done]:
        errors = self.ray.exceptions
        try:
            result = self.ray.get(answer)
        except (
            errors.RayActorError,
            errors.WorkerCrashedError,
            errors.NodeDiedError,
            errors.OutOfMemoryError,
        ) as error:
            yield from self._died(worker, error)
        except errors.RayError as error:
            lost = (errors.ObjectLostError, errors.ObjectFetchTimedOutError)
            if not isinstance(error, lost) and not isinstance(getattr(error, "cause", None), lost):
                raise
            self._again(worker.jobs.pop(answer))  # the node that held the shard is gone
        else:
            worker.moved = time.monotonic()
            yield from self._moved(worker, worker.jobs.pop(answer), result)

    def _moved(self, worker: Worker, job: _Job, result: Any) -> Iterator[Done]:
        """Send a job to its next link after a worker finished a link, or to the next operation of the link."""
        if isinstance(result, Exception):
            raise result
        if isinstance(result, Done):
            if job.attempts.survived():
                self.jobs, self.crew.left = self.jobs - 1, self.crew.left - 1
                self.progress.done_on(worker.node)
                yield result
            else:
                self._again(job)
            return
        job.node = worker.node
        job.operation += 1
        if not job.attempts.alone or job.operation == len(self.pools[job.link].link.operations):
            job.link, job.operation = job.link + 1, 0
        self.waiting[job.link].append(job)

    def _again(self, job: _Job) -> None:
        job.restart()
        self.waiting[0].appendleft(job)

    def _died(self, worker: Worker, error: Exception) -> Iterator[Done]:
        """Repeat the jobs of a worker that died. The death counts for the job that the worker worked on, and not for
        the jobs behind it. If the whole node died, the death counts for no job."""
        self.crew.remove(worker)
        suspect: _Job | None = None
        for answer, job in worker.jobs.items():
            self.crew.handlers.pop(answer, None)
            try:
                if not self.ray.wait([answer], timeout=0, fetch_local=False)[0]:
                    raise self.ray.exceptions.RayActorError
                result = self.ray.get(answer)
            except self.ray.exceptions.RayError:
                if suspect is None:
                    suspect = job
                else:
                    self._again(job)
            else:
                yield from self._moved(worker, job, result)
        worker.jobs = {}
        if suspect is not None:
            died_alone = partial(self._blame, suspect, _reason(error))
            self.crew.judge(worker, died_alone, partial(self._lost_node, suspect, died_alone))

    def _lost_node(self, job: _Job, died_alone: Callable[[], None]) -> None:
        job.lost_nodes += 1
        died_alone() if job.lost_nodes > LOST_NODES else self._again(job)

    def _blame(self, job: _Job, reason: str) -> None:
        link = self.pools[job.link].link
        stage = link.operations[job.operation].name if job.attempts.alone else ""
        self.progress.say(f"A worker died over {shard_name(job.attempts.number)}, in {stage or link.name} ({reason}).")
        job.attempts.died(stage)
        self._again(job)

    def _last_update(self) -> None:
        """Ask all workers for their work a last time, after the last shard is done, and show it."""
        for worker in self.crew.workers:
            if worker.state in ("ready", "leaving"):
                with suppress(self.ray.exceptions.RayError):
                    worker.work = self.ray.get(worker.actor.work.remote(), timeout=UPDATE_EVERY)
        self._show()

    def _show(self) -> None:
        sums = self.crew.work()
        states = {}
        for link, pool in enumerate(self.pools):
            workers = [worker for worker in self.crew.workers if worker.link == link]
            queue = len(self.waiting[link]) + sum(max(len(worker.jobs) - 1, 0) for worker in workers)
            for name in (operation.name for operation in pool.link.operations if operation.name in sums):
                states[name] = StageState(sums[name], self.crew.ready(link), queue)
        self.progress.update(states)


def _reason(error: Exception) -> str:
    """Return why a worker died, as far as Ray says it."""
    text = str(error)
    code = re.search(r"exit code:? (\d+)", text)
    if (code and int(code[1]) == NO_MEMORY) or "OutOfMemory" in type(error).__name__ or "OOM" in text:
        return "its memory ran out"
    return f"exit code {code[1]}" if code else "its process is gone"
