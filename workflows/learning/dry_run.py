"""Plan the trainings of an experiment: their steps, and what they would take."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from pad_pipeline.console import Table
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.training.settings import TrainSettings, settings_of
from pad_pipeline.workflows.cards import UTILIZATION, Cards
from pad_pipeline.workflows.learning.experiment import Experiment
from pad_pipeline.workflows.learning.plan import StagePlan


class PlannedStage(NamedTuple):
    """One stage of one training."""

    cell: str
    seed: int
    stage: int
    samples: int
    """Samples of a pass; 0 if they are not known."""
    steps: int
    """Optimizer steps; 0 if they are not known."""
    operations: float
    """In FLOP; 0 if they are not known."""
    gigabytes: float


def planned(experiment: Experiment) -> list[PlannedStage]:
    """Return all stages of all trainings of an experiment, in their order. Nothing is trained or written.

    The samples of stage 1 are those of the shards if they are there. Everything else is what the recipe says.

    Raises:
        UserError: the shards are named, and can't be read.
    """
    return list(_stages(experiment))


def _stages(experiment: Experiment) -> Iterator[PlannedStage]:
    plan, counted_samples = experiment.plan, 0
    if experiment.shards:
        counted_samples = len(open_shards(experiment.shards).usable())
    both = experiment.data or plan.stage2
    for name, cell in experiment.cells.items():
        for seed in experiment.seeds:
            first = settings_of(1).model_validate(experiment.stage1 | cell.stage1)
            yield _stage(name, seed, 1, first, plan.stage1, counted_samples)
            if both:
                second = settings_of(2).model_validate(experiment.stage2 | cell.stage2)
                yield _stage(name, seed, 2, second, plan.stage2, 0)


def _stage(
    cell: str, seed: int, stage: int, settings: TrainSettings, plan: StagePlan | None, samples: int
) -> PlannedStage:
    samples = samples or (plan.samples if plan else 0)
    steps = settings.steps or math.ceil(samples * settings.epochs / settings.batch_size)
    operations = steps * settings.batch_size * (plan.teraflops if plan else 0.0) * 1e12
    return PlannedStage(cell, seed, stage, samples, steps, operations, plan.gigabytes if plan else 0.0)


def totals(stages: list[PlannedStage], cards: Cards | None) -> dict[str, Any]:
    """Return the sums over all stages; the hours on GPUs only if cards are given and all operations are known.

    A training takes one GPU, and the trainings run side by side.
    """
    operations = sum(stage.operations for stage in stages)
    known = all(stage.operations for stage in stages)
    found: dict[str, Any] = {
        "trainings": len({(stage.cell, stage.seed) for stage in stages}),
        "operations": operations if known else None,
        "gigabytes": sum(stage.gigabytes for stage in stages),
    }
    if cards and known:
        of_training: dict[tuple[str, int], float] = {}
        for stage in stages:
            one = (stage.cell, stage.seed)
            of_training[one] = of_training.get(one, 0.0) + cards.hours(stage.operations)[1]
        counts = sorted({1, cards.number})
        found["hours_by_cards"] = {count: _hours_until_all_end([*of_training.values()], count) for count in counts}
    return found


def _hours_until_all_end(hours: list[float], gpus: int) -> float:
    """Return when the last of some trainings ends, if each GPU takes the next one when it is free."""
    busy = [0.0] * gpus
    for one in hours:
        first = busy.index(min(busy))
        busy[first] += one
    return max(busy)


def plan_table(stages: list[PlannedStage], cards: Cards | None) -> Table:
    """Return the plan as a table with one row for each stage of each training, and rows of sums."""
    table = Table("training", "stage", "samples", "steps", "operations", "on disk", title="dry run: nothing is trained")
    for stage in stages:
        operations = f"{stage.operations:.2g} FLOP" if stage.operations else "not known"
        numbers = (f"{number:,}" if number else "not known" for number in (stage.samples, stage.steps))
        disk = f"{stage.gigabytes:.1f} GB" if stage.gigabytes else ""
        table.add_row(f"{stage.cell}, seed {stage.seed}", str(stage.stage), *numbers, operations, disk)
    sums = totals(stages, cards)
    known = sums["operations"]
    table.add_section()
    disk = f"{sums['gigabytes']:.1f} GB" if sums["gigabytes"] else ""
    table.add_row(f"{sums['trainings']} trainings", "", "", "", f"{known:.2g} FLOP" if known else "", disk)
    for count, hours in sums.get("hours_by_cards", {}).items():
        assert cards
        table.add_row(f"on {count} x {cards.name}", "", "", "", f"{hours:,.1f} hours", "")
    if cards and known:
        table.caption = f"Hours are calculated: {UTILIZATION:.0%} of what the card can do. They were not measured."
    elif cards:
        table.caption = "Hours can't be calculated: the file has no section `plan` with the operations of each stage."
    return table
