"""The Ray engine: it runs a chain over a pool of actors for each link, and passes shards from one pool to the next.

Ray Data is not used, because it retries a row that kills its actor without end, or ends the whole job. Here the driver
knows which worker has which shard. So a death costs one attempt at that shard and nothing else.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import suppress
from typing import Any

from pad_pipeline.errors import UserError
from pad_pipeline.records import shard_name
from pad_pipeline.workflows.engine.attempts import TRIES, Attempts
from pad_pipeline.workflows.engine.chain import Done, Link, LinkActor, StageWork, add_work
from pad_pipeline.workflows.engine.placement import Pool, make_pools
from pad_pipeline.workflows.engine.progress import Progress, StageState
from pad_pipeline.workflows.engine.ray_session import ray_session

AHEAD = 2
"""Shards at each worker: it works on one while the next is transferred, so that it does not wait for the transfer."""
UPDATE_EVERY = 2.0
"""Seconds between two updates of the progress."""
START_PATIENCE = 60.0
"""Seconds after which workers that have not started are reported."""


class RayEngine:
    """Runs a chain on Ray, on this machine or a cluster. For the arguments see `ray_session` and `make_pools`."""

    def __init__(self, address: str = "", workers: int = 0) -> None:
        self.address, self.workers = address, workers

    def run(self, chain: list[Link], shards: Iterable[Attempts], progress: Progress) -> Generator[Done, None, None]:
        """See `LocalEngine.run`. The results come in any order."""
        with ray_session(self.address) as ray:
            try:
                resources = ray.cluster_resources()
                pools = make_pools(chain, resources.get("CPU", 1), int(resources.get("GPU", 0)), self.workers)
                yield from _Scheduler(ray, pools, iter(shards), progress).results()
            except ray.exceptions.RayError as error:  # an error of Ray's own: exceptions of stages come as values
                rule = f"Ray stopped the run ({type(error).__name__}: {str(error).splitlines()[0]})"
                raise UserError("engine", "ray", rule, "run the same command again to resume") from error


class _Job:
    """A shard on its way through the links."""

    def __init__(self, attempts: Attempts) -> None:
        self.attempts = attempts
        self.restart()

    def restart(self) -> None:
        """Begin the next task at the first link."""
        self.item: Any = self.attempts.task()
        self.link = self.operation = 0
        """Positions of the next link in the chain, and of the next operation in the link."""
        self.node = ""
        """The node that holds `item`."""


class _Worker:
    """An actor of a pool."""

    def __init__(self, actor: Any, link: int) -> None:
        self.actor, self.link = actor, link
        self.node = ""
        self.ready = False
        self.jobs: dict[Any, _Job] = {}
        """Ray's reference to an answer -> the job that the worker does, in the order in which it got the jobs."""
        self.work: dict[str, StageWork] = {}


