"""The four steps before a run starts: find what exists, plan, check that old and new shards fit together, tidy up."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from pad_pipeline.choices import Depth
from pad_pipeline.console import errors, note
from pad_pipeline.errors import UserError, rename_field
from pad_pipeline.plan import PLAN_NAME, Plan, PlanFacts, write_plan
from pad_pipeline.shards.run import RUN_NAME, Run
from pad_pipeline.shards.seal import seal_problem
from pad_pipeline.sources.base import Source
from pad_pipeline.storage import Folder
from pad_pipeline.workflows.runs.options import RunOptions
from pad_pipeline.workflows.runs.recipe import Recipe
from pad_pipeline.workflows.runs.resume import Scan, check_repaired, check_same, copy_matching_shards, scan


def prepare(
    recipe: Recipe, source: Source, folder: Folder, options: RunOptions, forked: Folder | None = None
) -> tuple[Run, Scan]:
    """Plan the source, check that the new run fits the shards in the folder, and find the finished shards.

    Args:
        recipe: the part of the run that does not depend on its images.
        source: the images.
        folder: the run's folder, which is locked.
        options: the options of the run.
        forked: another run; those of its shards that would be the same are copied.

    Returns:
        The run, whose run.json and plan are now in the folder; and its finished shards.

    Raises:
        UserError: the folder holds finished shards of other inputs, settings, weights or code.
        OSError: the folder can't be read or written.
    """
    old, existing = earlier_run(folder)
    if options.retry_failed and not (old and folder.has(PLAN_NAME)):
        raise UserError("retry_failed", folder, "there is no run in it", "leave it out for a first run")
    with folder.commit(PLAN_NAME) as partial:
        planned = plan_images(source, partial, recipe.input_field, options.shard_size, options.depth, options.limit)
        run = recipe.run(planned, source.counts, options.shard_size, options.used_threads)
        if old and (existing.finished or existing.damaged):
            plan = Plan(Folder(partial.parent), partial.name)
            if options.retry_failed:
                check_repaired(old, run, folder, plan, options.accept_changed_code, existing)
            else:
                check_same(old, run, folder, plan, options.accept_changed_code)
            run = inherit_facts(old, run)
        # Without shards to keep, nothing is checked: after a first try with a wrong setting, the next one must work.
        remove_unfinished(folder, existing)
        run.write(folder)
    if forked is not None:
        note(f"{copy_matching_shards(forked, folder, run)} of {run.shards} shards are copied from {forked}.")
        existing = scan(folder, run.identity, run.shards)
    return run, existing


def earlier_run(folder: Folder) -> tuple[Run | None, Scan]:
    """Return the run in the folder and its finished shards; None and an empty scan if there is no run.

    Raises:
        UserError: run.json can't be read, or was changed.
    """
    if not folder.has(RUN_NAME):
        return None, Scan()
    with rename_field(shards="out"):
        run = Run.read(folder)
    if problem := seal_problem(folder.read(RUN_NAME)):
        raise UserError("out", f"{folder}/{RUN_NAME}", problem, "put the original back, or name another `out`")
    return run, scan(folder, run.identity, run.shards)


def plan_images(source: Source, path: Path, field: str, shard_size: int, depth: Depth, limit: int | None) -> PlanFacts:
    """Write the plan of a source, as `write_plan` does.

    Raises:
        UserError: the source, which the parameter `field` names, lists no image, or none of its images exists.
    """
    with errors.status(Text(f"planning {source.origin}")):
        planned = write_plan(source, path, shard_size, depth, limit)
    if not planned.images:
        rule = "there is no image in it" + "".join(f"; {number} {what}" for what, number in source.counts.items())
        raise UserError(field, source.origin, rule, "name a folder or a file with images")
    if not planned.there:
        rule = f"none of the {planned.images} images that {source.origin} lists is there"
        raise UserError("image_root", source.root, rule, "name the folder that has them")
    return planned


def inherit_facts(old: Run, new: Run) -> Run:
    """Return `new` with the environment and the accepted code of the old run, which its shards were made with. A change
    of libraries is reported, because last digits may then differ from shard to shard."""
    code = old.fingerprints.get("code", "")
    accepted = old.accepted_code + ([code] if code != new.fingerprints["code"] else [])
    now = new.environment
    changed = [f"{name} {was} -> {now.get(name)}" for name, was in old.environment.items() if now.get(name) != was]
    if changed:
        note(f"note: {', '.join(changed)} since the run began; last digits may differ from shard to shard.", "yellow")
    return new.model_copy(update={"accepted_code": accepted, "environment": old.environment})


def remove_unfinished(folder: Folder, existing: Scan) -> None:
    """Delete the files of uncommitted shards and the indexes of damaged shards, so that these shards are made again."""
    for name in [*existing.halves, *(f"{name}.parquet" for name in existing.damaged)]:
        folder.delete(name)
    if existing.damaged:
        names = ", ".join(existing.damaged[:3]) + (", ..." if len(existing.damaged) > 3 else "")
        note(f"{len(existing.damaged)} shards are damaged and are made again ({names}).")
