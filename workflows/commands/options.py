"""Options that come from settings: an option's type, range, default and help are those of the settings' field."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, get_args

import typer
from pydantic import BaseModel

Given = dict[str, Any]
"""Values of options, by the names of the settings. An option that has no default and was left out isn't in it."""
Options = dict[str, tuple[Any, Any]]
"""Annotation and default of each option, by the name of its parameter."""


def option(panel: str | None, help: str, *flags: str, **more: Any) -> Any:
    """Return an option of a panel of `--help`."""
    return typer.Option(*flags, help=help, rich_help_panel=panel, **more)


def setting(settings: type[BaseModel], panel: str | None, name: str, flag: str = "", unset: str = "") -> Any:
    """Return the option of the field `name` of settings, called `flag` if it isn't called like the field. `--help`
    shows `unset` as the default of an option without one."""
    field = settings.model_fields[name]
    found = {}
    for limit in field.metadata:
        # Typer's ranges include their ends. The settings themselves check an end that they exclude of a float.
        for end, included, excluded, step in (("min", "ge", "gt", 1), ("max", "le", "lt", -1)):
            if (value := getattr(limit, included, None)) is not None:
                found[end] = value
            elif field.annotation is int and (value := getattr(limit, excluded, None)) is not None:
                found[end] = value + step
    text = " ".join((field.description or "").split())
    return option(panel, text, f"--{(flag or name).replace('_', '-')}", show_default=unset or True, **found)


def options(settings: type[BaseModel], panel: str | None, names: str, kind: Any = None, **default: Any) -> Options:
    """Make options from fields of settings.

    Args:
        settings: the model that has the fields.
        panel: the panel of `--help` that shows the options.
        names: the fields, separated by spaces; `depth=fingerprint` makes `--fingerprint` of the field `depth`.
        kind: the options' type, if the command line has another than the settings.
        default: `default=VALUE`, if it isn't the field's; `unset=TEXT` for None, which `--help` shows as TEXT.
    """
    made: Options = {}
    for name, _, flag in (entry.partition("=") for entry in names.split()):
        field = settings.model_fields[name]
        value = inspect.Parameter.empty if field.is_required() else field.default
        value = None if "unset" in default else default.get("default", value)
        annotation: Any = kind or field.annotation
        shown = setting(settings, panel, name, flag, default.get("unset", ""))
        made[name] = Annotated[annotation | None if value is None else annotation, shown], value
    return made


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """Return the command for typer. Each parameter `Annotated[Given, OPTIONS]` is replaced by these options; the
    command gets their values."""
    found: Options = {}
    groups: dict[str, Options] = {}
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        if get_args(parameter.annotation)[:1] == (Given,):
            groups[name] = get_args(parameter.annotation)[1]
            found |= groups[name]
        else:
            found[name] = parameter.annotation, parameter.default

    @wraps(command)
    def called(**given: Any) -> None:
        for group, made in groups.items():
            values = {name: given.pop(name) for name in made}
            given[group] = {name: value for name, value in values.items() if value is not None}
        command(**given)

    only = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter(name, only, default=value, annotation=kind) for name, (kind, value) in found.items()
    ]
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {name: kind for name, (kind, _) in found.items()}
    return called
