"""Run a chain of stages on Ray: a pool of actors for each link, shards passing from one to the next.

Ray Data is not used: a row that kills its actor is retried without end there, or ends the whole job. Here the driver
knows which worker is at which shard, so a death costs one attempt at that shard and nothing else.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from itertools import chain as joined
from typing import Any

from pad_pipeline.errors import UserError
from pad_pipeline.records import shard_name
from pad_pipeline.workflows.engine.attempts import TRIES, Attempts, Begin
from pad_pipeline.workflows.engine.chain import Done, Link, LinkActor, Worked, add_worked
from pad_pipeline.workflows.engine.placement import Pool, deal_out
from pad_pipeline.workflows.engine.progress import StageState, Watch
from pad_pipeline.workflows.engine.ray_session import ray_session

AHEAD = 2
"""Shards at each worker: one in hand, and one on its way, so that no worker waits for a transfer."""
LOOK = 2.0
"""Seconds between two looks at the workers."""
PATIENCE = 60.0
"""Seconds until workers that have not begun are reported."""


class RayEngine:
    """Runs a chain on Ray, on this machine or a cluster. For the arguments see `ray_session` and `deal_out`."""

    def __init__(self, address: str = "", workers: int = 0) -> None:
        self.address, self.workers = address, workers

    def run(self, chain: list[Link], numbers: Iterable[int], begin: Begin, watch: Watch) -> Generator[Done, None, None]:
        """See `LocalEngine.run`. Results come in any order."""
        numbers = iter(numbers)
        first = next(numbers, None)
        if first is None:
            return
        with ray_session(self.address) as ray:
            try:
                there = ray.cluster_resources()
                pools = deal_out(chain, there.get("CPU", 1), int(there.get("GPU", 0)), self.workers)
                yield from _Scheduler(ray, pools, joined([first], numbers), begin, watch).results()
            except ray.exceptions.RayError as error:  # Ray's own troubles; what a stage raises comes as a value
                rule = f"Ray stopped the run ({type(error).__name__}: {str(error).splitlines()[0]})"
                raise UserError("engine", "ray", rule, "run the same command again to resume") from error


class _Job:
    """A shard that passes through the links."""

    def __init__(self, attempts: Attempts) -> None:
        self.attempts = attempts
        self.begin()

    def begin(self) -> None:
        """Begin at the first link."""
        self.item: Any = self.attempts.task()
        self.link = self.step = 0
        self.node = ""


class _Worker:
    """An actor of a pool."""

    def __init__(self, actor: Any, link: int) -> None:
        self.actor, self.link = actor, link
        self.node = ""
        self.ready = False
        self.jobs: dict[Any, _Job] = {}
        """The jobs that the worker was given, in this order, by the reference to the answer."""
        self.worked: dict[str, Worked] = {}


class _Scheduler:
    """Gives shards to workers, and replaces workers that died.

    A single image that is tried alone goes step by step, so that it is known which step kills.
    """

    def __init__(self, ray: Any, pools: list[Pool], numbers: Iterator[int], begin: Begin, watch: Watch) -> None:
        self.ray, self.pools, self.numbers, self.attempts, self.watch = ray, pools, numbers, begin, watch
        self.waiting: list[deque[_Job]] = [deque() for _ in pools]
        self.workers: list[_Worker] = []
        self.asked: dict[Any, _Worker] = {}
        """Questions about progress that are not answered yet."""
        self.starting: dict[Any, _Worker] = {}
        self.past: list[dict[str, Worked]] = []
        """The work of workers that died."""
        self.failed_starts = [0] * len(pools)
        self.jobs = 0
        self.patient_until = time.monotonic() + PATIENCE
        for link, pool in enumerate(pools):
            for _ in range(pool.workers):
                self._hire(link)

    def results(self) -> Iterator[Done]:
        """Yield the result of each shard."""
        looked = time.monotonic()
        most = AHEAD * len(self.workers)
        while True:
            while self.jobs < most and (number := next(self.numbers, None)) is not None:
                self.waiting[0].append(_Job(self.attempts(number)))
                self.jobs += 1
            if not self.jobs:
                self._last_look()
                return
            self._dispatch()
            running = [answer for worker in self.workers for answer in worker.jobs]
            # Fetch nothing: an answer is small, but an actor's second value may be a whole shard.
            answered, _ = self.ray.wait(
                [*running, *self.starting, *self.asked], num_returns=1, timeout=LOOK, fetch_local=False
            )
            for answer in answered:
                yield from self._take(answer)
            if time.monotonic() - looked >= LOOK:
                looked = time.monotonic()
                self._look()

    def _hire(self, link: int) -> None:
        pool = self.pools[link]
        needs = {"num_cpus": pool.cpus, "num_gpus": pool.gpus or None, "scheduling_strategy": "SPREAD"}
        kind = self.ray.remote(concurrency_groups={"watch": 1})(LinkActor)
        worker = _Worker(kind.options(**needs, max_restarts=0, max_task_retries=0).remote(pool.link), link)
        self.workers.append(worker)
        self.starting[worker.actor.ready.remote()] = worker

    def _dispatch(self) -> None:
        """Give waiting jobs to free workers. The last link comes first, so that shards leave before others enter."""
        for link in reversed(range(len(self.pools))):
            while self.waiting[link]:
                job = self.waiting[link][0]
                free = [w for w in self.workers if w.link == link and w.ready and len(w.jobs) < AHEAD]
                if not free:
                    break
                worker = min(free, key=lambda worker: (len(worker.jobs), worker.node != job.node))
                self.waiting[link].popleft()
                last = job.step + 1 if job.attempts.alone else None
                answer, item = worker.actor.run.options(num_returns=2).remote(job.item, job.step, last)
                job.item = item
                worker.jobs[answer] = job

    def _take(self, answer: Any) -> Iterator[Done]:
        if answer in self.starting:
            self._started(answer)
        elif answer in self.asked:
            worker = self.asked.pop(answer)
            try:
                worker.worked = self.ray.get(answer)
            except self.ray.exceptions.RayError:
                return  # it died, which the answers to its jobs show too
        else:
            for worker in [worker for worker in self.workers if answer in worker.jobs]:  # none if that worker died
                yield from self._finished(worker, answer)

    def _started(self, answer: Any) -> None:
        worker = self.starting.pop(answer)
        try:
            failure, worker.node = self.ray.get(answer)
        except self.ray.exceptions.RayError as error:
            self.workers.remove(worker)
            self.failed_starts[worker.link] += 1
            if self.failed_starts[worker.link] >= TRIES:
                name, reason = self.pools[worker.link].link.name, str(error).splitlines()[0]
                rule = f"its workers die while they load ({reason})"
                raise UserError("stage", name, rule, "give them more memory or fewer `workers`") from error
            self._hire(worker.link)
            return
        if failure is not None:
            raise failure
        worker.ready, self.failed_starts[worker.link] = True, 0

    def _finished(self, worker: _Worker, answer: Any) -> Iterator[Done]:
        errors = self.ray.exceptions
        try:
            result = self.ray.get(answer)
        except (errors.RayActorError, errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError):
            yield from self._died(worker)
            return
        except errors.RayError as error:
            if not _is_loss(self.ray, error):
                raise
            self._again(worker.jobs.pop(answer))  # the node that held the shard is gone
            return
        yield from self._moved(worker, worker.jobs.pop(answer), result)

    def _moved(self, worker: _Worker, job: _Job, result: Any) -> Iterator[Done]:
        """Send a job to its next link after a worker finished a link, or one step of the link."""
        if isinstance(result, Exception):
            raise result
        if isinstance(result, Done):
            if job.attempts.survived():
                self.jobs -= 1
                yield result
            else:
                self._again(job)
            return
        job.node = worker.node
        steps = len(self.pools[job.link].link.steps)
        job.step = job.step + 1 if job.attempts.alone else steps
        if job.step == steps:
            job.link, job.step = job.link + 1, 0
        self.waiting[job.link].append(job)

    def _again(self, job: _Job) -> None:
        job.begin()
        self.waiting[0].appendleft(job)

    def _died(self, worker: _Worker) -> Iterator[Done]:
        """Replace a worker that died. The job that it worked on is to blame, unless its node died; the jobs behind
        that one are not."""
        self.workers.remove(worker)
        self.past.append(worker.worked)
        blamed = not any(node["NodeID"] == worker.node and node["Alive"] for node in self.ray.nodes())
        if blamed:
            self.watch.say("A node was lost; the shards of its workers begin again.")
        for answer, job in list(worker.jobs.items()):
            try:
                result = self.ray.get(answer)
            except self.ray.exceptions.RayError:
                if not blamed:
                    blamed = True
                    link = self.pools[job.link].link
                    stage = link.steps[job.step].name if job.attempts.alone else ""
                    self.watch.say(f"A worker died over {shard_name(job.attempts.number)}, in {stage or link.name}.")
                    job.attempts.died(stage)
                self._again(job)
            else:
                yield from self._moved(worker, job, result)
        self._hire(worker.link)

    def _look(self) -> None:
        for worker in self.workers:
            if worker.ready and worker not in self.asked.values():
                self.asked[worker.actor.worked.options(concurrency_group="watch").remote()] = worker
        if time.monotonic() > self.patient_until:
            self.patient_until = float("inf")
            self._report_late_workers()
        self._show()

    def _report_late_workers(self) -> None:
        late = Counter(worker.link for worker in self.starting.values())
        for link, count in late.items():
            pool = self.pools[link]
            self.watch.say(
                f"{count} of {pool.workers} workers for {pool.link.name} have not begun: they still load their "
                f"models, or the cluster has no room for them ({pool.cpus:g} CPUs and {pool.gpus:g} GPUs each)."
            )

    def _last_look(self) -> None:
        """Wait for the work that was done since the last look."""
        for worker in self.workers:
            if worker.ready:
                with suppress(self.ray.exceptions.RayError):
                    worker.worked = self.ray.get(worker.actor.worked.remote(), timeout=LOOK)
        self._show()

    def _show(self) -> None:
        sums = add_worked([*self.past, *(worker.worked for worker in self.workers)])
        states = {}
        for link, pool in enumerate(self.pools):
            here = [worker for worker in self.workers if worker.link == link]
            queue = len(self.waiting[link]) + sum(max(len(worker.jobs) - 1, 0) for worker in here)
            for step in pool.link.steps:
                if step.name in sums:
                    states[step.name] = StageState(sums[step.name], sum(worker.ready for worker in here), queue)
        self.watch.look(states)


def _is_loss(ray: Any, error: Exception) -> bool:
    """Return whether the error says that an input was on a node that died."""
    lost = (ray.exceptions.ObjectLostError, ray.exceptions.ObjectFetchTimedOutError)
    return isinstance(error, lost) or isinstance(getattr(error, "cause", None), lost)
