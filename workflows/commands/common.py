"""What the commands share: options that several have, and what is said in the same words. Imports nothing heavy."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pad_pipeline.console import console, errors
from pad_pipeline.errors import UserError
from workflows.finite import finite

if TYPE_CHECKING:
    from pad_pipeline.geometry import View
    from workflows.options import RunOptions


class Engine(StrEnum):
    """Where the stages run."""

    ray = "ray"
    local = "local"


class Placement(StrEnum):
    """Which models share a Ray worker."""

    auto = "auto"
    fused = "fused"
    pools = "pools"


class Depth(StrEnum):
    """What is noted of each input, to know it again."""

    names = "names"
    sizes = "sizes"
    sample = "sample"
    full = "full"


class RedoFrom(StrEnum):
    """The first stage that is done again."""

    tag = "tag"
    ground = "ground"
    segment = "segment"
    patchify = "patchify"


class Fit(StrEnum):
    """How a picture is brought to the view's square."""

    crop = "crop"
    pad = "pad"
    stretch = "stretch"


class Projector(StrEnum):
    """Which projector."""

    mlp = "mlp"
    linear = "linear"
    c_abstractor = "c-abstractor"


Out = Annotated[
    str,
    typer.Option(help="Folder or URL (s3://, gs://) to write into: new, empty, or an earlier run to continue."),
]
Models = Annotated[
    str,
    typer.Option(
        help="`paper` (RAM), `plus` (RAM++), `miniature` (ships with pad; drawn scenes only), or a TOML file."
    ),
]
ViewFit = Annotated[
    Fit | None, typer.Option(help="crop (default): LLaVA-1.5's stage 1. pad: its stage 2. stretch: neither kept.")
]
ViewSize = Annotated[
    int | None,
    typer.Option(help="Edge of the vision encoder's input, in pixels (336; miniature: 112).", min=1, max=4096),
]
Patch = Annotated[
    int | None, typer.Option(help="Edge of one patch, in pixels (14, a grid of 24 x 24; miniature: 8, 14 x 14).", min=1)
]
ShardSize = Annotated[int, typer.Option(help="Images in one shard.", min=1, max=1_000_000)]
EngineOption = Annotated[Engine, typer.Option(help="ray: Ray on this machine or a cluster. local: this process.")]
Address = Annotated[str, typer.Option(help="Address of a running Ray cluster, such as auto or ray://host:10001.")]
Workers = Annotated[int, typer.Option(help="Ray workers for each pool; 0 for one per GPU, or one.", min=0, max=100_000)]
PlacementOption = Annotated[
    Placement,
    typer.Option(
        help="fused: all models in one worker for each GPU. pools: workers of its own for each stage. "
        "auto: fused where every GPU can hold all."
    ),
]
Pools = Annotated[
    list[str] | None,
    typer.Option(
        "--pool", help="With pools: STAGE=WORKERS or STAGE=WORKERSxGPUS, such as tag=2x0.25. May be repeated."
    ),
]
Limit = Annotated[int | None, typer.Option(help="Take the first images alone.", min=1, max=10**12)]
Fingerprint = Annotated[
    Depth,
    typer.Option(
        help="What is noted of each image, to know it again on a rerun: names; sizes too; the sha256 of 64 of them; "
        "or of every one (reads everything once)."
    ),
]
Fork = Annotated[
    str | None,
    typer.Option(
        help="New folder: leave the run in --out as it is, and make this one there; shards that would come out the "
        "same are copied."
    ),
]
AcceptCode = Annotated[
    bool, typer.Option("--accept-changed-code", help="Continue a run that another version of pad's code began.")
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Try the failed images of finished shards again, and nothing else.")
]
MaxFailed = Annotated[
    str, typer.Option(help="Exit with 1 where more images failed, in all: a count, or a share such as 5%.")
]
Breaker = Annotated[int, typer.Option(help="Stop when a stage fails for this many images in a row; 0: never.", min=0)]
Threads = Annotated[int, typer.Option(help="CPU threads of each model; 0 for all cores.", min=0, max=1024)]
AsJson = Annotated[bool, typer.Option("--json", help="For programs: the result as JSON on standard output.")]
Shards = Annotated[str, typer.Argument(help="Folder or URL that `pad build` or `pad import` wrote.")]


