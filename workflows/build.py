"""Plan, run, commit: what `pad build` and `pad import` have in common."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console

from pad_pipeline import __version__
from pad_pipeline.errors import UserError
from pad_pipeline.geometry import View
from pad_pipeline.labels import LabelSettings
from pad_pipeline.pictures import DecodeSettings
from pad_pipeline.plan import PLAN_NAME, write_plan
from pad_pipeline.records import shard_name
from pad_pipeline.shards.reader import ShardFolder
from pad_pipeline.shards.run import RUN_NAME, Run
from pad_pipeline.sources import Source
from workflows.chain import annotation_chain, import_chain, label_fingerprint, weight_fingerprints
from workflows.engines import Engine, RayEngine, run_local
from workflows.links import Link, unwritable
from workflows.models import ModelSettings
from workflows.progress import RunProgress, Totals

NEW_PLAN = f".{PLAN_NAME}.new"

console = Console(stderr=True)


def build(
    source: Source,
    out: Path,
    models: ModelSettings,
    view: View,
    *,
    shard_size: int = 512,
    engine: Engine = "ray",
    address: str = "",
    workers: int = 0,
    threads: int = 0,
) -> Totals:
    """`pad build`: annotate the images of `source` with the models and write shards into `out`.

    Args:
        source: the images.
        out: the run's folder; finished shards in it are kept.
        models: which models.
        view: what the vision encoder will see.
        shard_size: images in one shard.
        engine: where the stages run.
        address: of a Ray cluster, for `ray`.
        workers: actors for each stage, for `ray`; 0 for one per GPU.
        threads: CPU threads of each model; 0 for all cores of this machine.

    Returns:
        Images, `ok`, `empty`, `failed`, tags and regions over all shards.

    Raises:
        UserError: an input, a model or the output folder can't be used.
    """
    _check_out(out)  # before gigabytes are fetched
    threads = threads or len(os.sched_getaffinity(0))
    labels, width = label_fingerprint(models.llm)
    run = Run(
        kind="build",
        images=0,
        shards=0,
        shard_size=shard_size,
        counts={},
        view=view,
        embedding_width=width,
        settings=models.model_dump(mode="json", exclude={"view"}),  # the view in use stands for itself
        fingerprints=weight_fingerprints(models) | labels,
    )
    compute = models.compute.model_copy(update={"threads": threads})
    chain = annotation_chain(out.resolve(), models, view, source.root.resolve(), compute)
    return _run(run, source, out, chain, engine, address, workers)


def import_coco(
    source: Source,
    out: Path,
    labels: LabelSettings,
    decoding: DecodeSettings,
    view: View,
    *,
    shard_size: int = 512,
    engine: Engine = "local",
    address: str = "",
    workers: int = 0,
) -> Totals:
    """`pad import coco`: shards of the same format from human regions. Arguments and result as `build`'s."""
    fingerprint, width = label_fingerprint(labels)
    settings: dict[str, Any] = {
        "llm": labels.model_dump(mode="json"),
        "decode": decoding.model_dump(mode="json"),
    }
    run = Run(
        kind="import-coco",
        images=0,
        shards=0,
        shard_size=shard_size,
        counts={},
        view=view,
        embedding_width=width,
        settings=settings,
        fingerprints=fingerprint,
    )
    chain = import_chain(out.resolve(), decoding, labels, view, source.root.resolve())
    return _run(run, source, out, chain, engine, address, workers)


def _run(run: Run, source: Source, out: Path, chain: list[Link], engine: Engine, address: str, workers: int) -> Totals:
    numbers = prepare(run, source, out)
    done = run.shards - len(numbers)
    if done:
        console.print(f"Finished already, and left as they are: {done} of {run.shards} shards.", highlight=False)
    progress = RunProgress(run.kind, len(numbers), console)
    if engine == "local":
        progress.follow(run_local(chain, numbers, progress.stage))
    else:
        progress.follow(RayEngine(address, workers).run(chain, numbers))
    return totals(out)


def prepare(run: Run, source: Source, out: Path) -> list[int]:
    """Plan the source, check the plan against what is in `out`, and say which shards are left to do.

    Raises:
        UserError: `out` holds something else, or finished shards of other inputs, settings or weights.
    """
    _check_out(out)
    created = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        fresh = out / NEW_PLAN
        try:
            run.images, there, plan_hash = write_plan(source, fresh, run.shard_size)
            if not run.images:
                rule = "there is no image in it" + "".join(f"; {n} {what}" for what, n in source.counts.items())
                raise UserError("--images", source.origin, rule, "name a folder or a JSON with images")
            if not there:
                rule = f"none of the {run.images} images that {source.origin} lists is there"
                raise UserError("image root", source.root, rule, "correct --image-root (or --images, for COCO)")
            run.shards = -(-run.images // run.shard_size)
            run.counts = dict(sorted(source.counts.items()))
            run.fingerprints = run.fingerprints | {"inputs": plan_hash, "code": __version__}
            # Both files: a tar without its index was never committed, and an index without its tar was robbed of it.
            finished = {path.stem for path in out.glob("pad-*.parquet") if path.with_suffix(".tar").is_file()}
            old = Run.read(out, "--out") if (out / RUN_NAME).is_file() else None
            if old and finished:
                _check_same(old, run, out)
            else:  # nothing to keep: a first attempt with a wrong setting must not stand in the way of the next
                run.write(out)
            fresh.replace(out / PLAN_NAME)
        finally:
            fresh.unlink(missing_ok=True)
            if created and not any(out.iterdir()):
                out.rmdir()
    except OSError as error:
        raise unwritable(out, error) from error
    return [number for number in range(run.shards) if shard_name(number) not in finished]


def _check_out(out: Path) -> None:
    """A folder is ours by its run.json; before that is written, it holds a plan under its temporary name at most."""
    if out.exists() and not out.is_dir():
        raise UserError("--out", out, "this is a file", "name a folder that is new, empty, or a run of pad's")
    if out.is_dir() and not (out / RUN_NAME).is_file():
        ours = {NEW_PLAN, f".{NEW_PLAN}.partial", f".{RUN_NAME}.partial"}
        foreign = sorted(path.name for path in out.iterdir() if path.name not in ours)
        if foreign:
            rule = f"it holds something else ({foreign[0]}) and no {RUN_NAME}"
            raise UserError("--out", out, rule, "name a folder that is new, empty, or a run of pad's")


def _check_same(old: Run, new: Run, out: Path) -> None:
    if differences := old.differences(new):
        shown = "; ".join(differences[:3]) + ("; ..." if len(differences) > 3 else "")
        remedy = "run with what it was made with, or name another --out"
        raise UserError("--out", out, f"its shards were made with something else ({shown})", remedy)


def totals(out: Path) -> Totals:
    """Images by status, tags and regions over all finished shards."""
    result = Counter(dict.fromkeys(("images", "ok", "empty", "failed", "tags", "regions"), 0))
    for _, row in ShardFolder(out).rows():
        result.update({"images": 1, row["status"]: 1, "tags": row["tags"], "regions": row["regions"]})
    return dict(result)
