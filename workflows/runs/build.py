"""Plan, run, commit: what `pad build`, `pad import` and the commands that rewrite shards have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.text import Text

from pad_pipeline.console import errors as console
from pad_pipeline.errors import UserError, rename_field
from pad_pipeline.geometry import View
from pad_pipeline.images import DecodeSettings
from pad_pipeline.labels import LabelSettings
from pad_pipeline.plan import PLAN_NAME, Plan, write_plan
from pad_pipeline.shards.lock import locked
from pad_pipeline.shards.run import RUN_NAME, Run
from pad_pipeline.shards.seal import seal_problem
from pad_pipeline.shards.writer import TOTALS
from pad_pipeline.sources.base import Source
from pad_pipeline.sources.shards import ShardsSource
from pad_pipeline.stages.custom.settings import CustomGrounder
from pad_pipeline.storage import Folder, folder_at, is_url
from pad_pipeline.workflows.engine.attempts import Attempts
from pad_pipeline.workflows.engine.chain import Link
from pad_pipeline.workflows.engine.local import JOURNAL_NAME, LocalEngine
from pad_pipeline.workflows.engine.progress import Totals, Watch
from pad_pipeline.workflows.engine.ray import RayEngine
from pad_pipeline.workflows.models.fingerprints import custom_code, label_fingerprint, weight_fingerprints
from pad_pipeline.workflows.models.settings import ModelSettings
from pad_pipeline.workflows.runs.chains import annotation_chain, import_chain
from pad_pipeline.workflows.runs.fingerprint import code_fingerprint, environment
from pad_pipeline.workflows.runs.options import RunOptions
from pad_pipeline.workflows.runs.resume import Scan, adopt, check_repaired, check_same, foreign, scan
from pad_pipeline.workflows.runs.steps import unwritable


def build(source: Source, out: Path | str, models: ModelSettings, view: View, options: RunOptions) -> Totals:
    """`pad build`: annotate the images of `source` with the models and write shards into `out`.

    Args:
        source: the images.
        out: the run's folder, or its URL; finished shards in it are kept.
        models: which models.
        view: what the vision encoder will see.
        options: how.

    Returns:
        Images, `ok`, `empty`, `failed`, tags and regions over all shards.

    Raises:
        UserError: an input, a model or the output folder can't be used, or a stage is broken.
    """
    folder = open_out(out, options)  # before gigabytes are fetched
    run, chain = plan_build(source, models, view, options)
    return carry_out(run, source, folder, chain, options, forked=folder_at(out) if options.fork else None)


ChainFor = Callable[[Folder, str], list[Link]]
"""The run's folder and identity -> its links."""


def plan_build(source: Source, models: ModelSettings, view: View, options: RunOptions) -> tuple[Run, ChainFor]:
    """The facts of a build, and its chain. Weights that are missing are fetched."""
    kept: dict[str, Any] = {}
    if options.redo_from != "tag":
        if not isinstance(source, ShardsSource):
            rule = "only images that come from PAD shards have been annotated before"
            raise UserError("redo_from", options.redo_from, rule, "name a folder of shards in `images`")
        if options.redo_from == "ground" and isinstance(models.detector, CustomGrounder):
            rule = "a grounder finds tags and boxes in one"
            raise UserError("redo_from", options.redo_from, rule, "leave it out, or begin with segment")
        earlier = source.shards.run
        kept = {"redo_from": options.redo_from, "earlier": {"settings": earlier.settings, **earlier.fingerprints}}
    labels, width = label_fingerprint(models.llm)
    run = Run(
        kind="build",
        images=0,
        shards=0,
        shard_size=options.shard_size,
        counts={},
        view=view,
        embedding_width=width,
        settings=models.model_dump(mode="json", exclude={"view"}) | kept,  # the view in use stands for itself
        fingerprints=weight_fingerprints(models, options.redo_from) | labels,
    )
    if own := custom_code(models, options.redo_from):
        run.fingerprints["code"] = own
    compute = models.compute.model_copy(update={"threads": options.used_threads})

    def chain(folder: Folder, identity: str) -> list[Link]:
        return annotation_chain(folder, identity, models, view, source.root, compute, options.redo_from)

    return run, chain


