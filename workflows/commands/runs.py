"""The options of commands that write shards."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated

from pad_pipeline.errors import UserError
from pad_pipeline.workflows.commands.common import CLUSTER, INPUT, RUN, VIEW, AsJson, option
from pad_pipeline.workflows.commands.options import Given, Options, options

ISOLATED = True
"""Whether the engine `local` of a command works in a child process; tests that need none switch it off."""

if TYPE_CHECKING:
    from pad_pipeline.geometry import View
    from pad_pipeline.workflows.runs.options import RunOptions


def view_options(unset: str = "as the models have it") -> Options:
    """The options of a view; what isn't given is as the models, or the shards, have it."""
    from pad_pipeline.geometry import View

    return options(View, VIEW, "fit size=view-size patch", unset=unset)


def changed_view(view: View, given: Given) -> View:
    """A view with what was given of another.

    Raises:
        UserError: there is no such view.
    """
    chosen = view.model_dump() | given
    try:
        return type(view)(**chosen)
    except ValueError as error:
        rule = error.errors()[0]["msg"].removeprefix("Value error, ")  # type: ignore[attr-defined]
        raise UserError("size", chosen["size"], rule, "correct it, or `patch`") from error


def rewrite_options() -> Options:
    """The options of `pad retarget`, `pad filter` and `pad merge`."""
    from pad_pipeline.workflows.runs.options import RunOptions

    out = option(RUN, "Folder or URL (s3://, gs://) to write into: new, empty, or an earlier run to continue.")
    max_failed = option(RUN, "Exit with 1 where more images failed, in all: a count, or a share such as 5%.")
    return (
        {"out": (Annotated[str, out], inspect.Parameter.empty)}
        | options(RunOptions, RUN, "limit")
        | options(RunOptions, RUN, "shard_size", unset="as before")
        | {"max_failed": (Annotated[str, max_failed], "100%")}
        | options(RunOptions, RUN, "breaker accept_changed_code")
        | options(RunOptions, CLUSTER, "engine address workers")
        | {"as_json": (AsJson, False)}
    )


def import_options() -> Options:
    """The options of a run that reads images, too."""
    from pad_pipeline.workflows.runs.options import RunOptions

    return (
        rewrite_options()
        | options(RunOptions, RUN, "shard_size depth=fingerprint retry_failed")
        | options(RunOptions, RUN, "fork", str)
    )


def build_options() -> Options:
    """The options of a run that annotates, too."""
    from pad_pipeline.workflows.runs.options import RunOptions

    return (
        options(RunOptions, INPUT, "redo_from")
        | import_options()
        | options(RunOptions, CLUSTER, "engine", default="ray")
        | options(RunOptions, CLUSTER, "threads")
    )


def run_options(given: Given) -> RunOptions:
    """The options of a run, checked against each other.

    Raises:
        UserError: two of them contradict each other, or `max_failed` is neither a count nor a share.
    """
    from pad_pipeline.workflows.runs.options import RunOptions, failures_allowed

    failures_allowed(given["max_failed"], 0)
    if given.get("fork") and given.get("retry_failed"):
        rule = "it makes a new run, and `retry_failed` works on one"
        raise UserError("fork", given["fork"], rule, "leave one of them out")
    for name in ("address", "workers"):
        if given[name] and given["engine"] == "local":
            raise UserError(name, given[name], "it goes with `engine` ray", "leave it out, or use `engine` ray")
    chosen = {name: value for name, value in given.items() if name in RunOptions.model_fields}
    return RunOptions(**chosen, isolated=ISOLATED)
