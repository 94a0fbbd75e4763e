"""Hire workers on a Ray cluster that grows and shrinks, and find out why a worker died."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Literal, NamedTuple

from pad_pipeline.errors import UnavailableError, UserError
from pad_pipeline.workflows.engine.attempts import TRIES
from pad_pipeline.workflows.engine.chain import Done, LinkActor, StageWork, add_work, stay, without_gpus
from pad_pipeline.workflows.engine.placement import Pool, cpus_of_worker, room
from pad_pipeline.workflows.engine.progress import Progress
from pad_pipeline.workflows.engine.ray_session import check_own_node, living_nodes

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
LOST_NODES = 5
"""Number of node losses of a shard, or in a row while models load, that do not count. Each further loss counts as a
death of the worker, because the shard or the models may take the nodes down."""
UNPLACED = 10
"""How many times in a row workers may die before they are on a node; deaths within `OUTLIVES` seconds count once. Ray
starts workers on a lost node for up to half a minute."""


Handler = Callable[[Any], Iterator[Done] | None]
"""A function that takes Ray's reference to an answer that has come."""


class Wanted(NamedTuple):
    """The workers that a run wants."""

    pools: list[Pool]
    low: int
    """Fewest workers of the main pool. With fewer, the run works on, but no longer than `wait`."""
    high: int
    """Most workers of the main pool; 0 means as many as the cluster has room for."""
    wait: float
    """Seconds that the run waits for missing workers before it stops."""
    fixed: bool
    """Whether the cluster is this machine alone, so that all workers must fit into it now."""


class Worker:
    """An actor of a pool."""

    def __init__(self, actor: Any, link: int) -> None:
        self.actor, self.link = actor, link
        self.state: Literal["asked", "loading", "ready", "leaving"] = "asked"
        """`asked`: the cluster has not given it a place yet."""
        self.node = ""
        self.jobs: dict[Any, Any] = {}
        """Ray's reference to an answer -> the scheduler's job, in the order in which the worker got the jobs."""
        self.work: dict[str, StageWork] = {}
        self.asked_for_work = False
        self.moved = time.monotonic()
        """The time of the last sign of progress."""


