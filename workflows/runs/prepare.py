"""Prepare a run: find its finished shards, plan, check that old and new shards fit together, and tidy up."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from rich.text import Text

from pad_pipeline.console import errors, note
from pad_pipeline.errors import UserError, rename_field
from pad_pipeline.facts import differences
from pad_pipeline.plan import PLAN_NAME, Plan, PlanFacts, write_plan
from pad_pipeline.shards.run import RUN_NAME, Run
from pad_pipeline.shards.seal import check_seal, seal_problem
from pad_pipeline.sources.base import Source
from pad_pipeline.sources.choose import SampleFirst
from pad_pipeline.storage import Folder
from pad_pipeline.workflows.runs import survey
from pad_pipeline.workflows.runs.options import RunOptions
from pad_pipeline.workflows.runs.resume import Scan, check_repaired, check_same, copy_finished_shards, own_shards, scan
from pad_pipeline.workflows.runs.spec import RunSpec

_LONG = 120.0
"""Seconds of planning again after which a message says how to do without it."""
_SETTLED = 1.0
"""Seconds after which an object store gives to everybody what was written last."""


class _Unchanged(Exception):
    """The plan in the folder stays."""


def prepare(
    spec: RunSpec, source: Source, folder: Folder, options: RunOptions, forked: Folder | None = None
) -> tuple[Run, Scan]:
    """Plan the source, check that the new run fits the shards in the folder, and find the finished shards.

    Args:
        spec: the facts about the run that do not depend on its images.
        source: the images.
        folder: the run's folder, which is locked.
        options: the options of the run.
        forked: the folder of another run, whose shards are copied if they would come out the same.

    Returns:
        The run, whose run.json and plan are now in the folder, and the shards in the folder.

    Raises:
        UserError: the folder holds finished shards of other inputs, settings, weights or code.
        OSError: the folder can't be read or written.
    """
    old, existing = earlier_run(folder, options)
    first = sample_of(old, existing, options)
    if options.retry_failed and not (old and folder.has(PLAN_NAME)):
        raise UserError("retry_failed", folder, "there is no run in it", "leave it out for a first run")
    if old and options.depth == "kept" and folder.has(PLAN_NAME):
        run = keep_plan(spec, source, folder, old, options)
        remove_unfinished(folder, existing)
        if run != old:
            run.write(folder)
        return run, existing
    with suppress(_Unchanged), folder.commit(PLAN_NAME, first=bool(options.part)) as partial:
        began = time.monotonic()
        planned = plan_images(source, partial, options, first)
        if existing.finished and time.monotonic() - began > _LONG:
            took = f"Planning again took {(time.monotonic() - began) / 60:.0f} minutes"
            note(f"{took}. With the fingerprint `kept`, a rerun keeps the plan, and does not notice changed inputs.")
        survey.check(planned, source, spec.input_field, options.strict, spec.reads_texts)
        counts = survey.counts_of(planned, source)
        run = spec.to_run(planned, counts, options, first)
        plan = Plan(Folder(partial.parent), partial.name)
        if options.part and not old:
            old = first_run(run, folder)
        if old and (options.part or existing.finished or existing.damaged):
            # Parts may be at work on the plan. So with parts, a retry finds the same inputs, or is refused.
            if options.retry_failed and not options.part:
                check_repaired(old, run, folder, plan, options.accept_changed_code, existing)
            else:
                check_same(old, run, folder, plan, options.accept_changed_code)
            run = inherit_facts(old, run)
        # Without shards to keep, nothing is checked, so that the user can correct a setting after a first try.
        remove_unfinished(folder, existing)
        if run != old:  # what need not be written can't be torn
            run.write(folder)
        there = _plan_there(folder, options)
        if there == planned.seal:
            raise _Unchanged
        if options.part and there is not None:
            folder.delete(PLAN_NAME)  # damaged, so that the new one is written
    survey.show(planned, source)
    if forked is not None:
        own = own_shards(run, options)
        copied = copy_finished_shards(forked, folder, run, own)
        note(f"{copied} of {len(own)} shards are copied from {forked}.")
        if 0 < copied < len(own):
            note_environment(Run.read(forked).environment, run.environment)
        existing = scan(folder, run.identity, own, others=not options.part)
    return run, existing


def first_run(run: Run, folder: Folder) -> Run:
    """Write the run.json of the first part of a run, unless another part was faster. Return what is there then."""
    run.write(folder, first=True)
    if folder.remote:
        time.sleep(_SETTLED)  # two parts may have written within the same second; see `locked`
    return Run.read(folder)


def _plan_there(folder: Folder, options: RunOptions) -> str | None:
    """Return the seal of the plan in the folder, empty if it is damaged; None if there is no plan, or if it is replaced
    anyway. A plan that is the new one stays, because others may read it."""
    if not folder.has(PLAN_NAME) or (folder.remote and not options.part):  # to read it there takes longer
        return None
    if folder.remote:
        try:
            return Plan(folder).seal
        except UserError:
            return ""
    with folder.open(PLAN_NAME) as stream:
        seal, problem = check_seal(stream)
    return "" if problem else seal


def keep_plan(spec: RunSpec, source: Source, folder: Folder, old: Run, options: RunOptions) -> Run:
    """Return the run of the plan in the folder, after a look at the images of its sample.

    Raises:
        UserError: the plan is damaged, or the run differs from the earlier run `old`.
    """
    with folder.as_file(PLAN_NAME) as path, path.open("rb") as stream:
        if check_seal(stream) != (old.plan, ""):
            raise UserError("depth", "kept", f"{folder}/{PLAN_NAME} is damaged", "leave it out, to plan again")
        plan = Plan(Folder(path.parent), path.name)
        images = min(plan.images, options.limit or plan.images)
        planned = PlanFacts(images=images, there=images, digest=old.fingerprints["inputs"], seal=old.plan)
        planned.sample, planned.unreadable = plan.sample(source.root, old.contents, options.private_addresses)
        survey.check(planned, source, spec.input_field, strict=False)
        first = SampleFirst(old.sample, old.sample_seed)
        run = spec.to_run(planned, old.counts, options, first)
        check_same(old, run, folder, plan, options.accept_changed_code)
    return inherit_facts(old, run)


def earlier_run(folder: Folder, options: RunOptions | None = None) -> tuple[Run | None, Scan]:
    """Return the run in the folder, and its shards that the options ask for. If there is no run, return None and an
    empty scan.

    Raises:
        UserError: run.json can't be read, or was changed.
    """
    if not folder.has(RUN_NAME):
        return None, Scan()
    with rename_field(shards="out"):
        run = Run.read(folder)
    if problem := seal_problem(folder.read(RUN_NAME)):
        raise UserError("out", f"{folder}/{RUN_NAME}", problem, "put the original back, or name another `out`")
    options = options or RunOptions()
    return run, scan(folder, run.identity, own_shards(run, options), others=not options.part)


def sample_of(old: Run | None, existing: Scan, options: RunOptions) -> SampleFirst:
    """Return the sample that the plan begins with: that of the run in the folder, or else that of the options.

    Raises:
        UserError: the options ask for another sample than that of the finished shards.
    """
    wanted = SampleFirst(options.sampled_images, options.sample_seed) if options.sample else SampleFirst(0)
    if not old or not (existing.finished or options.part):
        return wanted if wanted.images or not old else SampleFirst(old.sample, old.sample_seed)
    there = SampleFirst(old.sample, old.sample_seed)
    if wanted.images and wanted != there:
        begun = (
            f"with a sample of {there.images} images and the seed {there.seed}" if there.images else "without a sample"
        )
        rule = f"the run in `out` was begun {begun}"
        raise UserError("sample", options.sample, rule, "leave it out to annotate all images, or name another `out`")
    return there


def plan_images(source: Source, path: Path, options: RunOptions, first: SampleFirst) -> PlanFacts:
    """Write the plan of a source with `write_plan`, and show a message meanwhile."""
    depth = "sample" if options.depth == "kept" else options.depth
    with errors.status(Text(f"planning {source.origin}")):
        return write_plan(source, path, options.shard_size, depth, options.limit, options.private_addresses, first)


def inherit_facts(old: Run, new: Run) -> Run:
    """Return `new` with the environment and the accepted code of `old`, because its shards stay in the run. A content
    that could not be read now keeps its hash.
    """
    code = old.fingerprints.get("code", "")
    accepted = old.accepted_code + ([code] if code != new.fingerprints["code"] else [])
    contents = {key: sha256 or old.contents.get(key, "") for key, sha256 in new.contents.items()}
    inherited = {"accepted_code": accepted, "environment": old.environment, "contents": contents}
    return new.model_copy(update=inherited)


def note_environment(old: dict[str, str], new: dict[str, str]) -> None:
    """Say it if finished shards were made in another environment, `old`, than those that are still to be made."""
    if changed := differences(old, new):
        rule = "last digits may differ from shard to shard"
        if old.get("threads") != new.get("threads"):
            rule += f"; with `threads` {old.get('threads')} they do not differ for that"
        note(f"note: the environment has changed since the run began ({'; '.join(changed)}): {rule}.", "yellow")


def remove_unfinished(folder: Folder, existing: Scan) -> None:
    """Delete the files of uncommitted shards and the indexes of damaged shards, so that these shards are made again."""
    for name in [*existing.uncommitted_files, *(f"{name}.parquet" for name in existing.damaged)]:
        folder.delete(name)
    if existing.damaged:
        names = ", ".join(existing.damaged[:3]) + (", ..." if len(existing.damaged) > 3 else "")
        note(f"damaged shards that are made again: {len(existing.damaged)} ({names}).")
