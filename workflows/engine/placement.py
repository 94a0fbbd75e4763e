"""Which stages share a worker, how many workers each has, and what of a GPU each holds."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from pad_pipeline.errors import UserError
from pad_pipeline.workflows.engine.chain import Link

Placement = Literal["auto", "fused", "pools"]
"""`fused`: all models in one worker for each GPU. `pools`: workers of its own for each model. `auto`: fused where every
GPU can hold all models."""

FUSED_BYTES = 16 << 30
"""GPU memory that all official models together want at their default batch sizes: an estimate from their weights (4 GB)
and activations, not a measurement."""
COST = {"tag": 1, "ground": 2, "segment": 6}
"""Roughly how the models share the time; whole GPUs are dealt out by it."""
_OPTION = re.compile(r"([a-z]+)=(\d{1,4})(?:x(\d*\.?\d+))?")


class Size(NamedTuple):
    """What the user asks of one stage's pool."""

    workers: int
    gpus: float | None = None
    """For each worker; None: as by default."""


class Pool(NamedTuple):
    """The workers of one link."""

    link: Link
    workers: int
    cpus: float
    """For each worker, as Ray counts."""
    gpus: float
    """For each worker."""


def parse_pools(options: list[str]) -> dict[str, Size]:
    """`tag=2x0.25` -> two workers for the stage `tag`, each with a quarter of a GPU.

    Raises:
        UserError: it is not of this form.
    """
    sizes = {}
    for option in options:
        found = _OPTION.fullmatch(option)
        if not found or int(found[2]) < 1 or (found[3] and not 0 < float(found[3]) <= 1024):
            rule = "it should be STAGE=WORKERS or STAGE=WORKERSxGPUS"
            raise UserError("pools", option, rule, "write for instance tag=2x0.25")
        sizes[found[1]] = Size(int(found[2]), float(found[3]) if found[3] else None)
    return sizes


def deal_out(
    chain: list[Link],
    cpus: float,
    gpus: int,
    *,
    how: Placement = "auto",
    workers: int = 0,
    sizes: dict[str, Size] | None = None,
    gpu_bytes: int = 0,
) -> list[Pool]:
    """Deal out the workers. All of them must fit at once, or the last pool would wait for ever; so together they hold
    half of the CPUs, as shares.

    Args:
        chain: the links of the run, a model each.
        cpus: of the cluster.
        gpus: of the cluster.
        how: see `Placement`. Without GPUs, `fused` (and `auto`) is the whole chain in each worker.
        workers: for each GPU pool or, without GPUs, for each pool; 0 for one per GPU, or one.
        sizes: what the user asks for; it goes before everything else, and with `pools` only.
        gpu_bytes: memory of the smallest GPU; 0 where that is not known.

    Raises:
        UserError: the pools ask for stages or GPUs that are not there.
    """
    sizes = sizes or {}
    if how == "auto":
        small = bool(gpus) and 0 < gpu_bytes < FUSED_BYTES
        how = "pools" if sizes or small else "fused"
    if how == "fused":
        if sizes:
            raise UserError("pools", ", ".join(sizes), "it goes with `placement` pools", "leave one of them out")
        chain = _fused(chain, bool(gpus))
    if unknown := sizes.keys() - {link.name for link in chain}:
        stages = ", ".join(link.name for link in chain)
        raise UserError("pools", ", ".join(sorted(unknown)), "there is no such stage", f"name one of {stages}")
    on_gpu = [link for link in chain if link.on_gpu and gpus]
    deal = _deal([link.name for link in on_gpu], gpus, workers) if on_gpu else {}
    default = (min(workers or gpus, gpus) if gpus else workers) or 1
    wanted: list[tuple[Link, int, float]] = []
    for link in chain:
        number, part = deal.get(link.name, (default, 0.0))
        if link.name in sizes:
            number = sizes[link.name].workers
            part = part if sizes[link.name].gpus is None else float(sizes[link.name].gpus or 0)
        wanted.append((link, number, part))
    asked = sum(number * part for _, number, part in wanted)
    if asked > gpus + 1e-6:
        rule = f"the pools ask for {asked:g} GPUs, and the cluster has {gpus}"
        raise UserError("pools", " ".join(sizes) or how, rule, "ask for fewer workers or smaller parts of a GPU")
    share = min(1.0, max(0.001, int(500 * cpus / sum(number for _, number, _ in wanted)) / 1000))
    return [Pool(link, number, share, part) for link, number, part in wanted]


def _fused(chain: list[Link], gpus: bool) -> list[Link]:
    """Neighbors that share a worker: those that want a GPU; without any, all."""
    fused: list[Link] = []
    for link in chain:
        if fused and (not gpus or (link.on_gpu and fused[-1].on_gpu)):
            last = fused.pop()
            name, steps = f"{last.name}+{link.name}", [*last.steps, *link.steps]
            link = Link(name, steps, last.on_gpu or link.on_gpu, link.breaker)
        fused.append(link)
    return fused


def _deal(names: list[str], gpus: int, workers: int) -> dict[str, tuple[int, float]]:
    """Workers, and the part of a GPU for each: whole GPUs by cost where there is one for every model, else parts."""
    if len(names) == 1:
        return {names[0]: (min(workers or gpus, gpus), 1.0)}
    if gpus < len(names):
        part = int(1000 / len(names)) / 1000
        return {name: (min(workers or gpus, gpus), part) for name in names}
    dealt = dict.fromkeys(names, 1)
    for _ in range(gpus - len(names)):
        neediest = max(names, key=lambda name: COST.get(name, 1) / dealt[name])
        dealt[neediest] += 1
    return {name: (min(workers or number, number), 1.0) for name, number in dealt.items()}
