"""`pad experiment`: a grid of trainings over the same shards, each measured; one table at the end.

A cell is a training with its settings; it is repeated for each seed. What is finished is not done again, and what was
interrupted goes on, so the same command continues an experiment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pad_pipeline.analysis.settings import AnalysisSettings
from pad_pipeline.analysis.studies import STUDIES
from pad_pipeline.errors import UserError, rename_field
from pad_pipeline.facts import differences, read_facts
from pad_pipeline.geometry import Fit
from pad_pipeline.packages import installed, left_out
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.sources.llava import LlavaSource
from pad_pipeline.storage import Folder, claim_folder, is_url, resolved, write_whole
from pad_pipeline.training.job import Job
from pad_pipeline.training.settings import settings_of
from pad_pipeline.training.template import TemplateName
from pad_pipeline.weights import file_sha256
from pad_pipeline.workflows.learning.grid import Grid, grid_of
from pad_pipeline.workflows.learning.launch import train
from pad_pipeline.workflows.learning.scores import Score, Trained, find_function, measure
from pad_pipeline.workflows.results import finite
from pad_pipeline.workflows.toml import read_toml, settings_error

RECIPES = Path(__file__).parent / "recipes"
_NAME = re.compile(r"\w[\w ,.-]*")
GRID, RESULT, SUMMARY, PLOT = "grid.json", "result.json", "experiment.json", "experiment.png"


class Cell(BaseModel):
    """One training of the grid: what differs from the others."""

    model_config = ConfigDict(extra="forbid")

    vision: str = ""
    """Another tower than the experiment's."""
    llm: str = ""
    """Another LLM; the shards' labels are embedded with its words."""
    stage1: dict[str, Any] = Field(default_factory=dict)
    """Settings of stage 1, over the experiment's."""
    stage2: dict[str, Any] = Field(default_factory=dict)
    """Settings of stage 2, over the experiment's."""


class Experiment(BaseModel):
    """A grid of trainings."""

    model_config = ConfigDict(extra="forbid")

    vision: str = ""
    """Folder or hub name of the vision tower."""
    llm: str = ""
    """Folder or hub name of the LLM."""
    shards: str = ""
    """What stage 1 is trained on."""
    heldout: str = ""
    """Shards of other images, which the analyses look at."""
    data: str = ""
    """LLaVA JSON of stage 2; empty for stage 1 alone."""
    image_root: str = ""
    """What its images are relative to."""
    fit: Fit = "pad"
    """How its images are made square."""
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0, 1, 2], min_length=1)
    """Each cell is trained with each."""
    stage1: dict[str, Any] = Field(default_factory=dict)
    """Settings of stage 1 that all cells have."""
    stage2: dict[str, Any] = Field(default_factory=dict)
    """Settings of stage 2 that all cells have."""
    analyses: list[str] = Field(["entropy", "align", "pursuit"])
    """What is measured after the last stage: analyses, see `pad analyze`, and `scores`."""
    after_stage1: list[str] = Field(default_factory=list)
    """What is measured after stage 1, though stage 2 follows; in results it stands below `stage1`."""
    scores: dict[str, Score] = Field(default_factory=dict)
    """Functions of your own that score a trained model, by the names that `analyses` and `after_stage1` use."""
    analysis: AnalysisSettings = Field(default_factory=AnalysisSettings)
    """What the paper leaves open in the analyses."""
    limit: int | None = Field(None, ge=1)
    """Images that the analyses look at; all by default."""
    columns: list[str] = Field(
        ["entropy.image.dH", "align.align", "align.shuffled_labels", "pursuit.precision", "pursuit.first_readable"],
        min_length=1,
    )
    """Numbers of the table, by their place in a result."""
    baseline: str = ""
    """The cell that the table compares each other cell with, seed by seed; empty for no comparison."""
    cells: dict[str, Cell] = Field(min_length=1)
    """The grid, by name."""


class Training(NamedTuple):
    """One training of one cell."""

    cell: str
    seed: int
    out: Path


