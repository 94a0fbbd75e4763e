"""Train a grid of models for `pad experiment`, measure each, and compare them in one table.

A cell of the grid is one choice of settings; it is trained once for each seed. The same command continues an experiment
that was stopped.
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
from pad_pipeline.packages import installed, left_out_note
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.sources.llava import LlavaSource
from pad_pipeline.storage import Folder, atomic_write_text, claim_folder, is_url
from pad_pipeline.training.job import AbsolutePath, Job
from pad_pipeline.training.settings import settings_of
from pad_pipeline.training.template import TemplateName
from pad_pipeline.weights import file_sha256
from pad_pipeline.workflows.engine.ray_session import Cluster, Patience, gpus_each, hide_gpus, ray_session, watched
from pad_pipeline.workflows.learning.grid import Grid, collect_grid
from pad_pipeline.workflows.learning.launch import train
from pad_pipeline.workflows.learning.plan import Plan
from pad_pipeline.workflows.learning.scores import Score, Trained, find_function, measure
from pad_pipeline.workflows.results import finite
from pad_pipeline.workflows.toml import read_toml, settings_error

RECIPES = Path(__file__).parent / "recipes"
_CELL_NAME = re.compile(r"\w[\w ,.-]*")
GRID, RESULT, SUMMARY, PLOT = "grid.json", "result.json", "experiment.json", "experiment.png"


class Cell(BaseModel):
    """The settings of one cell, which override those of the experiment."""

    model_config = ConfigDict(extra="forbid")

    vision: AbsolutePath = ""
    llm: AbsolutePath = ""
    stage1: dict[str, Any] = {}
    stage2: dict[str, Any] = {}


class Experiment(BaseModel):
    """A grid of trainings."""

    model_config = ConfigDict(extra="forbid")

    vision: AbsolutePath = ""
    """Folder or hub name of the vision tower."""
    llm: AbsolutePath = ""
    """Folder or hub name of the LLM."""
    shards: AbsolutePath = ""
    """Shards for stage 1."""
    heldout: AbsolutePath = ""
    """Shards of other images, for the analyses and scores."""
    data: AbsolutePath = ""
    """LLaVA JSON for stage 2; without it, only stage 1 is trained."""
    image_root: AbsolutePath = ""
    """Folder that the images of `data` are relative to."""
    fit: Fit = "pad"
    """How the images of `data` are made square."""
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0, 1, 2], min_length=1)
    """The seeds with which each cell is trained."""
    stage1: dict[str, Any] = {}
    """Settings of stage 1 for all cells."""
    stage2: dict[str, Any] = {}
    """Settings of stage 2 for all cells."""
    analyses: list[str] = ["entropy", "align", "pursuit"]
    """The analyses (see `pad analyze`) and scores after the last stage, by their names."""
    after_stage1: list[str] = []
    """The analyses and scores after stage 1. In the results, their names begin with `stage1.`."""
    scores: dict[str, Score] = {}
    """The user's own functions that score a trained model, by the names in `analyses` and `after_stage1`."""
    analysis: AnalysisSettings = AnalysisSettings()
    """Settings of the analyses."""
    limit: int | None = Field(None, ge=1)
    """Greatest number of images for the analyses and scores; None for all."""
    columns: list[str] = Field(
        ["entropy.image.dH", "align.align", "align.shuffled_labels", "pursuit.precision", "pursuit.first_readable",
         "pursuit.readable_by_chance"], min_length=1,
    )  # fmt: skip
    """The dotted names of the numbers in the table."""
    plan: Plan = Plan()
    """What is known of the stages before their data is there, for a dry run."""
    baseline: str = ""
    """The cell that each other cell is compared with, seed by seed; empty for no comparison."""
    cells: dict[str, Cell] = Field(min_length=1)
    """The cells of the grid, by their names."""


class Training(NamedTuple):
    """A training of a cell with one seed."""

    cell: str
    seed: int
    out: Path


