"""Hire workers on a Ray cluster that grows and shrinks, give shards to them, and replace workers that died."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Literal, NamedTuple

from pad_pipeline.errors import UnavailableError, UserError
from pad_pipeline.records import shard_name
from pad_pipeline.workflows.engine.attempts import TRIES, Attempts
from pad_pipeline.workflows.engine.chain import Done, LinkActor, StageWork, add_work, stay
from pad_pipeline.workflows.engine.placement import Pool, cpus_of_worker, room
from pad_pipeline.workflows.engine.progress import Progress, StageState
from pad_pipeline.workflows.engine.ray_session import check_own_node, living_nodes

AHEAD = 2
"""Shards at each worker: it works on one while the next is transferred, so that it does not wait for the transfer."""
UPDATE_EVERY = 2.0
"""Seconds between two looks at the cluster, and between two updates of the progress."""
MENTIONED_AFTER = 10.0
"""Seconds after which missing workers are reported."""
LOADING = 3600.0
"""Seconds in which a worker must load its models, or it is killed."""
STALLED = 3600.0
"""Seconds after which a worker is killed that has a shard and has not finished a batch."""
OUTLIVES = 3.0
"""Seconds that a node must live after the death of a worker, or the node is the reason of this death. A machine that is
taken away ends its processes one after another."""
JUDGED_WITHIN = 180.0
"""Seconds after which a node that does not answer counts as lost. Ray itself needs up to half a minute to notice."""
UNPLACED = 10
"""Number of workers in a row that may die before they are on a node."""


class Wanted(NamedTuple):
    """The workers that a run wants."""

    pools: list[Pool]
    low: int
    """Fewest workers of the main pool. With fewer, the run works on, but no longer than `wait`."""
    high: int
    """Most workers of the main pool; 0 means as many as the cluster has room for."""
    wait: float
    """Seconds that the run waits for missing workers before it stops."""


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
        self.state: Literal["asked", "loading", "ready", "leaving"] = "asked"
        """`asked`: the cluster has not given it a place yet."""
        self.node = ""
        self.jobs: dict[Any, _Job] = {}
        """Ray's reference to an answer -> the job that the worker does, in the order in which it got the jobs."""
        self.work: dict[str, StageWork] = {}
        self.asked_for_work = False
        self.moved = time.monotonic()
        """The time of the last sign of progress."""


