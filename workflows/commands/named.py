"""Reword the library's errors for the command line: where an error names a parameter, show the command's option."""

from __future__ import annotations

import re
import traceback
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from pad_pipeline.errors import UserError

_PARAMETER = re.compile(r"`(\w+)`")


class Command(TyperCommand):
    """A command whose errors name its own options and arguments."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]  # typer's base class has no public name
        """Run the command.

        Raises:
            UserError: what the command raised, as `name_options` changes it.
        """
        try:
            return super().invoke(ctx)
        except UserError as error:
            if ctx.find_root().params["verbose"]:
                traceback.print_exc()
            name_options(error, ctx)
            raise


def name_options(error: UserError, context: typer.Context) -> None:
    """Change an error from Python's words to those of the running command: `image_root` becomes --image-root, and an
    argument `shards` becomes SHARDS; as the field, and in backticks in rule and remedy. Other names stay."""
    error.field = _shown(context.command).get(error.field, error.field)
    error.rule, error.remedy = in_options(error.rule, context), in_options(error.remedy, context)


def in_options(text: str, context: typer.Context) -> str:
    """Return `text` with each parameter in backticks as the running command shows it, or else another command."""
    shown = _shown(context.find_root().command) | _shown(context.command)
    return _PARAMETER.sub(lambda name: shown.get(name[1], name[0]), text)


def _shown(command: Any) -> dict[str, str]:
    """Return how the command line names each parameter of a command; of a group, the options of all its commands."""
    if isinstance(command, TyperGroup):
        inner = [entry for one in command.commands.values() for entry in _shown(one).items()]
        return {name: option for name, option in inner if option.startswith("--")}
    return {
        parameter.name: parameter.name.upper() if isinstance(parameter, TyperArgument) else max(parameter.opts, key=len)
        for parameter in command.params
    }
