"""Run the analyses of `pad analyze` in one pass over the images of a run; write JSON, charts and drawings."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.text import Text

from pad_pipeline.analysis.draw import draw_labels, nearest_labels, true_labels
from pad_pipeline.analysis.model import Subject
from pad_pipeline.analysis.patches import LabeledImage, encoded_batches, first_captions, label_names
from pad_pipeline.analysis.settings import AnalysisSettings
from pad_pipeline.analysis.studies import STUDIES
from pad_pipeline.analysis.study import Context
from pad_pipeline.console import Table, note, progress
from pad_pipeline.errors import UserError, printable
from pad_pipeline.packages import installed, left_out_note
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.storage import write_error
from pad_pipeline.workflows.results import finite


def analyze(
    names: Sequence[str], subject: Subject, shards: str, settings: AnalysisSettings, out: Path | None,
    limit: int | None = None, batch: int = 32, drawings: int = 4, beside: Sequence[Subject] = (),
) -> dict[str, Any]:  # fmt: skip
    """Run analyses of a model over the images of a run.

    Args:
        names: the analyses, by their names in `STUDIES`.
        subject: the model.
        shards: folder or URL of the run.
        settings: the settings of the analyses.
        out: folder for `analysis.json`, charts and drawings; None writes nothing.
        limit: greatest number of images, from the first on; None for all.
        batch: number of images that are computed at a time.
        drawings: number of images that are drawn, with the nearest label of each token beside the true ones.
        beside: other models with the same vision tower, which the drawings show too.

    Returns:
        The results of each analysis by its name, and the number of images under `images`.

    Raises:
        UserError: shards and model do not fit together, nothing can be measured, or `out` can't be written.
    """
    if beside and not (out and drawings):
        rule = "it is only drawn, beside the model"
        raise UserError("beside", beside[0].name, rule, "give `out`, and a number of `drawings`")
    # Check that the model fits the shards first, because the analyses may take hours.
    opened = open_shards(shards)
    subject.preprocessor(opened.run.view)
    check_beside(subject, beside)
    for each in (subject, *beside):
        each.set_label_context(opened.run)
    rows = opened.usable()
    if not len(rows):
        raise UserError("shards", shards, "all of its images failed", "see `pad stats` for the reasons")
    count = len(rows) if limit is None else min(limit, len(rows))
    width, llm_width = opened.run.embedding_width, subject.words.shape[-1]
    if width != llm_width:
        text = f"note: labels are embedded with this LLM ({llm_width} numbers), not as in the shards ({width} numbers)."
        note(text, "yellow")
    if out and not installed("matplotlib"):
        note(left_out_note("no charts are drawn", "matplotlib"), "yellow")
    # Collect the labels of all images, for the analyses that compare patches with them.
    labels: list[str] = []
    if any(STUDIES[name].needs_labels for name in names):
        with progress("labels", count, "images") as update:
            labels = label_names(opened, rows, count, lambda done: update(completed=done))
        if not labels:
            raise UserError("shards", shards, "no image in it has a region", "give shards with labels")
    # Pass over the images once, for all analyses; draw the first few.
    wants_captions = any(STUDIES[name].needs_captions for name in names)
    captions = first_captions(opened, rows, count, settings.sentences) if wants_captions else {}
    context = Context(subject, settings, labels, captions)
    studies = {name: STUDIES[name](context) for name in names}
    analyzed = 0
    try:
        if out:
            out.mkdir(parents=True, exist_ok=True)
        with progress("analyze", count, "images") as update:
            for group in encoded_batches(opened, rows, count, subject, settings.patches, batch):
                if not all(bool(values.isfinite().all()) for values in (group.patches, group.tokens)):
                    keys = ", ".join(one.key for one in group.images[:3])
                    rule = f"its tokens of {keys} and others are no numbers (NaN or infinite)"
                    raise UserError("model", subject.name, rule, "train it again with a lower rate")
                for study in studies.values():
                    study.add(group)
                if out and labels:
                    for one in group.images[: max(drawings - analyzed, 0)]:
                        _draw(one, [subject, *beside], labels).save(out / f"words-{one.key}.png")
                analyzed += len(group.images)
                update(completed=analyzed)
        results: dict[str, Any] = {"images": analyzed} | {name: study.result() for name, study in studies.items()}
        if "entropy" in results and not math.isfinite(results["entropy"]["image"]["text"]):
            note("No image has a caption: the entropy of text is left out.")
        if "sentences" in results and not results["sentences"]["words"]:
            note("Fewer than two images have a caption: the analysis `sentences` has nothing to compare with.")
        if "reliance" in results and not results["reliance"]["images"]:
            note("No caption names a label of its image: the analysis `reliance` is left out.")
        if out:
            facts = {"settings": settings.model_dump(), "shards": str(shards), "model": str(subject.name)}
            text = json.dumps(finite(facts | results), indent=1)
            (out / "analysis.json").write_text(text + "\n", "utf-8")
            if installed("matplotlib"):
                from pad_pipeline.analysis.charts import draw_charts

                draw_charts(results, out)
    except torch.OutOfMemoryError as error:
        rule = "the GPU has not enough memory for so many images at a time"
        raise UserError("batch", batch, rule, "lower it; the numbers stay the same") from error
    except OSError as error:
        raise write_error(out or "", error) from error
    return results


def _draw(one: LabeledImage, subjects: list[Subject], labels: list[str]) -> Image.Image:
    """Draw an image, its true labels, and the nearest label of each token of some models."""
    numbers = [labels.index(label) for label in one.labels]
    shown = torch.zeros(len(labels), one.shown.shape[1], dtype=torch.bool)
    shown[numbers] = one.shown
    names = {"what is there": true_labels(one.shown, numbers)}
    for title, subject in zip(_titles([subject.name for subject in subjects]), subjects, strict=True):
        tokens = subject.encode_images(one.pixels[None])[1][0]
        names[title] = nearest_labels(tokens, subject, labels)
    return draw_labels(one.pixels, subjects[0], labels, names, shown)


def _titles(paths: list[Path]) -> list[str]:
    """Return short names of paths: the last part in which they all differ, or else the whole paths."""
    for part in range(1, min(len(path.parts) for path in paths) + 1):
        if len({path.parts[-part] for path in paths}) == len(paths):
            return [path.parts[-part] for path in paths]
    return [f"{number}: {path}" for number, path in enumerate(paths, 1)]


def check_beside(subject: Subject, others: Sequence[Subject]) -> None:
    """Refuse models that can't be drawn beside a model, because they see images otherwise.

    Raises:
        UserError: one has another view, normalization or number of tokens.
    """

    def sees(one: Subject) -> list[object]:
        patch = int(one.tower.config.patch_size)
        return [one.grid, patch, one.pooled_grid, list(one.mean), list(one.std), one.resample]

    for other in others:
        if sees(other) != sees(subject):
            rule = f"its vision tower or its number of tokens differs from that of {subject.name}"
            raise UserError("beside", other.name, rule, "give models with the same tower and kind of projector")


def signs_of_failure(results: dict[str, Any], settings: AnalysisSettings) -> list[str]:
    """List the paper's signs of a failed alignment in the results of `align` and `pursuit`, each as a sentence."""
    signs = []
    align, readable = results["align"]["align"], results["pursuit"]["first_readable"]
    unreadable_by_chance = 1 - results["pursuit"]["readable_by_chance"]
    # `not >=` instead of `<`, so that NaN counts as a sign.
    if not align >= settings.least_align:
        signs.append(f"Align is {align:.3f}, below {settings.least_align}")
    controls = [results["align"][name] for name in ("shuffled_labels", "shuffled_patches", "untrained_projector")]
    chance = max((value for value in controls if math.isfinite(value)), default=0.0)
    if not align >= settings.above_chance * chance:
        times = f"less than {settings.above_chance} times"
        signs.append(f"Align is {align:.3f}, {times} the {chance:.3f} of shuffled or untrained controls")
    if not 1 - readable <= (most := settings.most_unreadable):
        shares = f"above {most:.0%} ({unreadable_by_chance:.0%} by chance)"
        signs.append(f"the first word of {1 - readable:.0%} of patches can't be read, {shares}")
    return signs


