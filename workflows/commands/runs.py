"""The options of commands that write shards, and the last lines that these commands print."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError

from pad_pipeline.console import errors, note, say
from pad_pipeline.errors import UserError
from pad_pipeline.geometry import View
from pad_pipeline.workflows.commands.common import CLUSTER, INPUT, RUN, VIEW, AsJson, counted, plain, print_json
from pad_pipeline.workflows.commands.options import OptionValues, option, options
from pad_pipeline.workflows.engine.ray_session import refuse_without_ray
from pad_pipeline.workflows.runs.options import Part, RunOptions, failures_allowed

if TYPE_CHECKING:
    from pad_pipeline.sources.base import Tally

ISOLATED = True
"""Whether the engine `local` of a command works in a child process; see `RunOptions.isolated`."""

_OUT = option(RUN, "Folder or URL (s3://, gs://) to write into: new, empty, or with an earlier run to continue.")
_MAX_FAILED = option(RUN, "End with exit code 1 if more images of the run failed: a count, or a share such as 5%.")
REWRITE_OPTIONS = (
    {"out": (Annotated[str, _OUT], inspect.Parameter.empty)}
    | options(RunOptions, RUN, "limit")
    | options(RunOptions, RUN, "shard_size", unset="as before")
    | {"max_failed": (Annotated[str, _MAX_FAILED], "100%")}
    | options(RunOptions, RUN, "breaker accept_changed_code")
    | options(RunOptions, CLUSTER, "engine address workers gpus wait part")
    | {"as_json": (AsJson, False)}
)
"""The options of `pad retarget`, `pad filter` and `pad merge`."""
IMPORT_OPTIONS = (
    REWRITE_OPTIONS
    | options(RunOptions, INPUT, "strict private_addresses")
    | options(RunOptions, RUN, "shard_size depth=fingerprint retry_failed")
    | options(RunOptions, RUN, "fork", str)
)
"""The options of `pad import`."""
BUILD_OPTIONS = (
    options(RunOptions, INPUT, "redo_from sample sample_seed")
    | IMPORT_OPTIONS
    | options(RunOptions, CLUSTER, "engine", default="ray")
    | options(RunOptions, CLUSTER, "threads")
)
"""The options of `pad build`."""
VIEW_OPTIONS = options(View, VIEW, "fit size=view-size patch", unset="as the models have it")
"""The view, for a command that takes it from the models otherwise."""
OLD_VIEW_OPTIONS = options(View, VIEW, "fit size=view-size patch", unset="as before")
"""The view, for a command that keeps the view of the shards otherwise."""


def changed_view(view: View, given: OptionValues) -> View:
    """Return `view` with those values of `given` that belong to a view.

    Raises:
        UserError: the values contradict each other.
    """
    chosen = view.model_dump() | {name: given[name] for name in View.model_fields if name in given}
    try:
        changed = View(**chosen)
    except ValidationError as error:
        rule = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError("size", chosen["size"], rule, "correct it, or `patch`") from error
    if changed.covered < changed.size:
        note(f"note: a view of {changed.size} pixels is {changed.grid_text}; no patch shows the rest.")
    return changed


def run_options(given: OptionValues, preload: bool = True) -> RunOptions:
    """Return the options of a run. With `preload`, the child process of an isolated run starts now, so that it imports
    while this process plans.

    Raises:
        UserError: two options contradict each other, `max_failed` is neither a count nor a share, or `part` is no part.
    """
    failures_allowed(given["max_failed"], 0)
    if given.get("fork") and given.get("retry_failed"):
        rule = "it makes a new run, and `retry_failed` works on one"
        raise UserError("fork", given["fork"], rule, "leave one of them out")
    if given["engine"] == "local":
        refuse_without_ray(address=given["address"], workers=given["workers"], gpus=given.get("gpus"))
    if given.get("strict") and given.get("depth") == "kept":
        raise UserError("strict", True, "with a plan that is kept, nothing is listed", "leave it out, or `depth`")
    if given["part"]:
        Part.parse(given["part"])
    chosen = {name: value for name, value in given.items() if name in RunOptions.model_fields}
    options = RunOptions(**chosen, isolated=ISOLATED)
    if preload and options.engine == "local" and options.isolated:
        from pad_pipeline.workflows.engine.child import Child

        Child.preload("pad_pipeline.workflows.runs.chains")
    return options


def _still_missing(out: str) -> str:
    """Return a line about the shards that all parts of a run together have not finished yet."""
    from pad_pipeline.shards.reader import ShardFolder

    shards = ShardFolder(out)
    if missing := shards.run.shards - len(shards.names):
        return f"{missing:,} of {counted(shards.run.shards, 'shard')} of the whole run are still missing."
    return f"The whole run is finished: {counted(shards.run.shards, 'shard')}."


def finish(
    totals: dict[str, int],
    run: OptionValues,
    counts: Tally,
    source: str = "images",
    more: Mapping[str, object] = MappingProxyType({}),
) -> None:
    """Print the counts of a run and the `counts` of records that its source left out; `more` goes into the JSON. End
    the command with exit code 1 if more images failed than `max_failed` allows.

    Raises:
        UserError: about the parameter `source`: all images failed. An empty `source` allows this.
    """
    out, as_json, max_failed = run.get("fork") or run["out"], run["as_json"], run["max_failed"]
    if as_json:
        print_json({"out": out, **totals, "left_out": dict(counts), **more})
    else:
        for what, number in counts.items():
            example = f" (the first: {counts.examples[what]})" if what in counts.examples else ""
            say(plain(f"{number} {what}{example}"))
    say_total = note if as_json else say
    say_total(
        f"{counted(totals['images'], 'image')} in {out}: {totals['ok']} ok, {totals['empty']} empty, "
        f"{totals['failed']} failed; {counted(totals['regions'], 'region')}."
    )
    if totals["failed"]:
        say_total(f"`pad stats {out}` says why images failed.")
    if run["part"]:
        say_total(_still_missing(str(out)))
    if source and totals["failed"] == totals["images"] and not (run["part"] and not totals["images"]):
        raise UserError(source, counted(totals["images"], "image"), "every one of them failed", f"see pad stats {out}")
    allowed = failures_allowed(max_failed, totals["images"])
    if totals["failed"] > allowed:
        failed = f"{totals['failed']} of {counted(totals['images'], 'image')} failed"
        errors.quiet = False  # also a quiet command prints the error that ends it
        note(f"{failed}; --max-failed {max_failed} allows {allowed}. `pad stats {out}` says why.", "red")
        raise typer.Exit(1)
