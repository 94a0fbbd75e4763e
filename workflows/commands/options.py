"""Make options of the command line from fields of settings: with the field's type, range, default and docstring."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, get_args

import typer
from pydantic import BaseModel

OptionValues = dict[str, Any]
"""Name of a setting -> the value of its option. An option that has no default and is left out is not included."""
Options = dict[str, tuple[Any, Any]]
"""Name of a parameter -> annotation and default of its option."""


def option(panel: str | None, help: str, *flags: str, **more: Any) -> Any:
    """Return an option that `--help` lists in the box `panel`."""
    return typer.Option(*flags, help=help, rich_help_panel=panel, **more)


def setting(settings: type[BaseModel], panel: str | None, name: str, flag: str = "", unset: str = "") -> Any:
    """Return the option for the field `name` of `settings`. The option is called `flag`, or like the field if `flag` is
    empty. `--help` shows `unset` as the default, unless it is empty."""
    field = settings.model_fields[name]
    found: dict[str, Any] = {}
    for limit in field.metadata:
        # Typer's ranges include both ends. A float that equals an excluded end is refused by the settings.
        for end, included, excluded, step in (("min", "ge", "gt", 1), ("max", "le", "lt", -1)):
            if (value := getattr(limit, included, None)) is not None:
                found[end] = value
            elif field.annotation is int and (value := getattr(limit, excluded, None)) is not None:
                found[end] = value + step
    if found:  # beside the range, "<float range>" only takes room
        kind = next(one for one in (field.annotation, *get_args(field.annotation)) if one in (int, float))
        found["metavar"] = f"<{kind.__name__}>"
    text = " ".join((field.description or "").split())
    return option(panel, text, f"--{(flag or name).replace('_', '-')}", show_default=unset or True, **found)


def options(settings: type[BaseModel], panel: str | None, names: str, kind: Any = None, **default: Any) -> Options:
    """Make options from fields of settings.

    Args:
        settings: the class with the fields.
        panel: the box of `--help` that lists the options.
        names: names of the fields, separated by spaces; `depth=fingerprint` gives the field `depth` the option
            `--fingerprint`.
        kind: the type of the options, if it differs from the type of the fields.
        default: `default=VALUE` replaces the field's default. `unset=TEXT` replaces it by None, shown as TEXT.
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


def expand_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Return `command` with a signature for typer: a parameter `Annotated[OptionValues, OPTIONS]` becomes one parameter
    for each of these options. The command itself still gets them in one dictionary."""
    found: Options = {}
    groups: dict[str, Options] = {}
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        if get_args(parameter.annotation)[:1] == (OptionValues,):
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
