"""`pad duplicates`: find copies of images within a run, and images that an evaluation set has too."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pad_pipeline.console import Table, console, note, say, track
from pad_pipeline.duplicates.settings import DuplicateSettings
from pad_pipeline.errors import UserError
from pad_pipeline.workflows.commands.common import (
    INPUT,
    READ_OPTIONS,
    AsJson,
    Shards,
    counted,
    plain,
    print_json,
    reading,
    seen_by_workers,
)
from pad_pipeline.workflows.commands.options import OptionValues, option, options

if TYPE_CHECKING:
    from pad_pipeline.duplicates.groups import Duplicate
    from pad_pipeline.duplicates.hashes import Hashed
    from pad_pipeline.sources.base import Tally

_PROBLEMS = {
    "uniform": "are almost uniform, so that only their exact copies are found",
    "unreadable": "can't be read, so that at most exact copies of their files are found",
    "failed": "failed there, and are left out",
}
"""What is said of images with a `Problem`, after their number."""


def duplicates(
    *,
    shards: Shards,
    against: Annotated[
        str | None,
        option(INPUT, "An evaluation set: shards, a COCO JSON, or all that --images of `pad build` reads."),
    ] = None,
    image_root: Annotated[
        str | None,
        option(INPUT, "Folder of the images of a JSON or a list in --against; by default the folder of that file."),
    ] = None,
    settings: Annotated[OptionValues, options(DuplicateSettings, INPUT, "distance")],
    out: Annotated[
        Path | None, typer.Option(help="File to write (JSONL), with the key of each image to take away.")
    ] = None,
    top: Annotated[int, typer.Option(help="Number of groups to list, the largest first.", min=0)] = 10,
    read: Annotated[OptionValues, READ_OPTIONS],
    as_json: AsJson = False,
) -> None:
    """Find exact and near copies of images in a run, and images of an evaluation set among them.

    Exact copies have the same bytes. Near copies look the same: recompressed, resized, a little cropped. Of each group
    of copies the largest image stays, and the others are listed. With --against, every image is listed that is also in
    the evaluation set.

    Examples:

      pad duplicates shards/ --out copies.jsonl

      pad duplicates shards/ --against refcoco.json --image-root train2014/ --out leaks.jsonl

      pad filter shards/ --drop-keys leaks.jsonl --out clean/
    """
    if out and (out.is_dir() or not out.absolute().parent.is_dir()):
        rule = "this is a folder" if out.is_dir() else "there is no such folder to write it into"
        raise UserError("out", out, rule, "name a file in a folder that is there")
    if image_root and not against:
        raise UserError("image_root", image_root, "it goes with `against`", "leave it out")
    from pad_pipeline.duplicates.groups import find_duplicates
    from pad_pipeline.duplicates.hashes import check_package, hash_run, hash_source, open_evaluation
    from pad_pipeline.duplicates.keys_file import write_keys
    from pad_pipeline.shards.reader import open_shards
    from pad_pipeline.sources.base import Tally

    check_package()
    opened = open_shards(seen_by_workers(shards, read))
    evaluation = open_evaluation(seen_by_workers(against, read), image_root) if against else None
    over = reading(shards, read, len(opened.names))
    hashed = track(hash_run(opened, over), "hashing", len(opened.names))
    images = [image for part in hashed for image in part]
    others = [image for part in hash_source(evaluation, over) for image in part] if evaluation else []
    if evaluation and not any(other.sha256 for other in others):
        rule = f"none of its {counted(len(others), 'image')} can be read"
        raise UserError("against", against, rule, "name the folder of its images with `image_root`")
    found = find_duplicates(images, others, DuplicateSettings(**settings).distance)
    if out:
        write_keys(out, found, opened.run)
    apart = {"the run": _not_compared(images), "the evaluation set": _not_compared(others)}
    left_out = evaluation.counts if evaluation else Tally()
    if as_json:
        _print_json(images, others, found, apart, left_out)
        return
    say(f"{counted(len(images), 'image')}: {_numbers([one for one in found if not one.leak])}")
    if against:
        leaks = _numbers([one for one in found if one.leak])
        say(plain(f"{counted(len(others), 'image')} in {against}: {leaks} of them in the run."))
    _show(found, top)
    _note_gaps(apart, left_out)
    if out:
        remedy = f"; pad filter {shards} --drop-keys {out} takes them away" if found else ""
        say(plain(f"{counted(len(found), 'key')} in {out}{remedy}."))


def _note_gaps(apart: dict[str, dict[str, list[str]]], left_out: Tally) -> None:
    """Say which images could not be compared, and what the source of the evaluation set left out."""
    for where, by_problem in apart.items():
        for problem, names in by_problem.items():
            note(plain(f"{counted(len(names), 'image')} of {where} {_PROBLEMS[problem]}: {_first(names)}"), "yellow")
    for what, number in left_out.items():
        note(plain(f"the evaluation set: {number} {what} (the first: {left_out.examples.get(what, '')})"), "yellow")


def _not_compared(images: list[Hashed]) -> dict[str, list[str]]:
    """Return the names of the images that can't be compared by appearance, by problem."""
    found: dict[str, list[str]] = defaultdict(list)
    for image in images:
        if image.problem:
            found[image.problem].append(image.name)
    return found


def _numbers(found: list[Duplicate]) -> str:
    exact = sum(one.exact for one in found)
    return f"{exact} exact and {len(found) - exact} near copies"


def _first(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _show(found: list[Duplicate], top: int) -> None:
    """Print a table of the largest groups."""
    groups = Counter((one.leak, one.of.name) for one in found)
    if not groups or not top:
        return
    table = Table("image", "where", "exact", "near", "copies", title="the largest groups")
    for (leak, name), number in groups.most_common(top):
        copies = [one for one in found if one.leak == leak and one.of.name == name]
        exact = sum(one.exact for one in copies)
        where = "evaluation set" if leak else "run, stays"
        shown = _first([one.image.name for one in copies])
        table.add_row(plain(name), where, str(exact), str(number - exact), plain(shown))
    console.print(table)


def _print_json(
    images: list[Hashed],
    others: list[Hashed],
    found: list[Duplicate],
    apart: dict[str, dict[str, list[str]]],
    left_out: Tally,
) -> None:
    copies = [
        {"key": one.image.name, "of": one.of.name, "leak": one.leak, "exact": one.exact, "distance": one.distance}
        for one in found
    ]
    facts = {"images": len(images), "evaluation_images": len(others), "left_out": dict(left_out)}
    print_json(facts | {"copies": copies, "not_compared": apart})