def import_coco(
    source: Source, out: Path | str, labels: LabelSettings, decoding: DecodeSettings, view: View, options: RunOptions
) -> Totals:
    """`pad import coco`: shards of the same format from human regions. Arguments and result as `build`'s."""
    folder = open_out(out, options)
    fingerprint, width = label_fingerprint(labels)
    run = Run(
        kind="import-coco",
        images=0,
        shards=0,
        shard_size=options.shard_size,
        counts={},
        view=view,
        embedding_width=width,
        settings={"llm": labels.model_dump(mode="json"), "decode": decoding.model_dump(mode="json")},
        fingerprints=fingerprint,
    )

    def chain(folder: Folder, identity: str) -> list[Link]:
        return import_chain(folder, identity, decoding, labels, view, source.root)

    with rename_field(image_root="images"):
        return carry_out(run, source, folder, chain, options, forked=folder_at(out) if options.fork else None)


def open_out(out: Path | str, options: RunOptions) -> Folder:
    """The folder to write into: new, empty, or a run.

    Raises:
        UserError: it is something else.
    """
    field, where = ("fork", options.fork) if options.fork else ("out", out)
    if not str(out):
        raise UserError("out", "", "it is empty", "name a folder")
    if options.fork:
        with rename_field(shards="out"):
            Run.read(folder_at(out))  # what is forked
        if _resolved(options.fork) == _resolved(out):
            raise UserError("fork", options.fork, "it is the same folder as `out`", "name another")
    with rename_field(shards=field):
        folder = folder_at(where if isinstance(where, str) else Path(where or "."))
    if not folder.remote:
        folder = Folder(folder.path.resolve())
        if folder.path.exists() and not folder.path.is_dir():
            raise UserError(field, folder, "this is a file", "name a folder that is new, empty, or a run of pad's")
    try:
        if names := foreign(folder):
            rule = f"it holds something else ({names[0]}) and no {RUN_NAME}"
            raise UserError(field, folder, rule, "name a folder that is new, empty, or a run of pad's")
    except OSError as error:
        raise unwritable(folder, error) from error
    return folder


def _resolved(where: Path | str) -> str:
    return str(where).rstrip("/") if is_url(str(where)) else str(Path(where).resolve())


def carry_out(
    run: Run,
    source: Source,
    folder: Folder,
    chain_for: ChainFor,
    options: RunOptions,
    forked: Folder | None = None,
    title: str = "",
) -> Totals:
    """Plan the source into `folder`, under its lock, and work on what is unfinished. Arguments as `prepare`'s; `title`
    is what the progress is called, by default the run's kind."""
    created = not folder.exists()
    with ExitStack() as held:
        try:
            folder.create()
            held.callback(_remove_if_empty, folder if created else None)
            held.enter_context(locked(folder))
            folder.clean()
            found = prepare(run, source, folder, options, forked)
        except OSError as error:
            raise unwritable(folder, error) from error
        return _work(run, found, folder, chain_for, options, title or run.kind)


def _remove_if_empty(folder: Folder | None) -> None:
    """A run that was refused leaves no folder behind."""
    if folder and not folder.remote and folder.path.is_dir() and not any(folder.path.iterdir()):
        folder.path.rmdir()


def _work(run: Run, found: Scan, folder: Folder, chain_for: ChainFor, options: RunOptions, title: str) -> Totals:
    # A retry that was killed between a shard's two files left it broken: it is made anew, as a whole.
    retried = sorted({*found.with_failures, *found.broken}) if options.retry_failed else []
    numbers = iter(retried) if options.retry_failed else _unfinished(run, found)
    shards = len(retried) if options.retry_failed else run.shards - len(found.finished)
    if found.finished and not options.retry_failed:
        text = f"Finished already, and left as they are: {len(found.finished)} of {run.shards} shards."
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    images = found.totals["failed"] if options.retry_failed else run.images - found.totals["images"]
    watch = Watch(title, shards, images, console, folder)

    def begin(number: int) -> Attempts:
        rows = min(run.shard_size, run.images - number * run.shard_size)
        return Attempts(number=number, rows=rows, retry=options.retry_failed and number not in found.broken)

    chain = [link._replace(breaker=options.breaker) for link in chain_for(folder, run.identity)]
    engine: LocalEngine | RayEngine = LocalEngine(folder, f"{run.identity}:{run.plan}")
    if options.engine == "ray":
        engine = RayEngine(options.address, options.workers, options.placement, options.pools)
    watch.follow(engine.run(chain, numbers, begin, watch))
    folder.delete(JOURNAL_NAME, durable=False)  # of an earlier run too
    if options.retry_failed:
        return _counted(scan(folder, run.identity, run.shards).totals)
    return _counted(found.totals + watch.found)


