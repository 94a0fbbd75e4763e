"""Decide which links share a worker on Ray, how many workers there are, and what each worker reserves."""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

from pad_pipeline.workflows.engine.chain import Link, merged


class Pool(NamedTuple):
    """The workers that run one link of the chain: the operations that stay together in a process."""

    link: Link
    workers: int
    cpus: float
    """CPUs that each worker reserves, as Ray counts them."""
    gpus: int
    """GPUs that each worker reserves."""


def make_pools(chain: list[Link], cpus: float, gpus: int, workers: int = 0) -> list[Pool]:
    """Return the pools of a run.

    All models share a worker, which has its own GPU. The links before and after the models have workers without a GPU,
    so that the GPU does not wait for the CPU. If there is no GPU or no model, the whole chain shares a worker.

    All workers must fit into the cluster at once, or the last pool would wait forever. So together they reserve half of
    the CPUs, in fractions.

    Args:
        chain: the links of the run.
        cpus: CPUs of the cluster.
        gpus: GPUs of the cluster.
        workers: workers in each pool. 0 means one for each GPU, or one without GPUs. With GPUs, at most one each.
    """
    wants_gpu = bool(gpus) and any(link.on_gpu for link in chain)
    groups = [(on_gpu, merged([*group])) for on_gpu, group in groupby(chain, lambda link: wants_gpu and link.on_gpu)]
    number = min(workers or gpus, gpus) if wants_gpu else workers or 1
    share = min(1.0, max(0.001, int(500 * cpus / (number * len(groups))) / 1000))
    return [Pool(link, number, share, int(on_gpu)) for on_gpu, link in groups]