def read_experiment(file: str, options: dict[str, Any], for_plan: bool = False) -> Experiment:
    """Read the recipe or the TOML file `file`; `options` override its settings. Shards may be missing `for_plan`.

    Raises:
        UserError: there is no such recipe or file, or a setting is wrong or missing.
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
        raise UserError(f"{path}: seeds", experiment.seeds, "a seed appears twice", "remove it")
    known = [*STUDIES, *experiment.scores]
    for field, names in (("analyses", experiment.analyses), ("after_stage1", experiment.after_stage1)):
        if unknown := [one for one in names if one not in known]:
            raise UserError(f"{path}: {field}", unknown[0], f"it should be one of {', '.join(known)}", "correct it")
    measured = [f"{one}." for one in experiment.analyses] + [f"stage1.{one}." for one in experiment.after_stage1]
    if missing := [one for one in experiment.columns if not one.startswith(tuple(measured))]:
        rule = "it should begin with a name in `analyses`, or with stage1. and a name in `after_stage1`"
        raise UserError(f"{path}: columns", missing[0], rule, "add the analysis, or remove the column")
    for name, score in experiment.scores.items():
        if name in (*STUDIES, "stage1", "images"):
            raise UserError(f"{path}: scores", name, "results use this name for something else", "rename the score")
        find_function(name, score)
    if experiment.baseline and experiment.baseline not in experiment.cells:
        raise UserError(f"{path}: baseline", experiment.baseline, "there is no such cell", "name a cell")
    if bad := [one for one in experiment.cells if not _CELL_NAME.fullmatch(one)]:
        rule = "the name of a cell and its folder has only letters, digits, spaces, commas, dots and hyphens"
        raise UserError(f"{path}: cells", bad[0], rule, "rename the cell")
    for name in ("vision", "llm") if for_plan else ("vision", "llm", "shards", "heldout"):
        in_cells = all(getattr(cell, name, "") for cell in experiment.cells.values())
        if not getattr(experiment, name) and not in_cells:
            raise UserError(name, "(empty)", "the recipe does not set it", "give it")
    return experiment


def recipes() -> list[str]:
    """Return the names of the recipes that come with the program."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def run_experiment(experiment: Experiment, out: Path, cluster: Cluster | None, say: Callable[[str], None]) -> Grid:
    """Train and measure all cells, one after another or in parallel on Ray. If a training fails, the others continue,
    and the next call tries it again.

    Args:
        experiment: the grid.
        out: folder for `experiment.json` and a folder for each training.
        cluster: the Ray cluster; None for this process.
        say: called with each message for the user.

    Raises:
        UserError: `out` holds another experiment, all trainings fail, or no result has one of the columns.
    """
    trainings = [Training(cell, seed, out / f"{cell}-{seed}") for cell in experiment.cells for seed in experiment.seeds]
    _claim(experiment, _inputs(experiment), out)
    if experiment.heldout == experiment.shards:
        say("note: `heldout` and `shards` are the same: models are measured on images that they were trained on.")
    todo = [training for training in trainings if not (training.out / RESULT).is_file()]
    say(f"{len(trainings)} trainings, {len(trainings) - len(todo)} of them done.")
    failed: dict[str, str] = {}
    for training, error in _finished(experiment, todo, cluster, say):
        name = f"{training.cell}, seed {training.seed}"
        say(f"{name}: {f'failed: {error}' if error else 'done'}")
        if error:
            failed[name] = str(error)
            if len(failed) == len(trainings):
                raise error
    results: dict[str, list[dict[str, Any]]] = {cell: [] for cell in experiment.cells}
    for training in trainings:
        path = training.out / RESULT
        results[training.cell].append(json.loads(path.read_text()) if path.is_file() else {})
    found = collect_grid(results, experiment.columns, failed, experiment.baseline)
    facts = {"experiment": experiment.model_dump(mode="json")} | found._asdict()
    atomic_write_text(out / SUMMARY, json.dumps(finite(facts), indent=1) + "\n")
    if installed("matplotlib"):
        from pad_pipeline.analysis.charts import draw_grid

        draw_grid(found.cells, out / PLOT)
    else:
        say(left_out_note(f"{PLOT} is not drawn", "matplotlib"))
    return found