def caption_scores_below(captions: Path, baseline: Path) -> list[str]:
    """List the caption scores below those of a baseline that was trained only on captions: the paper's third sign.

    Both files are a `scores.json` of `pad evaluate captions`, on the same data.

    Raises:
        UserError: a file holds no scores of captions.
    """
    mine, alone = _caption_scores("captions", captions), _caption_scores("baseline", baseline)
    names = [name for name in mine if name != "CIDEr" and name in alone] or ["CIDEr"]
    return [
        f"{name} of captions is {mine[name]:.3f}, and {alone[name]:.3f} with captions alone"
        for name in names
        if not mine[name] >= alone[name]
    ]


def _caption_scores(field: str, path: Path) -> dict[str, float]:
    """Read CIDEr from a `scores.json`, and METEOR and SPICE if it has them."""
    try:
        scores = json.loads(path.read_text("utf-8"))["captions"]
        optional = {name: float(scores[name]) for name in ("METEOR", "SPICE") if name in scores}
        return {"CIDEr": float(scores["CIDEr"])} | optional
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        rule = f"it holds no scores of captions ({type(error).__name__}: {error})"
        raise UserError(field, path, rule, "give the scores.json of `pad evaluate captions`") from error


def table(results: dict[str, Any]) -> Table:
    """Return the results of `analyze` as a table with one number in each row."""
    lines = Table("analysis", "of", "value", title=f"{results['images']} images")
    for name in STUDIES:
        for field, value in flat_rows(results.get(name, {})):
            lines.add_row(name, Text(printable(field)), format_value(value))  # a field may be a label from the data
    return lines


def format_value(value: Any) -> str:
    """Format a value for a table: a float with three decimals, and NaN and infinity as a hyphen."""
    if isinstance(value, float):
        return f"{value:.3f}" if math.isfinite(value) else "-"
    return str(value)


def flat_rows(value: dict[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """Flatten nested results into rows of name and value; each name starts with `before`."""
    rows: list[tuple[str, Any]] = []
    for name, entry in value.items():
        if isinstance(entry, dict):
            rows += flat_rows(entry, f"{before}{name} ")
        elif isinstance(entry, list):
            rows.append((before + name, "  ".join(f"{number:.3f}" for number in entry)))
        else:
            rows.append((before + name.replace("_", " "), entry))
    return rows
