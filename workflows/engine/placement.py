"""Decide which links share a worker on Ray, how many workers a cluster has room for, and what each worker reserves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from pad_pipeline.workflows.engine.chain import Link, merged

Node = Mapping[str, float]
"""The resources of a living node, by Ray's names: CPU, GPU."""


class Pool(NamedTuple):
    """The workers that run one link of the chain: the operations that stay together in a process."""

    link: Link
    gpus: float
    """GPUs that each worker reserves."""
    main: bool
    """Whether the number of workers follows the cluster. Each other pool has as many workers as the main pool."""


def make_pools(chain: list[Link], gpus: float) -> list[Pool]:
    """Return the pools of a run.

    All models share a worker. If this worker reserves GPUs, the links before and after the models have workers of their
    own without a GPU, so that the GPU does not wait for the CPU. If not, the whole chain shares a worker.

    Args:
        chain: the links of the run.
        gpus: GPUs that a worker with models reserves; 0 computes on the CPU.
    """
    wants_gpu = gpus > 0 and any(link.on_gpu for link in chain)
    groups = groupby(chain, lambda link: wants_gpu and link.on_gpu)
    return [Pool(merged([*group]), gpus if on_gpu else 0, on_gpu == wants_gpu) for on_gpu, group in groups]


def room(nodes: Sequence[Node], gpus: float) -> int:
    """Return the number of workers with models that fit into a cluster: by its GPUs, or one for each node with CPUs if
    they compute on the CPU."""
    if gpus:
        return sum(_fitting(node, gpus) for node in nodes)
    return sum(node.get("CPU", 0) > 0 for node in nodes)


def cpus_of_worker(nodes: Sequence[Node], pools: list[Pool], workers: int) -> float:
    """Return the CPUs that each worker reserves, in fractions, as Ray counts them.

    All workers must fit into the cluster at once, or the last pool would wait forever. So together they reserve half of
    the CPUs: on the node with the fewest CPUs for each GPU; or, if there is no GPU, on all nodes.

    Args:
        nodes: the nodes of the cluster.
        pools: the pools of the run.
        workers: the number of workers in the main pool.
    """
    gpus = max(pool.gpus for pool in pools)
    if gpus:
        shares = [node.get("CPU", 0) / _fitting(node, gpus) for node in nodes if _fitting(node, gpus)]
    else:
        shares = [sum(node.get("CPU", 0) for node in nodes) / max(workers, 1)] if nodes else []
    return min(1.0, max(0.001, int(500 * min(shares, default=1.0) / len(pools)) / 1000))


def _fitting(node: Node, gpus: float) -> int:
    return int(node.get("GPU", 0) / gpus + 1e-6)
