"""The dry run of `pad build`: plan everything, annotate a few images, and say what the whole would take."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pad_pipeline.errors import UserError
from pad_pipeline.geometry import View
from pad_pipeline.plan import PLAN_NAME, PLAN_SCHEMA, Plan, write_plan
from pad_pipeline.shards.seal import UNSEALED
from pad_pipeline.sources.base import Source
from pad_pipeline.stages.base import Stage
from pad_pipeline.storage import Folder
from pad_pipeline.workflows.engine.chain import Chain, Link, Task
from pad_pipeline.workflows.models.settings import ModelSettings
from pad_pipeline.workflows.runs.build import plan_build
from pad_pipeline.workflows.runs.options import RunOptions

SAMPLE = 16
"""Images that are annotated, after as many that only warm up."""


@dataclass
class Estimate:
    """What a run would take, by what a few images took."""

    images: int
    shards: int
    input_bytes: int
    """Of the images whose size is known."""
    sampled: int
    failed: int
    """Of the sampled."""
    seconds: dict[str, float]
    """For one image, by stage, on this machine."""
    bytes_per_image: float
    """In the shards, the image included."""
    on_gpu: bool

    @property
    def hours(self) -> float:
        """With one worker on this machine."""
        return self.images * sum(self.seconds.values()) / 3600

    @property
    def gpu_hours(self) -> float:
        """Of the stages that use the GPU."""
        return self.images * sum(self.seconds.get(name, 0.0) for name in ("tag", "ground", "segment")) / 3600

    @property
    def storage_bytes(self) -> float:
        """Of all shards."""
        return self.images * self.bytes_per_image


def estimate(source: Source, models: ModelSettings, view: View, options: RunOptions) -> Estimate:
    """Plan into a temporary folder, and annotate images that are spread evenly over the plan. Nothing is kept.

    Raises:
        UserError: as `build`.
    """
    import torch

    with tempfile.TemporaryDirectory(prefix="pad-dry-run-") as temporary:
        folder = Folder(Path(temporary))
        run, chain_for = plan_build(source, models, view, options)
        facts = write_plan(source, folder.path / PLAN_NAME, options.shard_size, "sizes", options.limit)
        if not facts.images:
            raise UserError("images", source.origin, "there is no image in it", "name a folder or a file with images")
        plan = Plan(folder)
        sampled = min(SAMPLE, facts.images // 2) or min(1, facts.images)
        positions = [number * facts.images // (2 * sampled) for number in range(2 * sampled)] if sampled else []
        _replan(folder, plan, positions[1::2] + positions[::2], max(sampled, 1))
        chain = Chain(Link("all", [step for link in chain_for(folder, run.identity) for step in link.steps]))
        warm = len(positions) > sampled
        if warm:
            chain.run(Task(1))
        stages = [step for step in chain.steps if isinstance(step, Stage)]
        before = {stage.name: stage.seconds for stage in stages}
        done = chain.run(Task(0)) if sampled else None
        seconds = {stage.name: (stage.seconds - before[stage.name]) / max(sampled, 1) for stage in stages}
        written = sum(size for name, size in folder.files() if name.startswith("pad-000000"))
        return Estimate(
            images=facts.images,
            shards=-(-facts.images // options.shard_size),
            input_bytes=facts.bytes,
            sampled=sampled,
            failed=done.totals["failed"] if done else 0,
            seconds=seconds,
            bytes_per_image=written / max(sampled, 1),
            on_gpu=torch.cuda.is_available(),
        )


def _replan(folder: Folder, plan: Plan, positions: list[int], shard_size: int) -> None:
    """A plan of these images alone."""
    rows = []
    for new, position in enumerate(positions):
        shard, row = divmod(position, plan.shard_size)
        rows.append(plan.rows(shard)[row] | {"shard": new // shard_size, "row": new % shard_size})
    schema = PLAN_SCHEMA.with_metadata({"shard_size": str(shard_size), "seal": UNSEALED})
    pq.write_table(pa.Table.from_pylist(rows, schema), folder.path / PLAN_NAME)