def _counted(totals: Counter[str]) -> Totals:
    return {name: totals[name] for name in TOTALS}


def _unfinished(run: Run, found: Scan) -> Iterator[int]:
    return (number for number in range(run.shards) if number not in found.finished)


def prepare(run: Run, source: Source, folder: Folder, options: RunOptions, forked: Folder | None = None) -> Scan:
    """Plan the source, check the plan against what is in the folder, and say which shards are finished.

    Args:
        run: the facts of the run; what the plan comes to is filled in.
        source: the images.
        folder: the run's.
        options: how.
        forked: the run whose shards are taken over where they would come out the same.

    Raises:
        UserError: the folder holds finished shards of other inputs, settings, weights or code.
    """
    with rename_field(shards="out"):
        old = Run.read(folder) if folder.has(RUN_NAME) else None
    if old and (problem := seal_problem(folder.read(RUN_NAME))):
        remedy = "put the original back, or name another `out`"
        raise UserError("out", f"{folder}/{RUN_NAME}", problem, remedy)
    found = scan(folder, old.identity, old.shards) if old else Scan()
    if options.retry_failed and not (old and folder.has(PLAN_NAME)):
        raise UserError("retry_failed", folder, "there is no run in it", "leave it out for a first run")
    with folder.commit(PLAN_NAME) as partial:
        with console.status(Text(f"planning {source.origin}")):
            facts = write_plan(source, partial, run.shard_size, options.depth, options.limit)
        if not facts.images:
            rule = "there is no image in it" + "".join(f"; {n} {what}" for what, n in source.counts.items())
            raise UserError("images", source.origin, rule, "name a folder or a file with images")
        if not facts.there:
            rule = f"none of the {facts.images} images that {source.origin} lists is there"
            raise UserError("image_root", source.root, rule, "correct it")
        run.images, run.shards = facts.images, -(-facts.images // run.shard_size)
        run.counts = dict(sorted(source.counts.items()))
        code = " ".join(filter(None, [code_fingerprint(), run.fingerprints.get("code")]))  # and the user's own
        run.fingerprints = run.fingerprints | {"inputs": facts.digest, "code": code}
        run.contents, run.plan = facts.sample, facts.seal
        run.environment = environment(options.used_threads)
        if old and (found.finished or found.damaged):
            new_plan = Plan(Folder(partial.parent), partial.name)
            if options.retry_failed:
                check_repaired(old, run, folder, new_plan, options.accept_changed_code, found)
            else:
                check_same(old, run, folder, new_plan, options.accept_changed_code)
            _keep(old, run)
        # Else there is nothing to keep: a first attempt with a wrong setting must not stand in the way of the next.
        for name in [*found.halves, *(f"{name}.parquet" for name in found.damaged)]:
            folder.delete(name)
        if found.damaged:
            names = ", ".join(found.damaged[:3]) + (", ..." if len(found.damaged) > 3 else "")
            text = f"Damaged, and made anew: {len(found.damaged)} shards ({names})."
            console.print(text, markup=False, highlight=False, soft_wrap=True)
        run.write(folder)
    if forked is not None:
        adopted = adopt(forked, folder, run)
        text = f"Taken over from {forked}: {adopted} of {run.shards} shards."
        console.print(text, markup=False, highlight=False, soft_wrap=True)
        found = scan(folder, run.identity, run.shards)
    return found


def _keep(old: Run, run: Run) -> None:
    """What the earlier run says about itself stays true of its shards."""
    code = old.fingerprints.get("code", "")
    run.accepted_code = old.accepted_code + ([code] if code != run.fingerprints["code"] else [])
    now = run.environment
    changed = [f"{name} {was} -> {now.get(name)}" for name, was in old.environment.items() if now.get(name) != was]
    if changed:
        text = f"note: {', '.join(changed)} since the run began; last digits may differ from shard to shard."
        console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
    run.environment = old.environment