class _Scheduler:
    """Gives shards to workers, and replaces workers that died.

    A single image that is tried alone goes through one operation per call, to find out which one kills the process.
    """

    def __init__(self, ray: Any, pools: list[Pool], shards: Iterator[Attempts], progress: Progress) -> None:
        self.ray, self.pools, self.shards, self.progress = ray, pools, shards, progress
        self.waiting: list[deque[_Job]] = [deque() for _ in pools]
        """The jobs that wait for a worker, for each link."""
        self.workers: list[_Worker] = []
        self.starting: dict[Any, _Worker] = {}
        """Answer -> the worker that starts."""
        self.asked: dict[Any, _Worker] = {}
        """Answer -> the worker that was asked for its work."""
        self.past: list[dict[str, StageWork]] = []
        """The work of workers that died."""
        self.failed_starts = [0] * len(pools)
        self.jobs = 0
        self.late_at = time.monotonic() + START_PATIENCE
        for link, pool in enumerate(pools):
            for _ in range(pool.workers):
                self._start_worker(link)

    def results(self) -> Iterator[Done]:
        """Yield the result of each shard."""
        updated = time.monotonic()
        most = AHEAD * len(self.workers)
        while True:
            while self.jobs < most and (attempts := next(self.shards, None)):
                self.waiting[0].append(_Job(attempts))
                self.jobs += 1
            if not self.jobs:
                self._last_update()
                return
            self._dispatch()
            running = [answer for worker in self.workers for answer in worker.jobs]
            # Fetch nothing: an answer is small, but the second value of an actor may be a whole shard.
            answered, _ = self.ray.wait(
                [*running, *self.starting, *self.asked], num_returns=1, timeout=UPDATE_EVERY, fetch_local=False
            )
            for answer in answered:
                yield from self._take(answer)
            if time.monotonic() - updated >= UPDATE_EVERY:
                updated = time.monotonic()
                self._update()

    def _start_worker(self, link: int) -> None:
        pool = self.pools[link]
        needs = {"num_cpus": pool.cpus, "num_gpus": pool.gpus or None, "scheduling_strategy": "SPREAD"}
        kind = self.ray.remote(concurrency_groups={"progress": 1})(LinkActor)
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
                last = job.operation + 1 if job.attempts.alone else None
                answer, item = worker.actor.run.options(num_returns=2).remote(job.item, job.operation, last)
                job.item = item
                worker.jobs[answer] = job

    def _take(self, answer: Any) -> Iterator[Done]:
        if answer in self.starting:
            self._started(answer)
        elif answer in self.asked:
            worker = self.asked.pop(answer)
            with suppress(self.ray.exceptions.RayError):  # a worker that died: the answers to its jobs show it too
                worker.work = self.ray.get(answer)
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
            self._start_worker(worker.link)
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
        except errors.RayError as error:
            lost = (errors.ObjectLostError, errors.ObjectFetchTimedOutError)
            if not isinstance(error, lost) and not isinstance(getattr(error, "cause", None), lost):
                raise
            self._again(worker.jobs.pop(answer))  # the node that held the shard is gone
        else:
            yield from self._moved(worker, worker.jobs.pop(answer), result)

    def _moved(self, worker: _Worker, job: _Job, result: Any) -> Iterator[Done]:
        """Send a job to its next link after a worker finished a link, or to the next operation of the link."""
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
        job.operation += 1
        if not job.attempts.alone or job.operation == len(self.pools[job.link].link.operations):
            job.link, job.operation = job.link + 1, 0
        self.waiting[job.link].append(job)

    def _again(self, job: _Job) -> None:
        job.restart()
        self.waiting[0].appendleft(job)

    def _died(self, worker: _Worker) -> Iterator[Done]:
        """Replace a worker that died, and repeat its jobs. The death counts for the job that the worker worked on, and
        not for the jobs behind it. If the whole node died, the death counts for no job."""
        self.workers.remove(worker)
        self.past.append(worker.work)
        blame = any(node["NodeID"] == worker.node and node["Alive"] for node in self.ray.nodes())
        if not blame:
            self.progress.say("A node was lost; the shards of its workers begin again.")
        for answer, job in list(worker.jobs.items()):
            try:
                result = self.ray.get(answer)
            except self.ray.exceptions.RayError:
                if blame:
                    blame = False
                    link = self.pools[job.link].link
                    stage = link.operations[job.operation].name if job.attempts.alone else ""
                    self.progress.say(f"A worker died over {shard_name(job.attempts.number)}, in {stage or link.name}.")
                    job.attempts.died(stage)
                self._again(job)
            else:
                yield from self._moved(worker, job, result)
        self._start_worker(worker.link)

    def _update(self) -> None:
        """Ask the workers for their work, and show the answers that have come."""
        for worker in self.workers:
            if worker.ready and worker not in self.asked.values():
                self.asked[worker.actor.work.options(concurrency_group="progress").remote()] = worker
        if time.monotonic() > self.late_at:
            self.late_at = float("inf")
            self._report_late_workers()
        self._show()

    def _report_late_workers(self) -> None:
        late = Counter(worker.link for worker in self.starting.values())
        for link, count in late.items():
            pool = self.pools[link]
            self.progress.say(
                f"{count} of {pool.workers} workers for {pool.link.name} have not begun: they still load their "
                f"models, or the cluster has no room for them ({pool.cpus:g} CPUs and {pool.gpus:g} GPUs each)."
            )

    def _last_update(self) -> None:
        """Ask all workers for their work a last time, after the last shard is done, and show it."""
        for worker in self.workers:
            if worker.ready:
                with suppress(self.ray.exceptions.RayError):
                    worker.work = self.ray.get(worker.actor.work.remote(), timeout=UPDATE_EVERY)
        self._show()

    def _show(self) -> None:
        sums = add_work([*self.past, *(worker.work for worker in self.workers)])
        states = {}
        for link, pool in enumerate(self.pools):
            workers = [worker for worker in self.workers if worker.link == link]
            queue = len(self.waiting[link]) + sum(max(len(worker.jobs) - 1, 0) for worker in workers)
            for name in (operation.name for operation in pool.link.operations if operation.name in sums):
                states[name] = StageState(sums[name], sum(worker.ready for worker in workers), queue)
        self.progress.update(states)