def read_experiment(file: str, options: dict[str, Any]) -> Experiment:
    """A recipe by name, or a TOML file, with `options` put over it.

    Raises:
        UserError: there is none, a setting is wrong, or something needed is missing.
    """
    path = RECIPES / f"{file}.toml" if file in recipes() else Path(file)
    if not path.is_file():
        raise UserError("file", file, f"it is neither a file nor a recipe ({', '.join(recipes())})", "name one of them")
    try:
        experiment = Experiment.model_validate(read_toml("file", path) | options)
        for cell in experiment.cells.values():
            settings_of(1).model_validate(experiment.stage1 | cell.stage1)
            settings_of(2).model_validate(experiment.stage2 | cell.stage2)
    except ValidationError as error:
        raise settings_error(error, str(path)) from error
    if len(set(experiment.seeds)) < len(experiment.seeds):
        raise UserError(f"{path}: seeds", experiment.seeds, "one stands there twice", "name each once")
    known = [*STUDIES, *experiment.scores]
    for field in ("analyses", "after_stage1"):
        if unknown := [one for one in getattr(experiment, field) if one not in known]:
            raise UserError(f"{path}: {field}", unknown[0], f"it should be one of {', '.join(known)}", "correct it")
    measured = {f"{one}." for one in experiment.analyses} | {f"stage1.{one}." for one in experiment.after_stage1}
    if missing := [one for one in experiment.columns if not one.startswith(tuple(measured))]:
        rule = "it should begin with one of the experiment's analyses, or with stage1. and one of its after_stage1"
        raise UserError(f"{path}: columns", missing[0], rule, "add the analysis, or leave the column out")
    for name, score in experiment.scores.items():
        if name in (*STUDIES, "stage1", "images"):
            raise UserError(f"{path}: scores", name, "results have that name for something else", "call it otherwise")
        find_function(name, score)
    if experiment.baseline and experiment.baseline not in experiment.cells:
        raise UserError(f"{path}: baseline", experiment.baseline, "it is none of the cells", "name one of them")
    if bad := [one for one in experiment.cells if not _NAME.fullmatch(one)]:
        rule = "a cell's name should be of letters, digits, spaces, commas, dots and hyphens: a folder is called so"
        raise UserError(f"{path}: cells", bad[0], rule, "call it otherwise")
    for name in ("vision", "llm", "shards", "heldout"):
        in_cells = all(getattr(cell, name, "") for cell in experiment.cells.values())
        if not getattr(experiment, name) and not in_cells:
            raise UserError(name, "(empty)", "the recipe does not say it", "name one")
    return experiment


