"""Choose how many workers a run has on the CPU of this machine.

Small models leave cores idle if one process has all of them: two workers with one thread each annotate 1.4 times as
fast as one with two threads (`benchmarks/results/annotate-miniature-cpu.md`). Each worker loads the models, so memory
limits the number of workers.
"""

from __future__ import annotations

from pad_pipeline.machine import cores, memory
from pad_pipeline.workflows.runs.options import RunOptions

KEPT_BYTES = 2_000_000_000
"""Memory that is left to Ray, to the process that started the run, and to the system."""
WORKER_BYTES = 1_500_000_000
"""Memory of a worker beside its models: Python, PyTorch and the shard at hand."""
MODEL_COPIES = 4
"""Memory of a worker for each byte of its model files: the weights, and the tensors of a batch. This is a guess from
`benchmarks/results/memory-cpu.md`, where the batch is a single image."""
LEAST_BUSY = 7 / 8
"""The share of the cores that must have a thread. Twelve workers on sixteen cores would leave four cores idle."""


def with_cpu_workers(options: RunOptions, shards: int, model_bytes: int | None) -> RunOptions:
    """Return options with a number of workers, for a run with Ray on this machine that computes on the CPU and whose
    options leave the number open. Other options are returned as they are.

    There are as many workers as cores, shards and memory allow, at least 1, and fewer if cores would be idle otherwise.
    The shards are those of the whole run, and not those that are left, so that a resume has the same number of threads.

    Args:
        options: the options of the run.
        shards: number of shards in the whole run.
        model_bytes: size of the model files; 0 for a run without models, None if it is not known.
    """
    fixed = options.engine != "ray" or options.address or options.workers or model_bytes is None
    if fixed or (model_bytes and _on_gpu(options)):
        return options
    whole = cores() // max(1, options.threads)
    room = (memory() - KEPT_BYTES) // (WORKER_BYTES + MODEL_COPIES * (model_bytes or 0))
    most = max(1, min(whole, room, shards))
    workers = max(count for count in range(1, most + 1) if count * (whole // count) >= LEAST_BUSY * whole)
    # Without models, the number of threads changes nothing, so run.json has the same one as without Ray.
    threads = options.threads if model_bytes else options.used_threads
    gpus = 0 if options.gpus is None else options.gpus  # Ray may see a GPU that PyTorch can't use
    return options.model_copy(update={"workers": str(workers), "threads": threads, "gpus": gpus})


def _on_gpu(options: RunOptions) -> bool:
    import torch

    return options.gpus != 0 and torch.cuda.is_available()
