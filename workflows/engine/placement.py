"""Which links share a worker on Ray, how many workers there are, and how much of the cluster each holds."""

from __future__ import annotations

from typing import NamedTuple

from pad_pipeline.workflows.engine.chain import Link


class Pool(NamedTuple):
    """The workers of one link."""

    link: Link
    workers: int
    cpus: float
    """For each worker, as Ray counts."""
    gpus: int
    """For each worker."""


def deal_out(chain: list[Link], cpus: float, gpus: int, workers: int = 0) -> list[Pool]:
    """Return the pools of a run. All models share a worker, which has a GPU of its own; the links before and behind
    them have workers without one, so that the GPU does not wait for the CPU. Where no GPU is there or wanted, the whole
    chain shares a worker.

    All workers must fit at once, or the last pool would wait without end; so together they hold half of the CPUs, as
    shares.

    Args:
        chain: the links of the run, a model each.
        cpus: of the cluster.
        gpus: of the cluster.
        workers: for each pool; 0 for one for each GPU, or one. Never more than there are GPUs, if one is wanted.
    """
    wants_gpu = bool(gpus) and any(link.on_gpu for link in chain)
    links = _shared(chain, wants_gpu)
    number = min(workers or gpus, gpus) if wants_gpu else workers or 1
    share = min(1.0, max(0.001, int(500 * cpus / (number * len(links))) / 1000))
    return [Pool(link, number, share, int(wants_gpu and link.on_gpu)) for link in links]


def _shared(chain: list[Link], gpus: bool) -> list[Link]:
    """Join neighbors that share a worker: those that want a GPU; without any, all."""
    joined: list[Link] = []
    for link in chain:
        if joined and (not gpus or (link.on_gpu and joined[-1].on_gpu)):
            last = joined.pop()
            name, steps = f"{last.name}+{link.name}", [*last.steps, *link.steps]
            link = Link(name, steps, last.on_gpu or link.on_gpu, link.breaker)
        joined.append(link)
    return joined
