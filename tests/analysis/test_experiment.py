"""`pad experiment`: grids of trainings."""

from __future__ import annotations

import io
import itertools
import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from pad_pipeline.miniature.files import World
from pad_pipeline.workflows.learning.experiment import RECIPES, read_experiment, recipes
from pad_pipeline.workflows.learning.grid import collect_grid, sign_flip_p, table

Pad = Callable[..., Any]
GRID = """
seeds = [0, 1]
analyses = ["align", "entropy"]
columns = ["align.align", "entropy.image.dH"]
stage1 = { steps = 6, batch_size = 5, micro_batch = 5, learning_rate = 0.005 }
[cells.captions]
stage1 = { beta_end = 0.0 }
[cells."patches only"]
stage1 = { beta_schedule = "constant", caption_weight = 0.0 }
"""


@pytest.fixture
def command(shards: Path, models_toml: Path, tmp_path: Path) -> list[object]:
    (tmp_path / "grid.toml").write_text(GRID)
    clip, llm = models_toml.parent / "clip", models_toml.parent / "llm"
    data = ["--shards", shards, "--heldout", shards, "--vision", clip, "--llm", llm]
    return ["experiment", tmp_path / "grid.toml", *data]


def test_a_grid_is_trained_analysed_and_gone_on_with(
    pad: Pad, command: list[object], shards: Path, tmp_path: Path
) -> None:
    """Every cell with every seed; what is missing after a stop is done again with the same numbers, the rest is not
    touched. Catches a seed that does nothing, a cell that trains with another's settings."""
    out = tmp_path / "out"
    done = pad(*command, "--out", out)
    assert done.code == 0, done.err
    found = json.loads((out / "experiment.json").read_text())["cells"]
    assert set(found) == {"captions", "patches only"} and "±" in done.out
    assert (out / "experiment.png").stat().st_size > 5000
    align = {name: cell["align.align"] for name, cell in found.items()}
    assert len({value for values in align.values() for value in values}) == 4
    logs = {name: (out / f"{name}-1/stage1/log.jsonl").read_text().splitlines() for name in found}
    assert all(json.loads(line)["beta"] == 0 for line in logs["captions"])
    alone = [json.loads(line) for line in logs["patches only"]]
    assert all(entry["beta"] == 5 and entry["caption_loss"] is None for entry in alone)
    assert [entry["patch_gradient_share"] for entry in alone] == pytest.approx([1] * 6, abs=1e-5)
    shutil.rmtree(out / "captions-1")
    kept = (out / "captions-0/result.json").stat().st_mtime_ns
    again = pad(*command, "--out", out)
    assert again.code == 0 and "4 trainings, 3 of them done." in again.err
    assert json.loads((out / "experiment.json").read_text())["cells"] == found
    assert (out / "captions-0/result.json").stat().st_mtime_ns == kept
    other = pad(*command, "--out", out, "--steps", 7)
    assert other.code == 2 and "experiment that differs: stage1.steps: 6 -> 7" in other.err
    assert pad("filter", shards, "--min-regions", 1, "--limit", 8, "--out", tmp_path / "fewer").code == 0
    fewer = [tmp_path / "fewer" if word == shards else word for word in command]
    other = pad(*fewer, "--out", out)
    assert other.code == 2 and "read.shards." in other.err, "results of other shards do not belong into one table"


def test_stage_2_of_other_dialogues_is_refused(pad: Pad, command: list[object], world: World, tmp_path: Path) -> None:
    """Trainings on a file that has changed since do not belong into one table with those before."""
    one = 'seeds = [0]\nanalyses = ["align"]\ncolumns = ["align.align"]\nstage2 = { steps = 1, batch_size = 2 }\n'
    (tmp_path / "grid.toml").write_text(one + "[cells.a]\nstage1 = { steps = 1, batch_size = 2 }\n")
    records = json.loads(world.llava.read_text())
    data = tmp_path / "data.json"
    data.write_text(json.dumps(records))
    command += ["--data", data, "--image-root", world.images, "--out", tmp_path / "out"]
    done = pad(*command)
    assert done.code == 0, done.err
    assert (tmp_path / "out/a-0/stage2/mm_projector.bin").is_file()
    assert pad(*command).code == 0
    data.write_text(json.dumps(records[1:]))
    other = pad(*command)
    assert other.code == 2 and "read" in other.err, other.err


