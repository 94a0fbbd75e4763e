"""Make a run from the images of a source: `pad build`, `pad import`, and the part that `rewrite` also uses."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

from pad_pipeline.console import errors, note
from pad_pipeline.errors import UserError, rename_field
from pad_pipeline.geometry import View
from pad_pipeline.images import DecodeSettings
from pad_pipeline.labels import LabelEmbedder, LabelSettings
from pad_pipeline.llms import check_llm
from pad_pipeline.roles import STEPS, RedoFrom, section_of
from pad_pipeline.shards.lock import locked
from pad_pipeline.shards.reader import ShardFolder
from pad_pipeline.shards.run import RUN_NAME, Run
from pad_pipeline.shards.writer import TOTALS
from pad_pipeline.sources.base import Source, Tally
from pad_pipeline.sources.stored import ShardsSource
from pad_pipeline.stages.captions import CaptionsSettings
from pad_pipeline.stages.settings import StageSettings
from pad_pipeline.stages.tag import TaggerSettings, read_tags
from pad_pipeline.storage import Folder, claim_folder, folder_at, resolved, write_error
from pad_pipeline.workflows.engine.attempts import Attempts
from pad_pipeline.workflows.engine.local import LocalEngine
from pad_pipeline.workflows.engine.progress import Progress, Totals
from pad_pipeline.workflows.engine.ray import RayEngine
from pad_pipeline.workflows.models.settings import ModelSettings
from pad_pipeline.workflows.runs.chains import annotation_chain, import_chain
from pad_pipeline.workflows.runs.cpu_workers import with_cpu_workers
from pad_pipeline.workflows.runs.fingerprint import environment
from pad_pipeline.workflows.runs.options import RunOptions
from pad_pipeline.workflows.runs.prepare import note_environment, prepare
from pad_pipeline.workflows.runs.resume import Scan, check_there, is_file_of, own_shards, scan
from pad_pipeline.workflows.runs.spec import RunSpec


def build(source: Source, out: Path | str, models: ModelSettings, view: View, options: RunOptions) -> Totals:
    """Annotate the images of `source` with the models and write shards into `out`: `pad build`.

    `out` is a folder or a URL. Its finished shards are kept.

    Returns:
        The counts of `TOTALS` over all shards.

    Raises:
        UserError: an input, a model or the output folder can't be used, or a stage is broken.
    """
    folder = open_out(out, options.fork)  # first, so that a wrong folder is found before gigabytes are fetched
    spec = build_spec(source, models, view, options.redo_from, options.private_addresses)
    return carry_out(spec, source, folder, options, forked=folder_at(out) if options.fork else None)


def build_spec(
    source: Source,
    models: ModelSettings,
    view: View,
    redo_from: RedoFrom = "tag",
    private: bool = False,
) -> RunSpec:
    """Return the specification of a build. Missing weights are fetched.

    Raises:
        UserError: `redo_from` does not fit the source or the models, or a model is not available.
    """
    earlier = _earlier_facts(source, models, redo_from) if redo_from != STEPS[0] else {}
    embedder = LabelEmbedder(models.llm)
    check_llm("llm.llm", embedder.folder)
    annotators = models.annotators_from(redo_from)
    for one in annotators:
        if isinstance(one, TaggerSettings):
            _check_labels(embedder, one)
    fingerprints = models.fingerprints(redo_from) | embedder.fingerprints()
    code = " ".join(filter(None, (one.code_version for one in annotators)))
    chain = partial(
        annotation_chain,
        models=models,
        view=view,
        root=source.root,
        redo_from=redo_from,
        private=private,
    )
    return RunSpec(
        kind="build",
        view=view,
        embedding_width=embedder.width,
        settings=models.as_sections() | earlier,
        fingerprints=fingerprints,
        chain=chain,
        code=code,
        model_bytes=None if code else _bytes_of(annotators),  # own classes may load more than the files they name
        reads_texts=any(isinstance(one, CaptionsSettings) for one in annotators),
    )


def _bytes_of(annotators: Iterable[StageSettings]) -> int | None:
    """Return the size of the models' files; None if a size is not known."""
    sizes = [file.size for one in annotators for file in one.files()]
    return None if None in sizes else sum(filter(None, sizes))


def _check_labels(embedder: LabelEmbedder, tagger: TaggerSettings) -> None:
    """Check that each tag of a tag list has an embedding; otherwise its images would fail, hours later."""
    for label in read_tags(tagger)[0]:
        try:
            if not embedder.tokens(label):
                raise ValueError(f"the label {label!r} has no token in {embedder.settings.llm}")
        except ValueError as error:
            raise UserError("tagger.tag_list", tagger.tag_list, str(error), "correct this tag in the file") from error


def _earlier_facts(source: Source, models: ModelSettings, redo_from: RedoFrom) -> dict[str, Any]:
    """Return the settings that describe the earlier run, some of whose results are kept."""
    if not isinstance(source, ShardsSource):
        rule = "only images that come from PAD shards have been annotated before"
        raise UserError("redo_from", redo_from, rule, "name a folder of shards in `images`")
    if redo_from != STEPS[-1] and not any(redo_from in one.steps for one in models.annotators):
        rule = f"the models file has no section [{section_of(redo_from)}], which does this step"
        raise UserError("redo_from", redo_from, rule, "name a file of `models` that has it, or another step")
    first = models.annotators_from(redo_from)[0] if redo_from != STEPS[-1] else None
    if first and first.steps[0] != redo_from and redo_from in first.steps:
        rule = f"a {first.section} does {', '.join(first.steps)} in one"
        later = STEPS[STEPS.index(cast(RedoFrom, first.steps[-1])) + 1]
        raise UserError("redo_from", redo_from, rule, f"begin with {first.steps[0]} or {later}")
    run = source.shards.run
    return {"redo_from": redo_from, "earlier": {"settings": run.settings, **run.fingerprints}}


