"""mkdocs' hook: the reference of commands, written from the commands themselves."""

from __future__ import annotations

from typing import Any

MARK = "<!-- the reference is written here when the site is made -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with the mark replaced by every command's help."""
    return markdown.replace(MARK, reference()) if MARK in markdown else markdown


def reference() -> str:
    """Markdown of all commands: what each does, its arguments and options."""
    import typer.main

    from pad_pipeline.workflows.cli import app

    parts: list[str] = []
    _describe(typer.main.get_command(app), "pad", parts)
    return "\n".join(parts)


def _describe(command: Any, name: str, parts: list[str]) -> None:
    children = getattr(command, "commands", {})
    if not children:
        parts += [f"## {name}\n", f"```text\n{_text(command)}\n```\n"]
        parts += ["| | default | |", "| --- | --- | --- |"]
        parts += [_row(parameter) for parameter in command.params if not getattr(parameter, "hidden", False)]
        parts.append("")
    for child in children.values():
        _describe(child, f"{name} {child.name}", parts)


def _text(command: Any) -> str:
    import inspect

    return inspect.cleandoc(command.help or "").replace("\b\n", "")


def _row(parameter: Any) -> str:
    names = " ".join(f"`{option}`" for option in (*parameter.opts, *parameter.secondary_opts))
    if parameter.param_type_name == "argument":
        names = f"`{(parameter.name or '').upper()}`"
    said = getattr(parameter, "show_default", None)
    default = said if isinstance(said, str) else parameter.default
    shown = "required" if parameter.required else "" if default in (None, "", False) or callable(default) else default
    text = (getattr(parameter, "help", "") or "").replace("|", "\\|")
    return f"| {names} | {getattr(shown, 'value', shown)} | {text} |"