SCORES = """
def speech(trained, most):
    assert (trained.model / "hf").is_dir()
    return {"most": most, "images": trained.limit, "plain": trained.template == "plain"}


def broken(trained):
    return {}["gone"]
"""
SCORED = """
seeds = [0, 1]
limit = 3
analyses = ["speech"]
after_stage1 = ["align", "speech"]
columns = ["speech.plain", "stage1.speech.plain", "stage1.speech.most", "stage1.align.align"]
baseline = "captions"
stage1 = { steps = 2, batch_size = 4 }
stage2 = { steps = 1, batch_size = 2 }
[scores.speech]
function = "own_scores:speech"
settings = { most = 7 }
[cells.captions]
stage1 = { beta_end = 0.0 }
[cells.patches]
"""


@pytest.fixture
def scored(command: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A grid with a score of its own."""
    (tmp_path / "own_scores.py").write_text(SCORES)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "grid.toml").write_text(SCORED)
    return command


def test_own_scores_are_taken_after_either_stage(
    pad: Pad, scored: list[object], world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function that the recipe names sees the model of each stage, with its settings; differences to the baseline are
    taken within a seed. Without matplotlib all is there but the chart, and the user is told."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    out = tmp_path / "out"
    done = pad(*scored, "--data", world.chat, "--image-root", world.images, "--out", out)
    assert done.code == 0 and "experiment.png is not drawn, because" in done.err, done.err
    assert "difference" in done.out and not (out / "experiment.png").exists()
    result = json.loads((out / "patches-1/result.json").read_text())
    assert result["speech"] == {"most": 7, "images": 3, "plain": 0} and result["stage1"]["speech"]["plain"] == 1
    found = json.loads((out / "experiment.json").read_text())
    align = [found["cells"][cell]["stage1.align.align"] for cell in ("captions", "patches")]
    differences = found["differences"]["patches"]["stage1.align.align"]
    assert differences == pytest.approx([mine - base for base, mine in zip(*align, strict=True)])
    assert list(found["differences"]) == ["patches"]
    grid = json.loads((out / "grid.json").read_text())
    del grid["after_stage1"]
    (out / "grid.json").write_text(json.dumps(grid))
    done = pad(*scored, "--data", world.chat, "--image-root", world.images, "--out", out)
    assert done.code == 2 and "differs: after_stage1" in done.err, done.err


def test_the_p_value_counts_all_choices_of_signs() -> None:
    """Catches a test that calls equal cells different, and one that can't get below .05 with five seeds."""
    rng = np.random.default_rng(0)
    for values in (rng.normal(0.3, 1, 6), rng.normal(-0.3, 1, 5), np.ones(5), np.array([1.0, -1.0])):
        signs = np.array(list(itertools.product((1, -1), repeat=len(values))))
        means = (signs * values).mean(1) * np.sign(values.mean() or 1)
        assert sign_flip_p(list(values)) == pytest.approx((means >= abs(values.mean()) - 1e-9).mean())
    assert sign_flip_p([0.1] * 5) == 1 / 32 and sign_flip_p([0.0, 0.0]) == 1
    assert math.isnan(sign_flip_p([math.nan])) and sign_flip_p([math.nan, 1.0]) == 0.5


def test_differences_are_taken_within_a_seed() -> None:
    """Paired: a spread that all cells share is no doubt about which is better. A gap costs its own seed alone."""
    values = {"a": [0.1, 0.5, 0.9, 0.3], "b": [0.2, 0.6, 1.0, math.nan]}
    results = {cell: [{"x": {"y": value}} for value in numbers] for cell, numbers in values.items()}
    found = collect_grid(results, ["x.y"], {}, "a")
    assert found.differences["b"]["x.y"][:3] == pytest.approx([0.1] * 3)
    made = Console(width=100, file=io.StringIO(), record=True)
    made.print(table(found))
    assert "+0.100 ± 0.000" in made.export_text()
    assert collect_grid(results, ["x.y"], {}, "").differences == {}


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("own_scores:speech", "own_scores:word", "it can't be imported (AttributeError"),
        ("own_scores:speech", "no_such_module:speech", "it can't be imported (ModuleNotFoundError"),
        ("own_scores:speech", "own_scores:SCORE_OF_NOTHING", "it can't be imported"),
        ("own_scores:speech", "own_scores:__name__", "it is no function"),
        ('"align", "speech"]', '"align", "word"]', "after_stage1 = word: it should be one of entropy"),
        ('"stage1.speech.most"', '"stage1.lens.most"', "columns = stage1.lens.most"),
        ('baseline = "captions"', 'baseline = "caption"', "there is no such cell"),
        ("[scores.speech]", '[scores.lens]\nfunction = "own_scores:speech"\n[scores.speech]', "rename the score"),
    ],
)
def test_a_wrong_score_is_told_before_anything_is_trained(
    pad: Pad, scored: list[object], tmp_path: Path, before: str, after: str, told: str
) -> None:
    """A misspelled name that is found after hours of training costs the hours."""
    assert before in SCORED
    (tmp_path / "grid.toml").write_text(SCORED.replace(before, after))
    done = pad(*scored, "--out", tmp_path / "out")
    assert done.code == 2 and told in done.err and "Traceback" not in done.err, done.err
    assert not (tmp_path / "out").exists()