def print_json(value: Any) -> None:
    """A result for programs; what no JSON can hold (NaN) as null."""
    typer.echo(json.dumps(finite(value), indent=1, default=str))


def counted(number: int, what: str) -> str:
    """`1 image`, `2 images`."""
    return f"{number} {what}{'s' * (number != 1)}"


def escaped(text: str) -> str:
    """Text of unknown origin inside markup."""
    from rich.markup import escape

    return escape(plain(text).plain)


def plain(text: str) -> Any:
    """Text of unknown origin, shown as it is: no markup, no control characters."""
    from rich.text import Text

    return Text("".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text))


def chosen_view(usual: View, size: int | None, patch: int | None, fit: Fit | None) -> View:
    """The models' own view, changed by what the options say."""
    from pydantic import ValidationError

    from workflows.settings import settings_error

    size, patch = size or usual.size, patch or usual.patch
    if size % patch:
        raise UserError("--view-size", size, f"it must be a multiple of --patch {patch}", "correct one of them")
    try:
        return type(usual)(size=size, patch=patch, fit=fit.value if fit else usual.fit)
    except ValidationError as error:
        raise settings_error(error, "--view-size and --patch") from error


def run_options(
    engine: Engine,
    address: str,
    workers: int,
    placement: Placement,
    pools: list[str] | None,
    shard_size: int,
    limit: int | None,
    depth: Depth,
    fork: str | None,
    accept_changed_code: bool,
    retry_failed: bool,
    breaker: int,
    threads: int,
    redo_from: RedoFrom = RedoFrom.tag,
) -> RunOptions:
    """The options of a run, checked against each other."""
    if engine is Engine.local:
        given = {
            "--address": address,
            "--workers": workers,
            "--placement": "" if placement is Placement.auto else placement.value,
            "--pool": " ".join(pools or []),
        }
        for option, value in given.items():
            if value:
                raise UserError(option, value, "it goes with --engine ray", "leave it out, or use --engine ray")
    if fork and retry_failed:
        raise UserError("--fork", fork, "it makes a new run, and --retry-failed mends one", "leave one of them out")

    from workflows.options import RunOptions

    return RunOptions(
        shard_size=shard_size,
        limit=limit,
        redo_from=redo_from.value,
        depth=depth.value,
        engine=engine.value,
        address=address,
        workers=workers,
        placement=placement.value,
        pools=_pools(pools),
        threads=threads,
        fork=fork,
        accept_changed_code=accept_changed_code,
        retry_failed=retry_failed,
        breaker=breaker,
    )


def _pools(options: list[str] | None) -> dict[str, Any]:
    if not options:
        return {}
    from workflows.placement import parse_pools

    return parse_pools(options)


def supervise() -> None:
    """Before anything is loaded that would not survive a fork."""
    from workflows import supervise

    supervise.supervised()


def check_max_failed(text: str) -> None:
    """Refuse a --max-failed that is neither a count nor a share, before anything is done."""
    from workflows.limits import failures_allowed

    failures_allowed(text, 0)


def finish(
    totals: dict[str, int], out: str, counts: dict[str, int], max_failed: str, as_json: bool, source: str = "--images"
) -> None:
    """Say what came out; exit code 1 where more images failed than may.

    Raises:
        UserError: all of them failed; not asked where `source`, the option that named them, is empty.
    """
    from workflows.limits import failures_allowed

    if as_json:
        print_json({"out": out, **totals, "left_out": counts})
    for what, number in () if as_json else counts.items():
        console.print(plain(f"{number} {what}"), highlight=False)
    shown = errors if as_json else console
    shown.print(
        f"{counted(totals['images'], 'image')} in {out}: {totals['ok']} ok, {totals['empty']} empty, "
        f"{totals['failed']} failed; {counted(totals['regions'], 'region')}.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if totals["failed"]:
        shown.print(f"`pad stats {out}` says why images failed.", markup=False, highlight=False, soft_wrap=True)
    if source and totals["failed"] == totals["images"]:
        raise UserError(source, counted(totals["images"], "image"), "every one of them failed", f"see pad stats {out}")
    allowed = failures_allowed(max_failed, totals["images"])
    if totals["failed"] > allowed:
        failed = f"{totals['failed']} of {counted(totals['images'], 'image')} failed"
        text = f"{failed}; --max-failed {max_failed} allows {allowed}. `pad stats {out}` says why."
        errors.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1)
