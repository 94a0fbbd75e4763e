"""Report, before any model runs, the images and captions of a plan, and everything that was left out or changed."""

from __future__ import annotations

from pad_pipeline.console import note
from pad_pipeline.errors import UserError
from pad_pipeline.plan import PlanFacts
from pad_pipeline.sources.base import Source
from pad_pipeline.sources.stored import ShardsSource, StoredSource

_SHOWN = 12
"""The highest number of kinds of problems that are listed."""
_CAPTIONS, _CONVERSATIONS = "planned images with a caption", "planned images with a conversation"
_MISSING = "images that are not there"


def counts_of(planned: PlanFacts, source: Source) -> dict[str, int]:
    """Return all counts of a plan for run.json, without those that are 0."""
    counts = source.counts + planned.problems
    counts[_MISSING] = planned.images - planned.there - planned.problems.total()
    counts[_CAPTIONS], counts[_CONVERSATIONS] = planned.captions, planned.conversations
    return {what: number for what, number in sorted(counts.items()) if number > 0}


def show(planned: PlanFacts, source: Source) -> None:
    """Print the counts of a plan, each with its first example."""
    texts = f": {planned.captions:,} with a caption, {planned.conversations:,} with a conversation"
    note(f"{planned.images:,} images are planned{texts if _texts_known(source) else ''}.")
    for store, number in planned.others.most_common(_SHOWN):
        first = planned.others.examples.get(store, store)
        note(f"  {number:,} are read from {store} with your credentials (the first: {first})", "yellow")
    found = _oddities(planned, source)
    for line in found[:_SHOWN]:
        note(f"  {line}", "yellow")
    if len(found) > _SHOWN:
        note(f"  and {len(found) - _SHOWN} more kinds", "yellow")


def check(planned: PlanFacts, source: Source, field: str, strict: bool, reads_texts: bool = False) -> None:
    """Refuse a source that is useless or, if `strict`, has any problem.

    Args:
        planned: the facts of the plan.
        source: the images.
        field: the parameter that names the source, for errors.
        strict: whether it is an error if anything was left out or changed.
        reads_texts: whether the run makes tags of captions.

    Raises:
        UserError: no image is listed, or none of them exists, or none that was tried can be read, or most have the same
            problem; or the run makes tags of captions, and there are none; or `strict` is true and something was left
            out or changed.
    """
    _refuse_useless(planned, source, field)
    if reads_texts and _texts_known(source) and not planned.captions and not planned.conversations:
        rule = "none of its images has a caption or a conversation, from which the section [captions] would make tags"
        remedy = "name a list that has them, or take the section out of the file of `models`"
        raise UserError(field, source.origin, rule, remedy)
    if strict and (found := _oddities(planned, source)):
        more = f"; and {len(found) - 1} more kinds" if len(found) > 1 else ""
        raise UserError("strict", True, found[0] + more, "correct the input, or leave out `strict`")


def _texts_known(source: Source) -> bool:
    """Return whether the plan knows the texts. Those of images in shards are not read for the plan."""
    return not isinstance(source, ShardsSource | StoredSource)


def _refuse_useless(planned: PlanFacts, source: Source, field: str) -> None:
    """Refuse a source without a usable image, as far as one knows, or with the same problem in most of its records."""
    if not planned.images:
        left_out = "".join(f"; {line}" for line in _oddities(planned, source))
        raise UserError(field, source.origin, f"there is no image in it{left_out}", "name a folder or a file of images")
    for kind, number in planned.problems.most_common(1):
        if 2 * number > planned.images:
            rule = f"{number:,} of its {planned.images:,} images have this problem: {planned.problems.examples[kind]}"
            raise UserError(field, source.origin, rule, "correct the input")
    if not planned.there:
        rule = f"it has none of the images that {source.origin} lists ({planned.images:,} in all)"
        raise UserError("image_root", source.root, rule, "name the folder that has them")
    if planned.unreadable and not any(planned.sample.values()):
        rule = f"none of the {len(planned.sample)} images that were tried can be read ({planned.unreadable})"
        remedy = "check the paths, the credentials and the network; or give `depth` sizes, with which none is tried"
        raise UserError(field, source.origin, rule, remedy)


def _oddities(planned: PlanFacts, source: Source) -> list[str]:
    """Return a line for each kind of problem: its number and its first example. The things with a problem were left
    out or changed, or can't be used."""
    lines = []
    for counts, what in ((source.counts, "{}"), (planned.problems, "images that can't be used: {}")):
        for kind, number in counts.most_common():
            example = f" (the first: {counts.examples[kind]})" if kind in counts.examples else ""
            lines.append(f"{number:,} {what.format(kind)}{example}")
    others = [*source.counts.other_texts]
    if not planned.captions and others:
        remedy = f"`columns` caption={others[0]} takes the first of them as the caption"
        lines.append(f"no image has a caption, and there are other texts: {', '.join(others[:8])}; {remedy}")
    if missing := planned.images - planned.there - planned.problems.total():
        lines.append(f"{missing:,} {_MISSING}")
    return lines