class Scheduler:
    """Gives shards to workers, in as many workers as the cluster has room for.

    Workers that do not fit into the cluster are asked of Ray all the same: they are the demand that an autoscaler sees,
    and they start when a node joins. A worker whose process died is replaced. Whether its node died too is found out by
    a task on that node, because Ray takes up to half a minute to notice.

    A single image that is tried alone goes through one operation per call, to find out which one kills the process.
    """

    def __init__(self, ray: Any, wanted: Wanted, shards: Iterator[Attempts], progress: Progress) -> None:
        self.ray, self.wanted, self.pools, self.shards, self.progress = ray, wanted, wanted.pools, shards, progress
        self.waiting: list[deque[_Job]] = [deque() for _ in self.pools]
        """The jobs that wait for a worker, for each link."""
        self.workers: list[_Worker] = []
        self.handlers: dict[Any, Callable[[Any], Iterator[Done] | None]] = {}
        """Ray's reference to an answer -> what to do with it."""
        self.trials: dict[Any, tuple[float, Callable[[Any], Iterator[Done] | None]]] = {}
        """Answer of a task that tests a node -> the time until which it may take, and its handler."""
        self.past: dict[str, StageWork] = {}
        """The work of workers that are gone."""
        self.strikes = [0] * len(self.pools)
        """Number of workers in a row that died while they loaded, without their nodes."""
        self.unplaced = 0
        self.jobs = 0
        """Number of shards that were begun and are not finished."""
        self.left = progress.shards
        """Number of shards that are not finished."""
        self.all_begun = False
        self.gone = False
        """Whether a worker was removed since `_resize` was called."""
        self.nodes: dict[str, dict[str, float]] = {}
        self.lacking: dict[int, float] = {}
        """Link -> the time since which it has too few workers."""
        self.mentioned: set[int] = set()
        """Links whose missing workers were reported."""
        self.blind = False
        """Whether it was reported that PyTorch sees no GPU."""

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
                self._update()
                self._resize()
            elif self.gone:
                self._resize()
            self._dispatch()
            for answer in self._answers():
                handler = self.handlers.pop(answer, None) or self.trials.pop(answer, (0, None))[1]
                yield from (handler(answer) if handler else None) or ()

    def _begin_jobs(self) -> None:
        ready = sum(worker.state == "ready" for worker in self.workers)
        while self.jobs < AHEAD * max(ready, 1) and not self.all_begun:
            attempts = next(self.shards, None)
            if attempts is None:
                self.all_begun = True
                return
            self.waiting[0].append(_Job(attempts))
            self.jobs += 1

    def _answers(self) -> list[Any]:
        """Wait for an answer, and return all that have come. Fetch nothing: an answer is small, but the second value of
        an actor may be a whole shard."""
        asked = [*self.handlers, *self.trials]
        if not asked:
            time.sleep(UPDATE_EVERY)
            return []
        first, rest = self.ray.wait(asked, num_returns=1, timeout=UPDATE_EVERY, fetch_local=False)
        more = self.ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)[0] if first and rest else []
        return [*first, *more]

    # Workers come and go.

    def _target(self, link: int) -> int:
        """Return the number of workers that a pool should have now."""
        if not self.pools[link].main:
            main = next(number for number, pool in enumerate(self.pools) if pool.main)
            return max(1, sum(w.link == main and w.state == "ready" for w in self.workers))
        most = self.wanted.high or max(room(list(self.nodes.values()), self.pools[link].gpus), self.wanted.low)
        return max(1, min(most, self.jobs if self.all_begun else self.left))

    def _resize(self) -> None:
        """Hire workers that are missing, and let go those that are too many: first those that have no place yet, then
        those without a job."""
        self.gone = False
        for link, pool in enumerate(self.pools):
            workers = [worker for worker in self.workers if worker.link == link and worker.state != "leaving"]
            target = self._target(link)
            for _ in range(target - len(workers)):
                self._hire(link, pool)
            idle = [w for w in workers if not w.jobs and w.state != "loading"]
            for worker in sorted(idle, key=lambda w: w.state)[: max(0, len(workers) - target)]:
                self._let_go(worker)

    def _hire(self, link: int, pool: Pool) -> None:
        main = [w for w in self.workers if self.pools[w.link].main]
        cpus = cpus_of_worker(list(self.nodes.values()), self.pools, max(len(main), self._target(link)))
        needs = {"num_cpus": cpus, "num_gpus": pool.gpus or None, "scheduling_strategy": "SPREAD"}
        kind = self.ray.remote(concurrency_groups={"progress": 1})(LinkActor)
        worker = _Worker(kind.options(**needs, max_restarts=0, max_task_retries=0).remote(), link)
        self.workers.append(worker)
        self.handlers[worker.actor.place.remote()] = partial(self._placed, worker)
        self.handlers[worker.actor.load.remote(pool.link)] = partial(self._loaded, worker)

    def _let_go(self, worker: _Worker) -> None:
        if worker.state == "asked":
            self._remove(worker)
            return
        worker.state = "leaving"
        self.handlers[worker.actor.work.remote()] = partial(self._left, worker)

    def _left(self, worker: _Worker, answer: Any) -> None:
        with suppress(self.ray.exceptions.RayError):
            worker.work = self.ray.get(answer)
        if worker in self.workers:
            self._remove(worker)

    def _remove(self, worker: _Worker) -> None:
        self.workers.remove(worker)
        self.past = add_work([self.past, worker.work])
        self.gone = True
        with suppress(self.ray.exceptions.RayError):
            self.ray.kill(worker.actor)  # it may live, if only the connection to it broke

    def _placed(self, worker: _Worker, answer: Any) -> None:
        with suppress(self.ray.exceptions.RayError):  # the answer to `load` shows it too
            worker.node = self.ray.get(answer)
            worker.state, worker.moved, self.unplaced = "loading", time.monotonic(), 0
            self._check_lack(worker.link, worker.moved)

    def _loaded(self, worker: _Worker, answer: Any) -> None:
        if worker not in self.workers:
            return
        try:
            failure, blind = self.ray.get(answer)
        except self.ray.exceptions.RayError as error:
            self._remove(worker)
            reason = str(error).splitlines()[0]
            if worker.node:
                self._judge(worker, partial(self._strike, worker, reason), lambda: None)
                return
            self.unplaced += 1
            if self.unplaced >= UNPLACED:
                self._refuse(worker, f"its workers die before they begin ({reason})")
            return
        if failure is not None:
            raise failure
        if blind and not self.blind:
            self.blind = True
            name = self.pools[worker.link].link.name
            self.progress.say(f"Ray gave the worker for {name} a GPU, but PyTorch sees none: it computes on the CPU.")
        worker.state, worker.moved, self.strikes[worker.link] = "ready", time.monotonic(), 0

    def _strike(self, worker: _Worker, reason: str) -> None:
        self.strikes[worker.link] += 1
        if self.strikes[worker.link] >= TRIES:
            self._refuse(worker, f"its workers die while they load ({reason})")

    def _refuse(self, worker: _Worker, rule: str) -> None:
        raise UserError("stage", self.pools[worker.link].link.name, rule, "give them more memory or fewer `workers`")

    # Shards pass through the links.

    def _dispatch(self) -> None:
        """Give waiting jobs to free workers. The last link comes first, so that shards leave before others enter."""
        for link in reversed(range(len(self.pools))):
            while self.waiting[link]:
                job = self.waiting[link][0]
                free = [w for w in self.workers if w.link == link and w.state == "ready" and len(w.jobs) < AHEAD]
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
                self.handlers[answer] = partial(self._finished, worker)

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
            worker.moved = time.monotonic()
            yield from self._moved(worker, worker.jobs.pop(answer), result)

    def _moved(self, worker: _Worker, job: _Job, result: Any) -> Iterator[Done]:
        """Send a job to its next link after a worker finished a link, or to the next operation of the link."""
        if isinstance(result, Exception):
            raise result
        if isinstance(result, Done):
            if job.attempts.survived():
                self.jobs, self.left = self.jobs - 1, self.left - 1
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

    def _died(self, worker: _Worker) -> Iterator[Done]:
        """Repeat the jobs of a worker that died. The death counts for the job that the worker worked on, and not for
        the jobs behind it. If the whole node died, the death counts for no job."""
        self._remove(worker)
        suspect: _Job | None = None
        for answer, job in worker.jobs.items():
            self.handlers.pop(answer, None)
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
            self._judge(worker, partial(self._blame, suspect), partial(self._again, suspect))

    def _blame(self, job: _Job) -> None:
        link = self.pools[job.link].link
        stage = link.operations[job.operation].name if job.attempts.alone else ""
        self.progress.say(f"A worker died over {shard_name(job.attempts.number)}, in {stage or link.name}.")
        job.attempts.died(stage)
        self._again(job)

    def _judge(self, worker: _Worker, died_alone: Callable[[], None], died_with_node: Callable[[], None]) -> None:
        """Find out whether the node of a dead worker lives, and call one of the functions."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(worker.node, soft=False)
        task = self.ray.remote(num_cpus=0, max_retries=0)(stay).options(scheduling_strategy=there)

        def judged(answer: Any) -> None:
            try:
                self.ray.get(answer, timeout=0)
            except self.ray.exceptions.RayError:
                self.progress.say("A node was lost; the shards of its workers begin again.")
                died_with_node()
            else:
                died_alone()

        self.trials[task.remote(OUTLIVES)] = time.monotonic() + JUDGED_WITHIN, judged

    # The cluster is looked at every few seconds.

    def _update(self) -> None:
        """Look at the nodes, stop waits that take too long, and show the progress."""
        now, self.nodes = time.monotonic(), living_nodes(self.ray)
        check_own_node(self.ray, self.nodes)
        for answer, (until, judged) in list(self.trials.items()):
            if now > until:
                del self.trials[answer]
                judged(answer)
        for worker in self.workers:
            late = now - worker.moved
            if (worker.state == "loading" and late > LOADING) or (worker.jobs and late > STALLED):
                doing = "loading its models" if worker.state == "loading" else "a batch"
                self.progress.say(f"A worker is killed, because {doing} has taken it {late / 60:.0f} minutes.")
                self.ray.kill(worker.actor)
                worker.moved = now
            elif worker.state == "ready" and not worker.asked_for_work:
                worker.asked_for_work = True
                asked = worker.actor.work.options(concurrency_group="progress").remote()
                self.handlers[asked] = partial(self._worked, worker)
        for link in range(len(self.pools)):
            self._check_lack(link, now)
        self._show()

    def _worked(self, worker: _Worker, answer: Any) -> None:
        worker.asked_for_work = False
        with suppress(self.ray.exceptions.RayError):  # a worker that died: the answers to its jobs show it too
            work = self.ray.get(answer)
            if work != worker.work:
                worker.work, worker.moved = work, time.monotonic()

    def _check_lack(self, link: int, now: float) -> None:
        """Report that a pool has too few workers, and stop the run if that lasts too long."""
        pool, wait = self.pools[link], self.wanted.wait
        number = sum(worker.link == link and worker.state in ("loading", "ready") for worker in self.workers)
        least = min(self.wanted.low, self._target(link)) if pool.main else 1
        if number >= least:
            if self.lacking.pop(link, None) and link in self.mentioned:
                self.mentioned.discard(link)
                self.progress.say(f"The cluster has {number} of the workers for {pool.link.name} now.")
            return
        since = self.lacking.setdefault(link, now)
        needs = f"{pool.gpus:g} GPUs" if pool.gpus else "a share of a CPU"
        rule = f"the cluster has {number} of at least {least} workers for {pool.link.name}, which need {needs} each"
        if now - since > wait:
            remedy = "run the same command again when it has room, or give a longer `wait`"
            raise UnavailableError("wait", f"{wait:g} s", rule, remedy)
        if now - since > MENTIONED_AFTER and link not in self.mentioned:
            self.mentioned.add(link)
            cpu = " `gpus` 0 computes on the CPU." if pool.gpus else ""
            self.progress.say(f"Waiting up to {wait:g} seconds: {rule}.{cpu}")

    def _last_update(self) -> None:
        """Ask all workers for their work a last time, after the last shard is done, and show it."""
        for worker in self.workers:
            if worker.state in ("ready", "leaving"):
                with suppress(self.ray.exceptions.RayError):
                    worker.work = self.ray.get(worker.actor.work.remote(), timeout=UPDATE_EVERY)
        self._show()

    def _show(self) -> None:
        sums = add_work([self.past, *(worker.work for worker in self.workers)])
        states = {}
        for link, pool in enumerate(self.pools):
            workers = [worker for worker in self.workers if worker.link == link]
            queue = len(self.waiting[link]) + sum(max(len(worker.jobs) - 1, 0) for worker in workers)
            ready = Counter(worker.state for worker in workers)["ready"]
            for name in (operation.name for operation in pool.link.operations if operation.name in sums):
                states[name] = StageState(sums[name], ready, queue)
        self.progress.update(states)
