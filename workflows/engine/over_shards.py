"""Read many shards in parallel: in processes on this machine, or in tasks on Ray."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field

from pad_pipeline.console import note
from pad_pipeline.errors import UserError
from pad_pipeline.machine import cores
from pad_pipeline.threads import OverShards, map_ahead
from pad_pipeline.workflows.engine.ray_session import Patience, ray_session, refuse_without_ray, seconds_of, watched

FEW = 8
"""Fewer shards are read in this process, because other processes take a second to start."""
_OF_A_STORE = 4
"""Shards of an object store that one process reads at a time, because it mostly waits for the store."""
_LOOK = 2.0
"""Seconds between two looks at the cluster while a task is awaited."""
_RETRIES = 3
"""How often Ray repeats a task whose worker or node dies."""
Item = TypeVar("Item")
Result = TypeVar("Result")


class ReadOptions(BaseModel):
    """How a command reads many shards. The result is the same in all ways."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    engine: Literal["ray", "local"] = "local"
    """Where shards are read. `local`: in processes on this machine. `ray`: on Ray, on this machine or a cluster."""
    address: str = ""
    """Address of a running Ray cluster, such as auto or ray://host:10001; empty starts Ray on this machine."""
    workers: int = Field(0, ge=0, le=100_000)
    """Processes, or tasks on Ray, that read at the same time. 0: a process for each CPU core, one process for a few
    shards; on Ray, enough tasks for all cores of the cluster."""
    wait: str = "10m"
    """On Ray: how long to wait for a cluster that has no CPU, such as 30s, 10m or 2h, before exit code 4."""


def over_shards(options: ReadOptions, shards: int, remote: bool) -> OverShards | None:
    """Return what calls a function for each of `shards` shards, as the options say. `remote` shards are in a store.

    None stands for the caller's own process and threads.

    Raises:
        UserError: an address is given without Ray.
    """
    at_once = _OF_A_STORE if remote else 1
    if options.engine == "ray":
        return _RayTasks(options.address, options.workers, seconds_of("wait", options.wait), at_once)
    refuse_without_ray(address=options.address)
    workers = options.workers or (cores() if shards >= FEW else 1)
    return _Processes(min(workers, shards), at_once) if min(workers, shards) > 1 else None


class _Processes:
    """Calls a function in new processes. They end with this process, or when the iteration is left."""

    shares_disk = True

    def __init__(self, workers: int, at_once: int) -> None:
        self.workers, self.at_once = workers, at_once

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        remaining = iter(items)
        waiting: deque[list[Any]] = deque()  # each a group of items, and the future of their results

        def next_results() -> list[Result]:
            results: list[Result] = waiting[0][1].result()
            waiting.popleft()
            return results

        while True:
            try:
                with _pool(self.workers) as pool:
                    while group := list(islice(remaining, self.at_once)):
                        waiting.append([group, Future()])
                        waiting[-1][1] = pool.submit(_call_each, function, group)
                        if len(waiting) > 2 * self.workers:
                            yield from next_results()
                    while waiting:
                        yield from next_results()
                return
            except BrokenProcessPool:
                note("A process that reads shards died. What it had begun is read again, shard by shard.", "yellow")
            yield from _call_alone(function, [item for group, _ in waiting for item in group])
            waiting.clear()


def _call_each(function: Callable[[Item], Result], items: list[Item]) -> list[Result]:
    return list(map_ahead(function, items, len(items), len(items)))


def _call_alone(function: Callable[[Item], Result], items: list[Item]) -> Iterator[Result]:
    """Call the function for one item at a time, so that it is certain which one the process dies of."""
    with _pool(1) as pool:
        for item in items:
            try:
                result = pool.submit(function, item).result()
            except BrokenProcessPool as error:
                rule, remedy = "the process that read it died, twice", "if its memory ran out, give it more"
                raise UserError("shards", _name(item), rule, f"{remedy}; see `pad verify`") from error
            yield result


def _name(item: object) -> str:
    """Return the name of an item's shard: the item itself, or its first part."""
    return str(item[0] if isinstance(item, tuple) else item)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of processes that end after the block, whatever they do then, or when this process dies."""
    spawn = get_context("spawn")  # threads and connections to a store do not survive a fork
    theirs, ours = spawn.Pipe(duplex=False)
    level = logging.getLogger().level if logging.getLogger().handlers else 0
    with theirs, ProcessPoolExecutor(workers, spawn, _begin, (theirs, level)) as pool:
        try:
            yield pool
        finally:
            ours.close()
            pool.shutdown(cancel_futures=True)


def _begin(parents: Connection, level: int) -> None:
    """Prepare a process of the pool: the parent gets the terminal's signals too, and ends this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if level:
        logging.basicConfig(level=level, format="%(asctime)s %(name)s: %(message)s")  # as in cli.py
    threading.Thread(target=_end_with, args=(parents,), daemon=True).start()


def _end_with(parents: Connection) -> None:
    with suppress(EOFError, OSError):
        parents.recv_bytes()
    os._exit(1)


class _RayTasks:
    """Calls a function in Ray's tasks, on this machine or a cluster. The number of tasks follows the cluster."""

    shares_disk = False

    def __init__(self, address: str, workers: int, wait: float, at_once: int) -> None:
        self.address, self.workers, self.wait, self.at_once = address, workers, wait, at_once

    def __call__(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        with ray_session(self.address) as ray, watched(ray):
            patience = Patience(ray, {"CPU": 1 / self.at_once}, 1, self.wait, note)
            task = ray.remote(num_cpus=1 / self.at_once, max_retries=_RETRIES)(_attempt)
            shared, most = ray.put(function), 0
            waiting: deque[tuple[Item, Any]] = deque()
            for number, item in enumerate(items):
                waiting.append((item, task.remote(shared, item)))
                if number % 64 == 0:
                    cores = int(ray.cluster_resources().get("CPU", 0))
                    most = self.workers or 2 * self.at_once * max(cores, 4)  # tasks that wait call the autoscaler
                while len(waiting) >= most:
                    yield _result(ray, patience, *waiting.popleft())
            while waiting:
                yield _result(ray, patience, *waiting.popleft())


def _attempt(function: Callable[[Item], Result], item: Item) -> tuple[Result | None, Exception | None]:
    try:
        return function(item), None
    except Exception as error:
        from pad_pipeline.workflows.engine.chain import portable  # here, because the command line imports this module

        return None, portable(error)


def _result(ray: Any, patience: Patience, item: object, reference: Any) -> Any:
    """Return the result of a task; raise the exception of its function."""
    while not ray.wait([reference], timeout=_LOOK)[0]:
        patience.check()
    try:
        result, error = cast(tuple[Any, Exception | None], ray.get(reference))
    except ray.exceptions.RayError as death:
        rule = f"the Ray task that read it died each time ({type(death).__name__})"
        raise UserError("shards", _name(item), rule, "if its memory ran out, give it more; see `pad verify`") from death
    if error:
        raise error
    return result
