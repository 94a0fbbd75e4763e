"""Replace names of Python's parameters in errors and help by the options of the running command."""

from __future__ import annotations

import re
import traceback
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from pad_pipeline.console import reworded_notes
from pad_pipeline.errors import UserError
from pad_pipeline.workflows.commands.narrow_help import NarrowHelp

UsageError: Any = typer.BadParameter.__bases__[0]
"""The error of a wrong call. Typer has no public name for it, nor for the next one."""
_Missing: Any = next(one for one in typer.BadParameter.__subclasses__() if one.__name__ == "MissingParameter")
_PARAMETER = re.compile(r"`(\w+)`")


class Command(NarrowHelp, TyperCommand):
    """A command of `pad`. Its errors name the command's options and arguments."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # as below
        """Parse the arguments; an error about a missing one names all that are missing."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except _Missing as error:
            known, _, _ = self.make_parser(ctx).parse_args(given)
            missing = [one for one in self.params if one.required and known.get(one.name or "") in (None, ())]
            if len(missing) > 1:
                shown = [_shown(self)[one.name or ""] for one in missing]
                raise UsageError(f"Missing: {', '.join(shown)}.", ctx=ctx) from error
            raise

    def format_help(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Write the help, in which options have their own names."""
        with_help: list[Any] = [one for one in self.params if getattr(one, "help", None)]
        texts = [one.help for one in with_help]
        try:
            for one in with_help:
                one.help = help_text(self, one)
            super().format_help(ctx, formatter)
        finally:
            for one, text in zip(with_help, texts, strict=True):
                one.help = text

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]  # typer's base class has no public name
        """Run the command; an error passes through `reword_error`."""
        try:
            with reworded_notes(lambda text: reword(text, ctx)):
                return super().invoke(ctx)
        except UserError as error:
            if ctx.find_root().params["verbose"]:
                traceback.print_exc()
            reword_error(error, ctx)
            raise


def help_text(command: Any, parameter: Any) -> str:
    """Return the help of a parameter, with an option in place of each name in backticks that is another parameter of
    the command. The values that the parameter may have stay."""
    shown, values = _shown(command), str(parameter.bare_type())  # such as typing.Literal['sample', 'full']
    text = getattr(parameter, "help", None) or ""
    return _PARAMETER.sub(lambda name: name[0] if f"'{name[1]}'" in values else shown.get(name[1], name[0]), text)


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