def test_a_score_that_fails_is_a_gap_with_its_reason(pad: Pad, scored: list[object], tmp_path: Path) -> None:
    """Its traceback would end the other trainings too."""
    (tmp_path / "grid.toml").write_text(
        SCORED.replace("own_scores:speech", "own_scores:broken").replace("most = 7", "")
    )
    done = pad(*scored, "--seeds", 1, "--out", tmp_path / "out")
    assert done.code == 2 and "captions, seed 0: failed" in done.err, done.err
    assert "it fails (KeyError: 'gone')" in done.err and "Traceback" not in done.err


@pytest.mark.long
def test_a_grid_on_ray_gives_the_same_numbers(pad: Pad, command: list[object], tmp_path: Path) -> None:
    """Side by side, each in a worker: to 1e-5 what one after another gives."""
    for name, engine in (("a", "local"), ("b", "ray")):
        done = pad(*command, "--out", tmp_path / name, "--engine", engine)
        assert done.code == 0, done.err
    found = [json.loads((tmp_path / name / "experiment.json").read_text())["cells"] for name in "ab"]
    for cell, columns in found[0].items():
        for column, values in columns.items():
            assert values == pytest.approx(found[1][cell][column], abs=1e-5) and not any(map(math.isnan, values))


def test_a_training_that_fails_is_a_gap(pad: Pad, command: list[object], tmp_path: Path) -> None:
    """One cell of a grid that diverges must not cost the others, nor be taken for done."""
    (tmp_path / "grid.toml").write_text(
        'seeds = [0]\nanalyses = ["align"]\ncolumns = ["align.align"]\nstage1 = { steps = 4, batch_size = 5 }\n'
        "[cells.wild]\nstage1 = { learning_rate = 1e30 }\n[cells.tame]\n"
    )
    out = tmp_path / "out"
    for begun in ("2 trainings, 0 of them done", "2 trainings, 1 of them done"):
        done = pad(*command, "--out", out)
        assert done.code == 1 and begun in done.err and "wild, seed 0: failed" in done.err, done.err
        found = json.loads((out / "experiment.json").read_text())
        assert found["cells"]["tame"]["align.align"][0] > 0 and found["cells"]["wild"]["align.align"] == [None]
        assert list(found["failed"]) == ["wild, seed 0"]
    text = (tmp_path / "grid.toml").read_text()
    (tmp_path / "grid.toml").write_text(text.replace('"align.align"', '"align.algin"'))
    done = pad(*command, "--out", out)
    assert done.code == 2 and "align.algin" in done.err and "align.shuffled_labels" in done.err