def import_coco(
    source: Source,
    out: Path | str,
    labels: LabelSettings,
    decoding: DecodeSettings,
    view: View,
    options: RunOptions,
    kind: str = "coco",
) -> Totals:
    """Write shards with human regions into `out`: `pad import`. `kind` is the name of the annotations' format. Result
    and errors are the same as in `build`."""
    folder = open_out(out, options.fork)
    embedder = LabelEmbedder(labels)
    check_llm("llm.llm", embedder.folder)
    spec = RunSpec(
        kind=f"import-{kind}",
        view=view,
        embedding_width=embedder.width,
        settings={"llm": labels.model_dump(mode="json"), "decode": decoding.model_dump(mode="json")},
        fingerprints=embedder.fingerprints(),
        chain=partial(
            import_chain,
            decoding=decoding,
            labels=labels,
            view=view,
            root=source.root,
            private=options.private_addresses,
        ),
    )
    with rename_field(image_root="images"):
        totals = carry_out(spec, source, folder, options, forked=folder_at(out) if options.fork else None)
    note_partial(folder, options, source.counts)
    return totals


def note_partial(folder: Folder, options: RunOptions, counts: Tally) -> None:
    """Count the images of a finished run of which a stage left annotations out."""
    shards = ShardFolder(folder)
    own = own_shards(shards.run, options)
    for name in (name for name in shards.names if is_file_of(own, f"{name}.tar")):
        try:
            rows = shards.index(name)
        except UserError:
            counts.note("shards of an earlier call with a damaged index, see `pad verify`", name)
            continue
        for row in rows:
            if row["reason"] and row["status"] != "failed":
                counts.note("images of which annotations are left out", f"{row['source']}: {row['reason']}")


def open_out(out: Path | str, fork: Path | str | None = None) -> Folder:
    """Return the folder to write into: `out`, or `fork` for a fork of the run in `out`.

    Raises:
        UserError: the folder can't be written, or is neither new nor empty nor a run.
    """
    if not str(out):
        raise UserError("out", "", "it is empty", "name a folder")
    if fork:
        with rename_field(shards="out"):
            Run.read(folder_at(out))  # raises a UserError if there is no run to fork
        if resolved(fork) == resolved(out):
            raise UserError("fork", fork, "it is the same folder as `out`", "name another")
    field, where = ("fork", fork) if fork else ("out", out)
    with rename_field(shards=field):
        folder = folder_at(where)
    if not folder.remote:
        folder = Folder(folder.path.resolve())
    claim_folder(folder, RUN_NAME, field=field, hidden=False)
    return folder


def carry_out(
    spec: RunSpec, source: Source, folder: Folder, options: RunOptions, forked: Folder | None = None
) -> Totals:
    """Lock `folder`, plan, and run the unfinished shards. Arguments as in `prepare`, result as in `build`."""
    created, share = not folder.exists(), options.share
    with ExitStack() as held:
        try:
            folder.create()
            if created:
                held.callback(_remove_if_empty, folder)
            held.enter_context(locked(folder, str(share or "")))
            if share is None:
                folder.clean()
            run, existing = prepare(spec, source, folder, options, forked)
        except OSError as error:
            raise write_error(folder, error) from error
        return _work(run, existing, folder, spec, options)


def _remove_if_empty(folder: Folder) -> None:
    if not folder.remote and folder.path.is_dir() and not any(folder.path.iterdir()):
        folder.path.rmdir()  # the run was refused before it wrote anything


def _work(run: Run, existing: Scan, folder: Folder, spec: RunSpec, options: RunOptions) -> Totals:
    """Run the unfinished shards, or on a retry the shards with failed images. Return the counts over all shards."""
    retry, own = options.retry_failed, own_shards(run, options)
    options = with_cpu_workers(options, run.shards, spec.model_bytes)
    if options.part:
        folder.clean(mine=partial(is_file_of, own))
    if retry:
        # A retry that was killed between the two files of a shard left it incomplete. Make the whole shard again.
        numbers = sorted({*existing.with_failures, *existing.incomplete})
        images = existing.totals["failed"]
    else:
        if options.sample:
            own = range(min(options.sampled_images // run.shard_size, run.shards))
        numbers = [number for number in own if number not in existing.finished]
        images = sum(min(run.shard_size, run.images - number * run.shard_size) for number in numbers)
        where = f" of part {options.part}" if options.part else ""
        if there := len(existing.finished.intersection(own)):
            note(f"{there} of {len(own)} shards{where} are finished already and stay as they are.")
    progress = Progress(spec.title or spec.kind, len(numbers), images, errors, folder, str(options.share or ""))

    def attempts(number: int) -> Attempts:
        rows = min(run.shard_size, run.images - number * run.shard_size)
        return Attempts(number, rows, retry=retry and number not in existing.incomplete)

    of_run = folder, run.identity, run.images, options.used_threads
    chain = [link._replace(breaker=options.breaker) for link in spec.chain(*of_run)]
    if numbers:  # otherwise Ray would start for nothing
        note_environment(run.environment, environment(options.used_threads))  # a new run has this environment
        engine = (
            RayEngine(options.cluster, options.worker_range)
            if options.engine == "ray"
            else LocalEngine(options.isolated)
        )
        try:
            with closing(engine.run(chain, map(attempts, numbers), progress)) as results:
                progress.follow(results)
        finally:
            with suppress(OSError):
                folder.clean(mine=partial(is_file_of, own))  # what workers that were killed left unfinished
        check_there(folder, {*existing.finished, *numbers})
    totals = scan(folder, run.identity, own).totals if retry else existing.totals + progress.found
    return {name: totals[name] for name in TOTALS}
