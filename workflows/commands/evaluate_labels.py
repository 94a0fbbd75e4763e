"""`pad evaluate labels`: are the labels of a run right, which step loses what, and which threshold serves best."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pad_pipeline.console import Table, console, note, say, track
from pad_pipeline.errors import UserError
from pad_pipeline.workflows.commands.common import (
    INPUT,
    READ_OPTIONS,
    AsJson,
    counted,
    plain,
    print_json,
    reading,
    seen_by_workers,
)
from pad_pipeline.workflows.commands.options import OptionValues, option

if TYPE_CHECKING:
    from pad_pipeline.quality.label_scores import LabelScores
    from pad_pipeline.quality.thresholds import Suggestion
    from pad_pipeline.shards.reader import ShardFolder

_STEPS = {
    "image failed": "build", "not tagged": "tagger", "no box": "detector", "another label": "detector",
    "poor mask": "segmenter", "found": "",
}  # fmt: skip
"""What became of a true region -> the step that lost it."""
_FEW = 3


def evaluate_labels(
    *,
    shards: Annotated[str, option(INPUT, "Shards that are scored: folder or URL.", "--shards")],
    truth: Annotated[str, option(INPUT, "Shards of the same images with human annotations, from `pad import`.")] = "",
    verdicts: Annotated[
        list[Path] | None,
        option(INPUT, "Instead of a truth: verdicts that a report's review saved. A second file adds the agreement."),
    ] = None,
    label_map: Annotated[
        Path | None, option("Labels", 'JSON, label to category: {"puppy": "dog"}; an empty category means none.')
    ] = None,
    wordnet: Annotated[
        Path | None, option("Labels", "Folder with WordNet's index.noun and data.noun, for kinds such as poodle.")
    ] = None,
    categories: Annotated[
        Path | None, option("Labels", "COCO JSON or text file with all categories of the truth; by default its labels.")
    ] = None,
    precision: Annotated[
        float | None,
        option(
            "Thresholds",
            "Suggest the thresholds with at least this precision that keep most; by default, those with the best F1.",
            min=0,
            max=1,
        ),
    ] = None,
    top: Annotated[
        int, typer.Option(help="Number of categories or labels to list, the most frequent first.", min=0)
    ] = 15,
    read: Annotated[OptionValues, READ_OPTIONS],
    as_json: AsJson = False,
) -> None:
    """Compare labels, boxes and masks with human ones: what is right, which step lost the rest, the best thresholds.

    With --truth, the shards are compared with human annotations of the same images. A label is compared with the
    category of the same name, or its singular or plural, or what --label-map or --wordnet say. A label without a
    category is listed and does not count, because nobody looked for it. Boxes and masks are matched as in COCO, from
    an IoU of 0.5 on.

    With --verdicts, a random sample of regions that somebody judged by eye in `pad report` takes the place of the
    truth. It shows the precision of labels and masks, and can't show what was missed.

    Examples:

      pad evaluate labels --shards built/ --truth human/ --categories instances_val2017.json

      pad evaluate labels --shards built/ --truth human/ --wordnet /usr/share/wordnet --precision 0.9

      pad evaluate labels --shards built/ --verdicts mine.jsonl --verdicts hers.jsonl
    """
    if bool(truth) == bool(verdicts):
        rule = "both are given, `truth` and `verdicts`" if truth else "neither `truth` nor `verdicts` is given"
        raise UserError("truth", truth or "(empty)", rule, "give one of them")
    for name, given in (("label_map", label_map), ("wordnet", wordnet), ("categories", categories)):
        if given and verdicts:
            raise UserError(name, given, "it goes with `truth`, and not with `verdicts`", "leave it out")
    from pad_pipeline.quality.thresholds import suggest
    from pad_pipeline.shards.reader import open_shards

    opened = open_shards(seen_by_workers(shards, read))
    if verdicts:
        found = _of_verdicts(verdicts, opened)
    else:
        scores = _of_truth(opened, truth, label_map, wordnet, categories, shards, read)
        from pad_pipeline.quality.label_scores import summary

        found = summary(scores)
    suggestions = suggest(found["curves"], precision)
    found["suggestions"] = [
        {"setting": one.setting, "threshold": one.threshold, "reached": one.reached} | dict(one.rates)
        for one in suggestions
    ]
    if as_json:
        print_json(found)
        return
    if verdicts:
        _show_verdicts(found, top)
    else:
        _show_images(scores)
        _show_rates(found)
        _show_fates(found)
        _show_labels(found, top)
        _show_groups(found)
        _show_names(scores)
    _show_suggestions(suggestions, shards, precision, "judged regions" if verdicts else "masks (IoU 0.5)")


def _of_truth(
    opened: ShardFolder,
    truth: str,
    label_map: Path | None,
    wordnet: Path | None,
    categories: Path | None,
    shards: str,
    read: OptionValues,
) -> LabelScores:
    from pad_pipeline.errors import rename_field
    from pad_pipeline.quality.label_names import LabelNames, read_categories, read_label_map
    from pad_pipeline.quality.label_scores import score_labels
    from pad_pipeline.quality.wordnet import WordNet
    from pad_pipeline.shards.reader import open_shards

    names = partial(
        LabelNames,
        label_map=read_label_map(label_map) if label_map else None,
        wordnet=WordNet(wordnet) if wordnet else None,
    )
    further = read_categories(categories) if categories else frozenset[str]()
    with rename_field(shards="truth"):
        human = open_shards(seen_by_workers(truth, read))
    over = reading(shards, read, len(opened.names))
    return score_labels(opened, human, names, further, over, track)


def _of_verdicts(paths: list[Path], opened: ShardFolder) -> dict[str, Any]:
    from pad_pipeline.quality.verdicts import agreement, read_verdicts, score_verdicts

    if len(paths) > 2:
        raise UserError("verdicts", len(paths), "more than two files are given", "give one or two")
    people = [read_verdicts(path, opened) for path in paths]
    found = score_verdicts(people[0])
    if len(people) == 2:
        found["agreement"] = agreement(*people)
    return found


def _show_images(scores: LabelScores) -> None:
    common = scores.common
    say(f"{common.images:,} images are compared; their {common.by} is the same in both runs.")
    for reason, (number, names) in common.left_out.items():
        such = ", ".join(names) + (", ..." if number > len(names) else "")
        note(f"note: {number:,} images are not compared: {reason} ({plain(such)}).", "yellow")


def _show_rates(found: Mapping[str, Any]) -> None:
    table = Table("what", *(("precision", "recall", "F1", "right", "found", "true")), title="What is right")
    titles = {
        "tags": "tags", "labels": "labels of regions", "boxes": "boxes, IoU 0.5", "masks": "masks, IoU 0.5",
    }  # fmt: skip
    for what, title in titles.items():
        rates = found[what]
        counts = (f"{rates[name]:,}" for name in ("right", "found", "true"))
        table.add_row(title, *(_number(rates[name]) for name in ("precision", "recall", "f1")), *counts)
        if f"{'f1'} averaged" in rates:
            averaged = (_number(rates[f"{name} averaged"]) for name in ("precision", "recall", "f1"))
            table.add_row(f"{what}, IoU 0.5 to 0.95", *averaged)
    console.print(table)
    pairs, masks, boxes = found["pairs"], found["masks"], found["boxes"]
    say(
        f"Mean IoU of {pairs['number']:,} matched regions: boxes {_number(pairs['box IoU'])}, masks "
        f"{_number(pairs['mask IoU'])}, patches {_number(pairs['patch IoU'])}. "
        f"COCO's AP: boxes {_number(boxes['AP'])}, masks {_number(masks['AP'])}."
    )


def _show_fates(found: Mapping[str, Any]) -> None:
    table = Table("true regions", "lost by", "regions", "share", title="What became of what people labeled")
    total = sum(found["true regions"].values())
    for fate, number in found["true regions"].items():
        table.add_row(fate, _STEPS[fate], f"{number:,}", _number(number / total if total else math.nan))
    table.add_row("all", "", f"{total:,}", "")
    console.print(table)
    table = Table("found regions", "regions", "share", title="What the run's regions are")
    total = sum(found["found regions"].values())
    for fate, number in found["found regions"].items():
        table.add_row(fate, f"{number:,}", _number(number / total if total else math.nan))
    table.add_row("all", f"{total:,}", "")
    console.print(table)


def _show_labels(found: Mapping[str, Any], top: int) -> None:
    labels = sorted(found["by label"].items(), key=lambda entry: -entry[1]["boxes"]["true"])
    if not labels or not top:
        return
    table = Table("category", "true", "found", "precision", "recall", "mask IoU", "lost most by", title="By category")
    for label, group in labels[:top]:
        fates = {fate: number for fate, number in group["true regions"].items() if fate != "found"}
        worst = max(fates, key=lambda fate: fates[fate])
        boxes = group["boxes"]
        lost = f"{worst} ({fates[worst]:,})" if fates[worst] else ""
        rates = (_number(boxes["precision"]), _number(boxes["recall"]), _number(group["pairs"]["mask IoU"]))
        table.add_row(plain(label), f"{boxes['true']:,}", f"{boxes['found']:,}", *rates, lost)
    console.print(table)
    if len(labels) > top:
        say(f"{len(labels) - top:,} more categories: see `--json`.")


def _show_groups(found: Mapping[str, Any]) -> None:
    table = Table(
        "size of the mask",
        "boxes: precision",
        "recall",
        "masks: precision",
        "recall",
        title="By size: boxes, and masks in them",
    )
    for size, group in found["by size"].items():
        names = ("boxes", "boxes found", "masks", "masks found")
        table.add_row(size, *(_number(group[name]) for name in names))
    console.print(table)
    table = Table("score", "regions", "boxes: precision", "masks: precision", title="By score")
    for score, group in found["by score"].items():
        if group["found"]:
            table.add_row(score, f"{group['found']:,}", _number(group["boxes"]), _number(group["masks"]))
    console.print(table)


def _show_names(scores: LabelScores) -> None:
    ways: dict[str, list[str]] = {}
    for label, (category, how) in scores.names.items():
        if how != "exact":
            ways.setdefault(how, []).append(f"{label} = {category}")
    titles = {"map": "by the label map", "plural": "by singular or plural", "wordnet": "by WordNet"}
    for way, names in ways.items():
        say(plain(f"{counted(len(names), 'label')} found a category {titles[way]}: {_some(names)}."))
    if missing := scores.without_category:
        names = [f"{label} ({number:,})" for label, number in missing.most_common(10)]
        more = ", ..." if len(missing) > 10 else ""
        text = f"note: {counted(missing.total(), 'region')} do not count, because no category has the label"
        note(plain(f"{text}: {', '.join(names)}{more}.").plain, "yellow")


def _some(names: list[str]) -> str:
    return ", ".join(names[:_FEW]) + (", ..." if len(names) > _FEW else "")


def _show_verdicts(found: Mapping[str, Any], top: int) -> None:
    counts = ", ".join(f"{number:,} {verdict}" for verdict, number in found["verdicts"].items())
    say(f"{found['regions']:,} regions were judged: {counts}.")
    table = Table("regions", "judged", "right", "precision", "95% interval", title="By eye")
    rows = [("all", found["all"]), ("all, labels alone", found["labels"])]
    rows += [(f"score {name}", one) for name, one in found["by score"].items() if one["regions"]]
    rows += [(f"label {name}", one) for name, one in list(found["by label"].items())[:top]]
    for name, one in rows:
        interval = f"{one['interval'][0]:.3f} to {one['interval'][1]:.3f}"
        table.add_row(plain(name), f"{one['regions']:,}", f"{one['right']:,}", _number(one["precision"]), interval)
    console.print(table)
    if "agreement" in found:
        both = found["agreement"]
        equal, kappa = _number(both["equal"]), _number(both["kappa"])
        say(f"{both['regions']:,} regions have two verdicts: {equal} of them are equal, Cohen's kappa {kappa}.")


def _show_suggestions(suggestions: list[Suggestion], shards: str, precision: float | None, of: str) -> None:
    wish = "the best F1" if precision is None else f"the most regions at a precision of {precision:g}"
    table = Table("threshold", "value", "precision", "recall", "F1", "regions", title=f"Thresholds for {wish}, of {of}")
    for one in suggestions:
        rates = (_number(one.rates[name]) for name in ("precision", "recall", "f1"))
        missed = "" if one.reached else " (not reached)"
        option = f"--{one.setting.replace('_', '-')}"
        table.add_row(option, f"{one.threshold:g}{missed}", *rates, f"{one.rates['regions']:,}")
    if not suggestions:
        say("No region counts, so no threshold can be suggested.")
        return
    before = suggestions[0].before
    rates = (_number(before[name]) for name in ("precision", "recall", "f1"))
    table.add_row("none", "", *rates, f"{before['regions']:,}")
    console.print(table)
    best = suggestions[0]
    if not best.threshold:
        say("No threshold serves this better than none.")
        return
    out = f"{shards.rstrip('/')}-chosen"
    option = f"--{best.setting.replace('_', '-')} {best.threshold:g}"
    say("To apply the best of them:")
    say(f"pad retarget {shlex.quote(shards)} {option} --out {shlex.quote(out)}")


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
