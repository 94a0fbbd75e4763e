"""The options that several commands have, as dataclasses that stand for them in a command's signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import StrEnum
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from pad_pipeline.errors import UserError
from pad_pipeline.workflows.commands.common import Engine, EngineOption, Fit, Threads

if TYPE_CHECKING:
    from pad_pipeline.geometry import View
    from pad_pipeline.workflows.runs.options import RunOptions


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


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer sees it: each parameter that is one of these dataclasses becomes an option for each field.

    Names, help and defaults are the fields' own, and the command gets the dataclass filled in.
    """
    hints = get_type_hints(command, include_extras=True)
    flags = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    options: dict[str, tuple[Any, Any]] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        if name not in flags:
            options[name] = hints[name], parameter.default
            continue
        kinds = get_type_hints(flags[name], include_extras=True)
        options |= {field.name: (kinds[field.name], field.default) for field in fields(flags[name])}

    @wraps(command)
    def called(**given: Any) -> None:
        filled = {
            name: kind(**{field.name: given.pop(field.name) for field in fields(kind)})  # type: ignore[operator]
            for name, kind in flags.items()
        }
        command(**given, **filled)

    called.__annotations__ = {name: kind for name, (kind, _) in options.items()}
    called.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for name, (kind, default) in options.items()
        ]
    )
    return called


@dataclass(frozen=True)
class ViewFlags:
    """What of the view is not as the models, or the shards, have it."""

    fit: Annotated[
        Fit | None, typer.Option(help="crop (default): LLaVA-1.5's stage 1. pad: its stage 2. stretch: neither kept.")
    ] = None
    view_size: Annotated[
        int | None,
        typer.Option(help="Edge of the vision encoder's input, in pixels (336; miniature: 112).", min=1, max=4096),
    ] = None
    patch: Annotated[
        int | None,
        typer.Option(help="Edge of one patch, in pixels (14, a grid of 24 x 24; miniature: 8, 14 x 14).", min=1),
    ] = None

    def over(self, default: View) -> View:
        """`default`, changed by what was said.

        Raises:
            UserError: there is no such view.
        """
        from pydantic import ValidationError

        from pad_pipeline.workflows.toml import settings_error

        size, patch = self.view_size or default.size, self.patch or default.patch
        if size % patch:
            raise UserError("view_size", size, f"it must be a multiple of `patch` {patch}", "correct one of them")
        fit = self.fit or Fit(default.fit)
        try:
            return type(default)(size=size, patch=patch, fit=fit.value)
        except ValidationError as error:
            raise settings_error(error, "--view-size and --patch") from error


@dataclass(frozen=True)
class RunFlags:
    """How a run is made: `pad retarget`, `pad filter` and `pad merge` have these alone."""

    limit: Annotated[int | None, typer.Option(help="Take the first images alone.", min=1, max=10**12)] = None
    shard_size: Annotated[
        int | None, typer.Option(help="Images in one shard; as many as before.", min=1, max=1_000_000)
    ] = None
    max_failed: Annotated[
        str, typer.Option(help="Exit with 1 where more images failed, in all: a count, or a share such as 5%.")
    ] = "100%"
    breaker: Annotated[
        int, typer.Option(help="Stop when a stage fails for this many images in a row; 0: never.", min=0)
    ] = 100
    accept_changed_code: Annotated[
        bool, typer.Option("--accept-changed-code", help="Continue a run that another version of pad's code began.")
    ] = False
    engine: EngineOption = Engine.local
    address: Annotated[
        str, typer.Option(help="Address of a running Ray cluster, such as auto or ray://host:10001.")
    ] = ""
    workers: Annotated[
        int, typer.Option(help="Ray workers for each pool; 0 for one per GPU, or one.", min=0, max=100_000)
    ] = 0

    def options(self) -> RunOptions:
        """The options of the run, checked against each other.

        Raises:
            UserError: two of them contradict each other, or --max-failed is neither a count nor a share.
        """
        from pad_pipeline.workflows.runs.options import RunOptions, failures_allowed

        failures_allowed(self.max_failed, 0)
        for option, value in self._of_ray().items():
            if value and self.engine is Engine.local:
                raise UserError(option, value, "it goes with --engine ray", "leave it out, or use --engine ray")
        return RunOptions(
            shard_size=self.shard_size or RunOptions.shard_size,
            limit=self.limit,
            accept_changed_code=self.accept_changed_code,
            breaker=self.breaker,
            engine=self.engine.value,
            address=self.address,
            workers=self.workers,
        )

    def _of_ray(self) -> dict[str, Any]:
        return {"--address": self.address, "--workers": self.workers}


@dataclass(frozen=True)
class ImportFlags(RunFlags):
    """What is asked of a run that reads images, besides."""

    shard_size: Annotated[int, typer.Option(help="Images in one shard.", min=1, max=1_000_000)] = 512
    fingerprint: Annotated[
        Depth,
        typer.Option(
            help="What is noted of each image, to know it again on a rerun: names; sizes too; the sha256 of 64 of "
            "them; or of every one (reads everything once)."
        ),
    ] = Depth.sample
    fork: Annotated[
        str | None,
        typer.Option(
            help="New folder: leave the run in --out as it is, and make this one there; shards that would come out "
            "the same are copied."
        ),
    ] = None
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try the failed images of finished shards again, and nothing else.")
    ] = False

    def options(self) -> RunOptions:
        """See `RunFlags.options`."""
        if self.fork and self.retry_failed:
            rule = "it makes a new run, and --retry-failed mends one"
            raise UserError("--fork", self.fork, rule, "leave one of them out")
        return replace(
            super().options(),
            depth=self.fingerprint.value,
            fork=self.fork,
            retry_failed=self.retry_failed,
        )


@dataclass(frozen=True)
class BuildFlags(ImportFlags):
    """What is asked of a run that annotates, besides."""

    engine: EngineOption = Engine.ray
    placement: Annotated[
        Placement,
        typer.Option(
            help="fused: all models in one worker for each GPU. pools: workers of its own for each stage. "
            "auto: fused where every GPU can hold all."
        ),
    ] = Placement.auto
    pools: Annotated[
        list[str] | None,
        typer.Option(
            "--pool", help="With pools: STAGE=WORKERS or STAGE=WORKERSxGPUS, such as tag=2x0.25. May be repeated."
        ),
    ] = None
    threads: Threads = 0

    def options(self) -> RunOptions:
        """See `ImportFlags.options`."""
        from pad_pipeline.workflows.engine.placement import parse_pools

        options, pools = super().options(), parse_pools(self.pools or [])
        return replace(options, placement=self.placement.value, pools=pools, threads=self.threads)

    def _of_ray(self) -> dict[str, Any]:
        placement = "" if self.placement is Placement.auto else self.placement.value
        return super()._of_ray() | {"--placement": placement, "--pool": " ".join(self.pools or [])}