class Crew:
    """The workers of a run, as many as the cluster has room for.

    Workers that do not fit into the cluster are asked of Ray all the same: they are the demand that an autoscaler sees,
    and they start when a node joins. Whether the node of a dead worker lives is found out by a task on that node,
    because Ray takes up to half a minute to notice.
    """

    def __init__(self, ray: Any, wanted: Wanted, progress: Progress) -> None:
        self.ray, self.wanted, self.pools, self.progress = ray, wanted, wanted.pools, progress
        self.workers: list[Worker] = []
        self.handlers: dict[Any, Handler] = {}
        """Ray's reference to an answer -> what to do with it."""
        self.trials: dict[Any, tuple[float, Handler]] = {}
        """Answer of a task that tests a node -> the time until which it may take, and its handler."""
        self.past: dict[str, StageWork] = {}
        """The work of workers that are gone."""
        self.left = progress.shards
        """Number of shards that are not finished, for which workers are wanted."""
        self.gone = True
        """Whether `resize` must be called, because a worker was removed."""
        self.nodes: dict[str, dict[str, float]] = {}
        self.strikes = [0] * len(self.pools)
        """Number of workers in a row that died while they loaded, without their nodes."""
        self.lost: set[str] = set()
        """The nodes of workers that were lost."""
        self.lost_starts: list[set[str]] = [set() for _ in self.pools]
        """The nodes in a row that were lost while workers on them loaded."""
        self.unplaced, self.hires_from = 0, 0.0
        """How many times in a row workers died before they had a node; and the time before which nobody is hired, and
        further deaths count as the same."""
        self.lacking: dict[int, float] = {}
        """Link -> the time since which it has too few workers."""
        self.mentioned: set[int] = set()
        """Links whose missing workers were reported."""
        self.blind = False
        """Whether it was reported that PyTorch sees no GPU."""

    def ready(self, link: int | None = None) -> int:
        """Return the number of workers that are ready, of one link or of all."""
        return sum(worker.state == "ready" and link in (None, worker.link) for worker in self.workers)

    def work(self) -> dict[str, StageWork]:
        """Return the work of each stage, also of workers that are gone."""
        return add_work([self.past, *(worker.work for worker in self.workers)])

    def _target(self, link: int) -> int:
        """Return the number of workers that a pool should have now."""
        if not self.pools[link].main:
            main = next(number for number, pool in enumerate(self.pools) if pool.main)
            return max(1, self.ready(main))
        most = self.wanted.high or max(room(list(self.nodes.values()), self.pools[link].gpus), self.wanted.low)
        return max(1, min(most, self.left))

    def resize(self) -> None:
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
        workers = max(len(main), self._target(link)) if self.wanted.fixed else 0
        cpus = cpus_of_worker(list(self.nodes.values()), self.pools, workers)
        needs = {"num_cpus": cpus, "num_gpus": pool.gpus or None, "scheduling_strategy": "SPREAD"}
        kind = self.ray.remote(concurrency_groups={"progress": 1})(LinkActor)
        worker = Worker(kind.options(**needs, max_restarts=0, max_task_retries=0).remote(), link)
        self.workers.append(worker)
        self.handlers[worker.actor.place.remote()] = partial(self._placed, worker)
        self.handlers[worker.actor.load.remote(pool.link)] = partial(self._loaded, worker)

    def _let_go(self, worker: Worker) -> None:
        if worker.state == "asked":
            self.remove(worker)
            return
        worker.state = "leaving"
        self.handlers[worker.actor.work.remote()] = partial(self._left, worker)

    def _left(self, worker: Worker, answer: Any) -> None:
        with suppress(self.ray.exceptions.RayError):
            worker.work = self.ray.get(answer)
        if worker in self.workers:
            self.remove(worker)

    def remove(self, worker: Worker) -> None:
        """Forget a worker, and end its process."""
        self.workers.remove(worker)
        self.past = add_work([self.past, without_gpus(worker.work)])
        self.gone = True
        with suppress(self.ray.exceptions.RayError):
            self.ray.kill(worker.actor)  # it may live, if only the connection to it broke

    def _placed(self, worker: Worker, answer: Any) -> None:
        with suppress(self.ray.exceptions.RayError):  # the answer to `load` shows it too
            worker.node = self.ray.get(answer)
            worker.state, worker.moved, self.unplaced = "loading", time.monotonic(), 0
            self._check_lack(worker.link, worker.moved)

    def _loaded(self, worker: Worker, answer: Any) -> None:
        if worker not in self.workers:
            return
        try:
            failure, blind = self.ray.get(answer)
        except self.ray.exceptions.RayError as error:
            self.remove(worker)
            reason = str(error).splitlines()[0]
            if worker.node:
                died_alone = partial(self._strike, worker, reason)
                self.judge(worker, died_alone, partial(self._lost_start, worker, died_alone))
                return
            if time.monotonic() >= self.hires_from:  # a large node's workers die at once, and are one attempt
                self.unplaced, self.hires_from = self.unplaced + 1, time.monotonic() + OUTLIVES
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
        self.lost_starts[worker.link].clear()

    def _strike(self, worker: Worker, reason: str) -> None:
        self.strikes[worker.link] += 1
        if self.strikes[worker.link] >= TRIES:
            self._refuse(worker, f"its workers die while they load ({reason})")

    def _lost_start(self, worker: Worker, died_alone: Callable[[], None]) -> None:
        lost = self.lost_starts[worker.link]
        if worker.node not in lost and len(lost) >= LOST_NODES:
            died_alone()
        lost.add(worker.node)

    def _refuse(self, worker: Worker, rule: str) -> None:
        raise UserError("stage", self.pools[worker.link].link.name, rule, "give them more memory or fewer `workers`")

    def judge(self, worker: Worker, died_alone: Callable[[], None], died_with_node: Callable[[], None]) -> None:
        """Find out whether the node of a dead worker lives, and call one of the functions."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(worker.node, soft=False)
        task = self.ray.remote(num_cpus=0, max_retries=0)(stay).options(scheduling_strategy=there)

        def judged(answer: Any) -> None:
            try:
                self.ray.get(answer, timeout=0)
            except self.ray.exceptions.RayError:
                if worker.node not in self.lost:
                    self.progress.say("A node was lost; the shards of its workers begin again.")
                self.lost.add(worker.node)
                died_with_node()
            else:
                died_alone()

        self.trials[task.remote(OUTLIVES)] = time.monotonic() + JUDGED_WITHIN, judged

    def update(self) -> None:
        """Look at the nodes, and stop waits that take too long."""
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

    def _worked(self, worker: Worker, answer: Any) -> None:
        worker.asked_for_work = False
        with suppress(self.ray.exceptions.RayError):  # a worker that died: the answers to its jobs show it too
            work = self.ray.get(answer)
            if without_gpus(work) != without_gpus(worker.work):  # a worker that hangs may keep its GPU busy
                worker.moved = time.monotonic()
            worker.work = work

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
