"""Decide which links share a worker on Ray, how many workers there are, and what each reserves of the cluster."""

from __future__ import annotations

from typing import NamedTuple

from pad_pipeline.workflows.engine.chain import Link


class Pool(NamedTuple):
    """The workers of one link."""

    link: Link
    workers: int
    cpus: float
    """CPUs for each worker, as Ray counts them."""
    gpus: int
    """GPUs for each worker."""


def deal_out(chain: list[Link], cpus: float, gpus: int, workers: int = 0) -> list[Pool]:
    """Return the pools of a run. All models share a worker, which has a GPU of its own; the links before and behind
    them have workers without one, so that the GPU does not wait for the CPU. If there is no GPU, or no model, the whole
    chain shares a worker.

    All workers must fit at once, or the last pool would wait without end. So together they reserve half of the CPUs,
    as shares.

    Args:
        chain: the links of the run.
        cpus: CPUs of the cluster.
        gpus: GPUs of the cluster.
        workers: workers in each pool, at most one for each GPU if GPUs are used; 0 for one for each GPU, or for one.
    """
    wants_gpu = bool(gpus) and any(link.on_gpu for link in chain)
    links: list[Link] = []
    for link in chain:
        if links and (not wants_gpu or (link.on_gpu and links[-1].on_gpu)):
            last = links.pop()
            name, steps = f"{last.name}+{link.name}", [*last.steps, *link.steps]
            link = Link(name, steps, last.on_gpu or link.on_gpu, link.breaker)
        links.append(link)
    number = min(workers or gpus, gpus) if wants_gpu else workers or 1
    share = min(1.0, max(0.001, int(500 * cpus / (number * len(links))) / 1000))
    return [Pool(link, number, share, int(wants_gpu and link.on_gpu)) for link in links]
