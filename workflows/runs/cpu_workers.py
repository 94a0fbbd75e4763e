"""Choose how many workers a run has on the CPU of this machine.

Small models leave cores idle if one process has them all: two workers with one thread each annotate 1.4 times as fast
as one with two threads (`benchmarks/results/annotate-miniature-cpu.md`). Each worker loads the models, so memory limits
the number of workers.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from pad_pipeline.threads import cores
from pad_pipeline.workflows.runs.options import RunOptions

WORKER_BYTES = 1_500_000_000
"""Memory of a worker beside its models: Python, PyTorch and the shard at hand."""
MODEL_COPIES = 3
"""Memory of a worker for each byte of its model files: the weights, and the tensors of a batch. This is a guess from
`benchmarks/results/memory-cpu.md`, where one image takes less."""
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""The files that hold a container's limit of memory, by the two versions of cgroups."""


def with_cpu_workers(options: RunOptions, shards: int, model_bytes: int) -> RunOptions:
    """Return options with the number of workers, for a run with Ray on this machine that computes on the CPU and whose
    options leave the number open. Other options are returned as they are.

    The number depends on the machine and on the whole run, and not on what is left of it, so that a resume has the same
    number of threads: as many as there are cores, shards and memory for, at least 1.

    Args:
        options: the options of the run.
        shards: number of shards in the whole run.
        model_bytes: size of the model files; 0 for a run without models.
    """
    if options.engine != "ray" or options.address or options.workers or (model_bytes and _on_gpu(options)):
        return options
    room = memory() // (WORKER_BYTES + MODEL_COPIES * model_bytes)
    workers = max(1, min(cores() // max(1, options.threads), room, shards))
    # Without models, the number of threads changes nothing, so run.json has the same one as without Ray.
    threads = options.threads if model_bytes else options.used_threads
    return options.model_copy(update={"workers": str(workers), "threads": threads})


def memory() -> int:
    """Return the bytes of memory that this machine has, or that this container may use."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in _CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # there is no such file, or it says `max`
            limits.append(int(Path(name).read_text()))
    return min(limits)


def _on_gpu(options: RunOptions) -> bool:
    import torch

    return options.gpus != 0 and torch.cuda.is_available()
