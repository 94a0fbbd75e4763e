"""`pad analyze`: all analyses over the images of a run in one pass. Results are a table, JSON and drawings."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pad_pipeline.analysis.draw import draw_words
from pad_pipeline.analysis.model import Subject
from pad_pipeline.analysis.patches import label_names, seen
from pad_pipeline.analysis.studies import (
    AlignStudy,
    AnalysisSettings,
    EntropyStudy,
    LensStudy,
    OverlapStudy,
    PursuitStudy,
    Study,
)
from pad_pipeline.console import errors
from pad_pipeline.errors import UserError
from pad_pipeline.measures.vocabulary import Vocabulary
from pad_pipeline.packages import installed, left_out
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.workflows.results import finite
from pad_pipeline.workflows.toml import read_toml, settings_error

RESULT = "analysis.json"
STUDIES = ("entropy", "align", "pursuit", "lens", "overlap")


def analysis_settings(settings: Path | None, options: dict[str, Any]) -> AnalysisSettings:
    """Return the settings of the TOML file `settings`, if there is one, with `options` put over them.

    Raises:
        UserError: the file can't be read, or a setting is wrong.
    """
    data = read_toml("settings", settings) if settings else {}
    try:
        return AnalysisSettings.model_validate(data | options)
    except ValidationError as error:
        raise settings_error(error, str(settings or "")) from error


def analyze(
    names: list[str], subject: Subject, shards: str, settings: AnalysisSettings, out: Path | None,
    limit: int | None = None, batch: int = 32, drawings: int = 4,
) -> dict[str, Any]:  # fmt: skip
    """Run analyses.

    Args:
        names: of `STUDIES`.
        subject: the model.
        shards: the run's folder or URL.
        settings: what the paper leaves open.
        out: gets `analysis.json`, charts and drawings; None for nothing.
        limit: only the first `limit` images are read.
        batch: images that are computed at a time.
        drawings: how many images are drawn with the words of their patches.

    Returns:
        Each analysis' numbers by name, and `images`, how many were looked at.

    Raises:
        UserError: shards and model do not go together, nothing can be measured, or `out` can't be written.
    """
    opened = open_shards(shards)
    subject.sight(opened.run.view)  # what does not fit is told before hours
    subject.speak_as(opened.run)
    rows = opened.usable()
    if not len(rows):
        raise UserError("shards", shards, "every image in it failed", "see `pad stats` for the reasons")
    count = len(rows) if limit is None else min(limit, len(rows))
    width, own = opened.run.embedding_width, subject.words.shape[-1]
    if width != own:
        note = f"note: the shards' embeddings have {width} numbers; this LLM's words, {own}, are taken for the labels."
        errors.print(note, style="yellow", highlight=False, soft_wrap=True)
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("images")]
    if out and not installed("matplotlib"):
        note = left_out("no charts are drawn", "matplotlib")
        errors.print(note, style="yellow", highlight=False, markup=False, soft_wrap=True)
    labels: list[str] = []
    if {"align", "pursuit", "lens"} & set(names):
        with Progress(*columns, TimeRemainingColumn(), console=errors, disable=not errors.is_terminal) as progress:
            task = progress.add_task("labels", total=count)
            labels = label_names(opened, rows, count, lambda done: progress.update(task, completed=done))
        if not labels:
            raise UserError("shards", shards, "no image in it has a region", "give shards with labels")
    studies = build_studies(names, subject, settings, labels)
    looked = 0
    try:
        if out:
            out.mkdir(parents=True, exist_ok=True)
        with Progress(*columns, TimeRemainingColumn(), console=errors, disable=not errors.is_terminal) as progress:
            task = progress.add_task("analyze", total=count)
            for group in seen(opened, rows, count, subject, settings.patches, batch):
                if not all(bool(values.isfinite().all()) for values in (group.before, group.after)):
                    keys = ", ".join(one.key for one in group.shown[:3])
                    rule = f"its tokens of {keys} and others are no numbers (NaN or infinite)"
                    raise UserError("model", subject.name, rule, "train it again with a lower rate")
                for study in studies.values():
                    study.add(group)
                if out and looked < drawings and isinstance(pursuit := studies.get("pursuit"), PursuitStudy):
                    for one, tokens in list(zip(group.shown, group.after, strict=True))[: drawings - looked]:
                        words, coefficients, _ = pursuit.decompose(tokens)
                        drawn = draw_words(one.pixels, subject, pursuit.vocabulary, words, coefficients)
                        drawn.save(out / f"words-{one.key}.png")
                looked += len(group.shown)
                progress.update(task, completed=looked)
        found: dict[str, Any] = {"images": looked} | {name: study.result() for name, study in studies.items()}
        if "entropy" in found and not math.isfinite(found["entropy"]["image"]["text"]):
            errors.print("No image has a caption: the entropy of text is left out.", highlight=False)
        if out:
            facts = {"settings": settings.model_dump(), "shards": str(shards), "model": str(subject.name)}
            text = json.dumps(finite(facts | found), indent=1)
            (out / RESULT).write_text(text + "\n", "utf-8")
            if installed("matplotlib"):
                from pad_pipeline.analysis.charts import draw_charts

                draw_charts(found, out)
    except torch.OutOfMemoryError as error:
        rule = "the GPU has not enough memory for so many images at a time"
        raise UserError("batch", batch, rule, "lower it; the numbers stay the same") from error
    except OSError as error:
        rule = f"it can't be written ({error.strerror or error})"
        raise UserError("out", out, rule, "make room, or choose another folder") from error
    return found


def build_studies(
    names: list[str], subject: Subject, settings: AnalysisSettings, labels: list[str]
) -> dict[str, Study]:
    """The analyses that are asked for."""
    vocabulary = None
    if {"pursuit", "lens"} & set(names):
        ids = {label: subject.labels.tokens(label) for label in labels}
        vocabulary = Vocabulary(subject.tokenizer, len(subject.words), ids)
    made: dict[str, Study] = {}
    for name in names:
        if name == "entropy":
            made[name] = EntropyStudy(subject, settings)
        elif name == "align":
            made[name] = AlignStudy(subject, settings, labels)
        elif name == "overlap":
            made[name] = OverlapStudy(settings)
        else:
            assert vocabulary
            kind = PursuitStudy if name == "pursuit" else LensStudy
            made[name] = kind(subject, settings, vocabulary)
    return made


def signs_of_failure(found: dict[str, Any], settings: AnalysisSettings) -> list[str]:
    """What the paper says goes wrong where alignment failed, if it did: of results with Align and pursuit."""
    signs = []
    align, readable = found["align"]["align"], found["pursuit"]["first_readable"]
    if not align >= settings.least_align:
        signs.append(f"Align is {align:.3f}, below {settings.least_align}")
    controls = [found["align"][name] for name in ("shuffled_labels", "shuffled_patches", "untrained_projector")]
    chance = max((value for value in controls if math.isfinite(value)), default=0.0)
    if not align >= settings.above_chance * chance:
        times = f"less than {settings.above_chance} times"
        signs.append(f"Align is {align:.3f}, {times} the {chance:.3f} of shuffled or untrained controls")
    if not 1 - readable <= settings.most_unreadable:
        signs.append(
            f"the first word of {1 - readable:.0%} of patches can't be read, above {settings.most_unreadable:.0%}"
        )
    return signs


def captions_below(captions: Path, baseline: Path) -> list[str]:
    """The third sign: captions worse than those of a model that was trained on captions alone.

    Args:
        captions: `scores.json` of `pad evaluate captions`.
        baseline: likewise, of the caption-only model on the same data.

    Raises:
        UserError: one of them is none, or they have no score in common.
    """
    scores = [_scores(field, path) for field, path in (("captions", captions), ("baseline", baseline))]
    names = [name for name in ("METEOR", "SPICE") if all(name in one for one in scores)] or ["CIDEr"]
    return [
        f"{name} of captions is {scores[0][name]:.3f}, and {scores[1][name]:.3f} with captions alone"
        for name in names
        if not scores[0][name] >= scores[1][name]
    ]


def _scores(field: str, path: Path) -> dict[str, float]:
    try:
        scores = json.loads(path.read_text("utf-8"))["captions"]
        return {name: float(scores[name]) for name in ("METEOR", "SPICE", "CIDEr") if name in scores} | {
            "CIDEr": float(scores["CIDEr"])
        }
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        rule = f"it holds no scores of captions ({type(error).__name__}: {error})"
        raise UserError(field, path, rule, "give the scores.json of `pad evaluate captions`") from error


def table(found: dict[str, Any]) -> Table:
    """The numbers, one a line."""
    made = Table("analysis", "of", "value", title=f"{found['images']} images")
    for name in STUDIES:
        for of, value in rows_of(found.get(name, {})):
            made.add_row(name, of, shown(value))
    return made


def shown(value: Any) -> str:
    """A number as tables have it; a hyphen where there is none."""
    if isinstance(value, float):
        return f"{value:.3f}" if math.isfinite(value) else "-"
    return str(value)


def rows_of(value: dict[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """Numbers within numbers as lines of a table."""
    rows: list[tuple[str, Any]] = []
    for name, entry in value.items():
        if isinstance(entry, dict):
            rows += rows_of(entry, f"{before}{name} ")
        elif isinstance(entry, list):
            rows.append((before + name, "  ".join(f"{number:.3f}" for number in entry)))
        else:
            rows.append((before + name.replace("_", " "), entry))
    return rows