def recipes() -> list[str]:
    """The names of those that come along."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def run_experiment(experiment: Experiment, out: Path, address: str | None, say: Callable[[str], None]) -> Grid:
    """Train and analyze all cells, one after another or side by side on Ray. One that fails does not stop the others;
    it is tried again by the next call.

    Args:
        experiment: the grid.
        out: a folder for each training, and `experiment.json`.
        address: of a Ray cluster, empty for Ray on this machine; None for this process.
        say: is given what is worth a line.

    Raises:
        UserError: `out` holds another experiment, every training fails, or no result has one of the columns.
    """
    experiment = _absolute(experiment)
    trainings = [Training(cell, seed, out / f"{cell}-{seed}") for cell in experiment.cells for seed in experiment.seeds]
    _claim(experiment, _inputs(experiment), out)
    if experiment.heldout == experiment.shards:
        say("note: the held-out shards are those of the training: the analyses look at images that were trained on.")
    todo = [training for training in trainings if not (training.out / RESULT).is_file()]
    say(f"{len(trainings)} trainings, {len(trainings) - len(todo)} of them done.")
    failed: dict[str, str] = {}
    for training, error in _done(experiment, todo, address):
        name = f"{training.cell}, seed {training.seed}"
        say(f"{name}: {f'failed: {error}' if error else 'done'}")
        if error and len(failed) + 1 == len(trainings):
            raise error
        if error:
            failed[name] = str(error)
    results = {
        cell: [_result(training) for training in trainings if training.cell == cell] for cell in experiment.cells
    }
    found = grid_of(results, experiment.columns, failed, experiment.baseline)
    facts = {"experiment": experiment.model_dump(mode="json")} | found._asdict()
    write_whole(out / SUMMARY, json.dumps(finite(facts), indent=1) + "\n")
    if installed("matplotlib"):
        from pad_pipeline.analysis.charts import draw_grid

        draw_grid(found.cells, out / PLOT)
    else:
        say(left_out(f"{PLOT} is not drawn", "matplotlib"))
    return found


def _result(training: Training) -> dict[str, Any]:
    path = training.out / RESULT
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def _absolute(experiment: Experiment) -> Experiment:
    """Local paths as they are from anywhere: workers run in other folders."""

    def absolute(text: str) -> str:
        return resolved(text) if text and Path(text).exists() else text

    names = ("vision", "llm", "shards", "heldout", "data", "image_root")
    cells = {
        name: cell.model_copy(update={"vision": absolute(cell.vision), "llm": absolute(cell.llm)})
        for name, cell in experiment.cells.items()
    }
    return experiment.model_copy(
        update={name: absolute(getattr(experiment, name)) for name in names} | {"cells": cells}
    )


def _inputs(experiment: Experiment) -> dict[str, Any]:
    """What the trainings read, as it is now: results of other shards do not belong into one table.

    Raises:
        UserError: shards or data can't be read, or their views differ.
    """
    trained = open_shards(experiment.shards)
    with rename_field(shards="heldout"):
        heldout = open_shards(experiment.heldout)
    if trained.run.view != heldout.run.view:
        rule = f"its view is {heldout.run.view}, and that of `shards` {trained.run.view}"
        raise UserError("heldout", experiment.heldout, rule, "give shards of the same view")
    if experiment.data:
        with rename_field(images="data"):
            LlavaSource(experiment.data, experiment.image_root or None)
    read: dict[str, Any] = {
        name: {"run": shards.run.identity, "fingerprints": shards.run.fingerprints, "shards": len(shards.names)}
        for name, shards in (("shards", trained), ("heldout", heldout))
    }
    if experiment.data and not is_url(experiment.data):
        read["data"] = file_sha256(Path(experiment.data))
    return read


def _claim(experiment: Experiment, inputs: dict[str, Any], out: Path) -> None:
    """Refuse an output folder that holds another experiment, or something else."""
    claim_folder(out, GRID)
    facts = experiment.model_dump(mode="json", exclude={"columns", "baseline"}) | {"read": inputs}
    # Empty and absent are the same: an earlier version did not know all of the names.
    new, old = ({name: value for name, value in one.items() if value} for one in (facts, read_facts(out / GRID) or {}))
    if old and (different := differences(old, new)):
        rule = "it holds an experiment that differs: " + "; ".join(different[:8])
        raise UserError("out", out, rule, "repeat its settings to go on, or name another `out`")
    out.mkdir(parents=True, exist_ok=True)
    Folder(out).clean()
    write_whole(out / GRID, json.dumps(facts, indent=1) + "\n")


def _done(
    experiment: Experiment, todo: list[Training], address: str | None
) -> Iterator[tuple[Training, UserError | None]]:
    """Each training when it has ended, and why where it failed."""
    if address is None or not todo:
        for training in todo:
            yield training, _error_of(experiment, training)
        return
    from ray.exceptions import RayError

    from pad_pipeline.workflows.engine.ray_session import ray_session

    with ray_session(address) as ray:
        gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)(_in_worker)
        whole = [training._replace(out=training.out.resolve()) for training in todo]
        waiting = {remote.remote(experiment.model_dump(), training): training for training in whole}
        while waiting:
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            training = waiting.pop(ready)
            try:
                parts = ray.get(ready)
            except RayError as error:  # the worker died again and again, or a node has too little memory
                rule = f"its worker failed ({type(error).__name__}: {' '.join(str(error).split())[-300:]})"
                parts = "engine", "ray", rule, "look into Ray's logs; the next call tries it again"
            yield training, UserError(*parts) if parts else None


def _error_of(experiment: Experiment, training: Training) -> UserError | None:
    try:
        run_cell(experiment, training)
    except UserError as error:
        return error
    return None


def _in_worker(facts: dict[str, Any], training: Training) -> tuple[str, str, str, str] | None:
    """A user's mistake comes back in parts, for Ray would wrap it."""
    error = _error_of(Experiment.model_validate(facts), training)
    return (error.field, str(error.value), error.rule, error.remedy) if error else None


def run_cell(experiment: Experiment, training: Training) -> None:
    """Stage 1, stage 2 where there is data for it, what is measured after each; `result.json` comes last.

    Raises:
        UserError: as in `train` and `measure`.
    """
    cell = experiment.cells[training.cell]
    shared: dict[str, Any] = {"vision": cell.vision or experiment.vision, "llm": cell.llm or experiment.llm}
    one, two = training.out / "stage1", training.out / "stage2"

    def measured(names: list[str], model: Path, template: TemplateName, out: Path) -> dict[str, Any]:
        trained = Trained(model, template, experiment.heldout, experiment.limit)
        return measure(names, experiment.scores, trained, experiment.analysis, out)

    first = settings_of(1).model_validate(experiment.stage1 | cell.stage1 | {"seed": training.seed})
    train(Job(stage=1, shards=experiment.shards, out=str(one), settings=first, **shared))
    model, template = one, first.template
    between = measured(experiment.after_stage1, one, first.template, training.out / "after-stage1")
    if experiment.data:
        same = {name: getattr(first, name) for name in ("projector", "abstractor_tokens", "vision_layer")}
        second = settings_of(2).model_validate(same | experiment.stage2 | cell.stage2 | {"seed": training.seed})
        train(
            Job(
                stage=2, data=experiment.data, image_root=experiment.image_root, fit=experiment.fit,
                init=str(one / "mm_projector.bin"), out=str(two), settings=second, **shared,
            )
        )  # fmt: skip
        model, template = two, second.template
    found = measured(experiment.analyses, model, template, training.out) | ({"stage1": between} if between else {})
    write_whole(training.out / RESULT, json.dumps(finite(found)) + "\n")
