"""Estimate the time and storage of a build: plan all images, and annotate a few of them."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pad_pipeline.geometry import View
from pad_pipeline.plan import PLAN_NAME, PLAN_SCHEMA, Plan, write_plan
from pad_pipeline.shards.seal import UNSEALED
from pad_pipeline.sources.base import Source
from pad_pipeline.storage import Folder
from pad_pipeline.workflows.engine.chain import Chain, Task, merged
from pad_pipeline.workflows.models.files import files, listed
from pad_pipeline.workflows.models.settings import ModelSettings
from pad_pipeline.workflows.runs import survey
from pad_pipeline.workflows.runs.build import build_spec
from pad_pipeline.workflows.runs.options import RunOptions

SAMPLE = 16
"""Number of images whose annotation is measured. As many other images first warm up the models."""


@dataclass
class Estimate:
    """Estimated time and storage of a run, measured on a few images."""

    images: int
    shards: int
    input_bytes: int
    """Total size of the images whose size is known."""
    sampled: int
    """The number of images that were measured."""
    failed: int
    """The number of measured images that failed."""
    seconds: dict[str, float]
    """Stage -> seconds for one image on this machine."""
    bytes_per_image: float
    """Bytes in the shards for one image, including its image file."""
    in_models: float
    """Seconds for one image in the stages with a model."""
    on_gpu: bool
    """Whether the models ran on a GPU."""
    operations: dict[str, float]
    """Stage -> operations for one image: matrix products and convolutions, a multiply-add counts as two."""
    model_megabytes: int | None
    """Approximate size of the model files, which each node fetches once; None if it is not known of all."""


def estimate(source: Source, models: ModelSettings, view: View, options: RunOptions) -> Estimate:
    """Measure the annotation of a few images that are spread evenly over the plan. Nothing is kept.

    Raises:
        UserError: as in `build`.
    """
    import torch

    with tempfile.TemporaryDirectory(prefix="pad-dry-run-") as temporary:
        folder, private = Folder(Path(temporary)), options.private_addresses
        spec = build_spec(source, models, view, options.redo_from, private)
        facts = write_plan(source, folder.path / PLAN_NAME, options.shard_size, "sizes", options.limit, private)
        survey.check(facts, source, spec.input_field, options.strict, spec.reads_texts)
        survey.show(facts, source)
        plan = Plan(folder)
        sampled = min(SAMPLE, facts.images // 2) or 1
        positions = [number * facts.images // (2 * sampled) for number in range(2 * sampled)]
        _replan(folder, plan, positions[1::2] + positions[::2], sampled)
        links = spec.chain(folder, "", sampled, options.used_threads)
        chain = Chain(merged(links))
        if models.compute.compile is True:
            chain.run(Task(1))  # nothing is compiled while operations are counted
        operations = _count_operations(chain, Task(1))
        before = chain.work()
        done = chain.run(Task(0))
        seconds = {name: (work.seconds - before[name].seconds) / sampled for name, work in chain.work().items()}
        written = sum(size for name, size in folder.files() if name.startswith("pad-000000"))
        sizes = [file.megabytes for file in listed(files(models))]
        return Estimate(
            images=facts.images,
            shards=-(-facts.images // options.shard_size),
            input_bytes=facts.bytes,
            sampled=sampled,
            failed=done.totals["failed"],
            seconds=seconds,
            bytes_per_image=written / sampled,
            in_models=sum(seconds[link.name] for link in links if link.on_gpu),
            on_gpu=torch.cuda.is_available(),
            operations={name: count / sampled for name, count in operations.items()},
            model_megabytes=sum(size or 0 for size in sizes) if all(sizes) else None,
        )


def _count_operations(chain: Chain, task: Task) -> dict[str, float]:
    """Run a task, which also warms up the models, and return the operations of each stage that has any."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    # It is given shapes, like FlopCounterMode's own functions.
    def attention(query: Any, key: Any, value: Any, *_others: Any, out_shape: Any = None, **_named: Any) -> int:
        return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]

    on_cpu = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    item: Any = task
    counts: dict[str, float] = {}
    for number, name in enumerate(chain.names):
        with FlopCounterMode(display=False, custom_mapping=on_cpu) as counter:
            item = chain.run(item, number, number + 1)
        counts[name] = float(counter.get_total_flops())
    return {name: count for name, count in counts.items() if count}


def _replan(folder: Folder, plan: Plan, positions: list[int], shard_size: int) -> None:
    """Replace the plan in the folder by a plan of only the images at `positions`."""
    rows = []
    for new, position in enumerate(positions):
        shard, row = divmod(position, plan.shard_size)
        rows.append(plan.rows(shard)[row] | {"shard": new // shard_size, "row": new % shard_size})
    schema = PLAN_SCHEMA.with_metadata({"shard_size": str(shard_size), "seal": UNSEALED})
    pq.write_table(pa.Table.from_pylist(rows, schema), folder.path / PLAN_NAME)