@pytest.mark.parametrize("name", recipes())
def test_recipes_are_sound(name: str) -> None:
    """Every recipe's settings exist, and its cells have names that can be folders'."""
    needed = dict.fromkeys(("vision", "llm", "shards", "heldout"), "x")
    assert len(read_experiment(name, needed).cells) >= 2


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in recipes() if name not in ("llms", "miniature", "paper-at-size")])
def test_recipes_run(pad: Pad, command: list[object], name: str, tmp_path: Path) -> None:
    """Every cell trains for a step and is analyzed. (`llms` and `paper-at-size` name official models, `miniature` has a
    test of its own; a C-Abstractor of 144 tokens needs more patches than these 64.)"""
    recipe = tmp_path / "recipe.toml"
    few = '{ projector = "c-abstractor", abstractor_tokens = 16'
    recipe.write_text((RECIPES / f"{name}.toml").read_text().replace('{ projector = "c-abstractor"', few))
    done = pad("experiment", recipe, *command[2:], "--seeds", 1, "--steps", 1, "--limit", 4, "--out", tmp_path / "out")
    assert done.code == 0, done.err


def test_a_bad_grid_is_told(pad: Pad, command: list[object], tmp_path: Path) -> None:
    """Before anything is trained."""
    for before, after, told in (
        ("beta_end = 0.0", "beta_ends = 0.0", "beta_ends"),
        ('"align", "entropy"]\ncol', '"align", "entropy", "aline"]\ncol', "aline"),
        ("[cells.captions]", '[cells."../x"]', "letters"),
        ("seeds = [0, 1]", "seeds = []", "seeds"),
        ("seeds = [0, 1]", "seeds = [1, 1]", "twice"),
        ("seeds = [0, 1]", "seeds = [-1]", "seeds"),
        ('"entropy.image.dH"]', '"lens.logit"]', "lens.logit"),
        ("seeds", "seeds =", "TOML"),
    ):
        (tmp_path / "grid.toml").write_text(GRID.replace(before, after, 1))
        done = pad(*command, "--out", tmp_path / "out")
        assert done.code == 2 and told in done.err and "Traceback" not in done.err, done.err
    assert not (tmp_path / "out").exists()
    assert "recipe" in pad("experiment", "none", "--out", tmp_path / "out").err


def test_a_dry_run_plans_every_training_and_trains_none(pad: Pad, shards: Path, tmp_path: Path) -> None:
    """Catches steps that forget the epochs or a rest, GPUs that are divided among fewer trainings, a folder that is
    written, and shards that must be there for a plan."""
    done = pad("experiment", "paper-at-size", "--dry-run", "--card", "2xh100", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [(one["cell"], one["stage"], one["steps"]) for one in found["stages"][:2]] == [
        ("captions alone", 1, math.ceil(558128 / 256)),
        ("captions alone", 2, math.ceil(665298 / 128)),
    ]
    assert found["trainings"] == 3 and len(found["stages"]) == 6
    hours = found["hours_by_cards"]
    each = sum(one["operations"] for one in found["stages"][:2]) / (0.4 * 989e12) / 3600
    assert hours["1"] == pytest.approx(3 * each) and hours["2"] == pytest.approx(2 * each)
    cards = ["--card", "h100"]  # for which no hours can be calculated here
    done = pad("experiment", "miniature", "--dry-run", *cards, "--shards", shards, "--out", tmp_path / "out")
    assert (
        done.code == 0
        and "no section `plan`" in done.out
        and "not known" in done.out
        and not (tmp_path / "out").exists()
    )
    recipe = tmp_path / "mine.toml"
    recipe.write_text("stage1 = { batch_size = 4, epochs = 1.5 }\nseeds = [3]\n[cells.a]\n")
    done = pad("experiment", recipe, "--dry-run", "--json", "--shards", shards, "--vision", "v", "--llm", "l")
    assert [(one["samples"], one["steps"]) for one in json.loads(done.out)["stages"]] == [(10, 4)]
    for wrong, message in (("--card", "it goes with --dry-run only"), ("--seeds", "an experiment needs a folder")):
        done = pad(
            "experiment", "miniature", "--shards", "s", "--heldout", "h", wrong, {"--card": "h100"}.get(wrong, 1)
        )
        assert done.code == 2 and message in done.err, done.err