def _inputs(experiment: Experiment) -> dict[str, Any]:
    """Return fingerprints of shards and data, because the results of others do not belong in the same table."""
    trained = open_shards(experiment.shards)
    with rename_field(shards="heldout"):
        heldout = open_shards(experiment.heldout)
    if trained.run.view != heldout.run.view:
        rule = f"its view is {heldout.run.view}, and the view of `shards` is {trained.run.view}"
        raise UserError("heldout", experiment.heldout, rule, "give shards of the same view")
    read: dict[str, Any] = {
        name: {"run": shards.run.identity, "fingerprints": shards.run.fingerprints, "shards": len(shards.names)}
        for name, shards in (("shards", trained), ("heldout", heldout))
    }
    if experiment.data:
        with rename_field(images="data"):
            LlavaSource(experiment.data, experiment.image_root or None)
        if not is_url(experiment.data):
            read["data"] = file_sha256(Path(experiment.data))
    return read


def _claim(experiment: Experiment, inputs: dict[str, Any], out: Path) -> None:
    """Check that the output folder is empty or holds this experiment. Write the experiment into it."""
    claim_folder(out, GRID)
    facts = experiment.model_dump(mode="json", exclude={"columns", "baseline", "plan"}) | {"read": inputs}
    # A missing setting equals an empty one, because earlier versions had fewer settings.
    new, old = ({name: value for name, value in one.items() if value} for one in (facts, read_facts(out / GRID) or {}))
    if old and (different := differences(old, new)):
        rule = "it holds an experiment that differs: " + "; ".join(different[:8])
        raise UserError("out", out, rule, "repeat its settings to continue it, or name another `out`")
    out.mkdir(parents=True, exist_ok=True)
    Folder(out).clean()
    atomic_write_text(out / GRID, json.dumps(facts, indent=1) + "\n")


def _finished(
    experiment: Experiment, todo: list[Training], cluster: Cluster | None, say: Callable[[str], None]
) -> Iterator[tuple[Training, UserError | None]]:
    """Yield each training when it has ended, with its error where it failed."""
    if cluster is None or not todo:
        for training in todo:
            yield training, _error_of(experiment, training)
        return
    from ray.exceptions import RayError

    with ray_session(cluster.address) as ray, watched(ray):
        gpus = gpus_each(ray, cluster)
        patience = Patience(ray, {"CPU": 1, "GPU": gpus}, 1, cluster.wait, say)
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)(_error_on_ray)
        whole = [training._replace(out=training.out.resolve()) for training in todo]
        waiting = {remote.remote(experiment, training): training for training in whole}
        while waiting:
            patience.check()
            for ready in ray.wait(list(waiting), num_returns=1, timeout=2)[0]:
                training = waiting.pop(ready)
                try:
                    failure = ray.get(ready)
                except RayError as error:  # the worker died several times, or a node has too little memory
                    rule = f"its worker failed ({type(error).__name__}: {' '.join(str(error).split())[-300:]})"
                    failure = UserError("engine", "ray", rule, "see Ray's logs; the next call tries it again")
                yield training, failure


def _error_on_ray(experiment: Experiment, training: Training) -> UserError | None:
    import ray

    hide_gpus(ray)
    return _error_of(experiment, training)


def _error_of(experiment: Experiment, training: Training) -> UserError | None:
    """Run a cell. Return its error instead of raising it, because Ray would wrap it in another error."""
    try:
        run_cell(experiment, training)
    except UserError as error:
        return error
    return None


def run_cell(experiment: Experiment, training: Training) -> None:
    """Train stage 1, and stage 2 if the experiment has data for it. Measure after each, and write `result.json` last.

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
        same = {name: getattr(first, name) for name in ("projector", "place", "abstractor_tokens", "vision_layer")}
        second = settings_of(2).model_validate(same | experiment.stage2 | cell.stage2 | {"seed": training.seed})
        shared |= {"data": experiment.data, "image_root": experiment.image_root, "fit": experiment.fit}
        train(Job(stage=2, init=str(one / "mm_projector.bin"), out=str(two), settings=second, **shared))
        model, template = two, second.template
    found = measured(experiment.analyses, model, template, training.out) | ({"stage1": between} if between else {})
    atomic_write_text(training.out / RESULT, json.dumps(finite(found)) + "\n")
