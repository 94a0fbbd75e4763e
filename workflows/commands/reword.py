"""Replace names of Python's parameters in the library's errors by the options of the running command."""

from __future__ import annotations

import re
import traceback
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from pad_pipeline.errors import UserError

_PARAMETER = re.compile(r"`(\w+)`")


class Command(TyperCommand):
    """A command of `pad`. Its errors name the command's options and arguments."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]  # typer's base class has no public name
        """Run the command; an error passes through `reword_error`."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            if ctx.find_root().params["verbose"]:
                traceback.print_exc()
            reword_error(error, ctx)
            raise


def reword_error(error: UserError, context: typer.Context) -> None:
    """Replace each parameter of the running command in an error by its option: `image_root` becomes --image-root, and a
    positional `shards` becomes SHARDS. The field is replaced, and names in backticks in rule and remedy."""
    error.field = _shown(context.command).get(error.field, error.field)
    error.rule, error.remedy = reword(error.rule, context), reword(error.remedy, context)


def reword(text: str, context: typer.Context) -> str:
    """Return `text` with an option in place of each parameter in backticks. If the running command does not have the
    parameter, the option is that of another command. Unknown names stay."""
    shown = _shown(context.find_root().command) | _shown(context.command)
    return _PARAMETER.sub(lambda name: shown.get(name[1], name[0]), text)


def _shown(command: Any) -> dict[str, str]:
    """Return the name of each parameter -> its option or argument; for a group, the options of all its commands."""
    if isinstance(command, TyperGroup):
        inner = [entry for one in command.commands.values() for entry in _shown(one).items()]
        return {name: option for name, option in inner if option.startswith("--")}
    return {
        parameter.name: parameter.name.upper() if isinstance(parameter, TyperArgument) else max(parameter.opts, key=len)
        for parameter in command.params
    }
