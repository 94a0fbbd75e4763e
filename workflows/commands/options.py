"""Options that come from settings: an option's type, range, default and help are those of the settings' field.

A command's parameter `view: Annotated[Given, view_options]` stands for the options that `view_options()` makes. They
are made when the command is asked for, so that `pad --help` imports no settings.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cached_property, partial, wraps
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from pydantic import BaseModel

Given = dict[str, Any]
"""Values of options, by the names of the settings. An option that has no default and was left out isn't in it."""
Options = dict[str, tuple[Any, Any]]
"""Annotation and default of each option, by the name of its parameter."""


def options(settings: type[BaseModel], panel: str | None, names: str, kind: Any = None, **default: Any) -> Options:
    """Make options from fields of settings.

    Args:
        settings: the model whose fields they are.
        panel: the panel of `--help` that shows them.
        names: the fields, separated by spaces; `depth=fingerprint` makes `--fingerprint` of the field `depth`.
        kind: the options' type, where the command line has another than the settings.
        default: `default=VALUE`, where it isn't the field's; `unset=TEXT` for None, and `--help` says TEXT.
    """
    made: Options = {}
    for entry in names.split():
        name, _, flag = entry.partition("=")
        field = settings.model_fields[name]
        value = inspect.Parameter.empty if field.is_required() else field.default
        value = None if "unset" in default else default.get("default", value)
        option = typer.Option(
            f"--{(flag or name).replace('_', '-')}",
            help=" ".join((field.description or "").split()),
            rich_help_panel=panel,
            show_default=default.get("unset") or True,
            **_range(field.metadata, field.annotation),
        )
        annotation: Any = kind or field.annotation
        made[name] = Annotated[annotation | None if value is None else annotation, option], value
    return made


def _range(limits: list[Any], kind: Any) -> dict[str, Any]:
    """The range of a number, whose ends typer includes. The settings check what they exclude of a float's."""
    found = {}
    for limit in limits:
        for end, included, excluded, step in (("min", "ge", "gt", 1), ("max", "le", "lt", -1)):
            if (value := getattr(limit, included, None)) is not None:
                found[end] = value
            elif kind is int and (value := getattr(limit, excluded, None)) is not None:
                found[end] = value + step
    return found


def _expanded(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer sees it. `Annotated[Given, MAKE]` becomes the options that MAKE makes, and the command gets
    what was given of them; `Annotated[KIND, MAKE]` becomes the one option that MAKE makes, with the command's default.
    """
    found: Options = {}
    groups: dict[str, Options] = {}
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        make = getattr(hints[name], "__metadata__", (None,))[0]
        if not callable(make):
            found[name] = hints[name], parameter.default
        elif hints[name].__origin__ == Given:
            groups[name] = make()
            found |= groups[name]
        else:
            ((annotation, _),) = make().values()
            found[name] = annotation, parameter.default

    @wraps(command)
    def called(**given: Any) -> None:
        for group, made in groups.items():
            values = {name: given.pop(name) for name in made}
            given[group] = {name: value for name, value in values.items() if value is not None}
        command(**given)

    called.__annotations__ = {name: annotation for name, (annotation, _) in found.items()}
    only = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter(name, only, default=value, annotation=kind) for name, (kind, value) in found.items()
    ]
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return called


class Late(TyperCommand):
    """A command whose options are made when it is asked for.

    Args:
        function: what the command does.
        kind: typer's class of the command that has the options.
        facts: as typer gives them.
    """

    def __init__(self, function: Callable[..., None], kind: type[TyperCommand], **facts: Any) -> None:
        self._function, self._kind = function, kind
        super().__init__(**facts)

    @cached_property
    def whole(self) -> Any:
        """The command with its options."""
        alone = typer.Typer(add_completion=False, rich_markup_mode="rich")
        alone.command(self.name, cls=self._kind)(_expanded(self._function))
        return typer.main.get_command(alone)

    @property
    def params(self) -> list[Any]:
        """Arguments and options."""
        found: list[Any] = self.whole.params
        return found

    @params.setter
    def params(self, none: list[Any]) -> None: ...

    def make_context(self, *where: Any, **more: Any) -> Any:
        """Read the command's arguments; from here on it is the whole command that runs."""
        return self.whole.make_context(*where, **more)


class Commands(typer.Typer):
    """A group of `Late` commands."""

    def command(self, name: str | None = None, *, cls: type[TyperCommand] | None = None, **facts: Any) -> Any:
        """Add a function as a command, as typer does."""

        def add(function: Callable[..., None]) -> Callable[..., None]:
            late: Any = partial(Late, function, cls or TyperCommand)
            super(Commands, self).command(name or function.__name__, cls=late, help=function.__doc__)(lambda: None)
            return function

        return add
