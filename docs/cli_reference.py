"""mkdocs' hook: the references of commands and of settings, written from the code itself."""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from typing import Any, Literal, get_args, get_origin

SETTINGS_MARK = "<!-- the settings are written here when the site is made -->"
SETTINGS = {
    "A run": "pad_pipeline.workflows.runs.options.RunOptions",
    "[tagger]": "pad_pipeline.stages.tag.TaggerSettings",
    "[detector]": "pad_pipeline.stages.ground.DetectorSettings",
    "[segmenter]": "pad_pipeline.stages.segment.SegmenterSettings",
    "[concepts]": "pad_pipeline.stages.concept.ConceptSettings",
    "[captions]": "pad_pipeline.stages.captions.CaptionsSettings",
    "[llm]": "pad_pipeline.labels.LabelSettings",
    "[compute]": "pad_pipeline.stages.compute.ComputeSettings",
    "[decode]": "pad_pipeline.images.DecodeSettings",
    "[view]": "pad_pipeline.geometry.View",
    "Regions that stay: pad retarget": "pad_pipeline.stages.edit_settings.EditSettings",
    "Images that are taken: pad filter": "pad_pipeline.sources.selection.Selection",
    "Training, stage 1": "pad_pipeline.training.settings.TrainSettings",
    "Training, stage 2": "pad_pipeline.training.settings.Stage2Settings",
    "[patch_loss]": "pad_pipeline.training.settings.PatchLossSettings",
    "[lora]": "pad_pipeline.training.settings.LoraSettings",
    "Analyses": "pad_pipeline.analysis.settings.AnalysisSettings",
    "Report": "pad_pipeline.report.settings.ReportSettings",
    "Reading shards": "pad_pipeline.workflows.engine.over_shards.ReadOptions",
}
"""Title of a table -> the class with the settings."""
_ROW = re.compile(r"^\|.*$", re.MULTILINE)
_CODE = re.compile(r"`[^`]*`")
MARK = "<!-- the reference is written here when the site is made -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with a mark replaced by every command's help, or by every setting."""
    if SETTINGS_MARK in markdown:
        markdown = markdown.replace(SETTINGS_MARK, settings())
    if MARK in markdown:
        markdown = markdown.replace(MARK, reference())
    # In a table, GitHub wants `a \| b` where this site's Markdown wants `a | b`.
    return _ROW.sub(lambda row: _CODE.sub(lambda code: code[0].replace("\\|", "|"), row[0]), markdown)


def settings() -> str:
    """Markdown of all settings: a table for each class."""
    parts = []
    for title, path in SETTINGS.items():
        module, _, name = path.rpartition(".")
        kind = getattr(importlib.import_module(module), name)
        parts += [f"## {title}\n", f"`{path}`. {_cell(inspect.cleandoc(kind.__doc__ or ''))}\n"]
        parts += ['<div class="settings" markdown>\n', "| setting | type | default | |", "| --- | --- | --- | --- |"]
        for field_name, field in kind.model_fields.items():
            text = _cell(field.description or "")
            parts.append(f"| `{field_name}` | {_type(field.annotation)} | {_default(field)} | {text} |")
        parts.append("\n</div>\n")
    return "\n".join(parts)


def _type(annotation: Any) -> str:
    """The type as people write it; choices of a Literal as their values."""
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    text = annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
    text = re.sub(r"(?:\w+\.)+(\w+)", r"\1", text)
    text = re.sub(r"Annotated\[(\w+), .*?\]+", r"\1", text)
    return f"`{text}`"


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if hasattr(value, "model_dump"):
        return "see its table"
    return f"`{value!r}`"


def _cell(text: str) -> str:
    """Text for a cell of a table: no line breaks, and nothing that Markdown takes for markup, except in backticks."""
    parts = " ".join(text.split()).split("`")
    plain = [re.sub(r"([*_<|\[\]])", r"\\\1", part) if number % 2 == 0 else part for number, part in enumerate(parts)]
    return "`".join(plain)


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
        parts += [_row(command, parameter) for parameter in command.params if not getattr(parameter, "hidden", False)]
        parts.append("")
    for child in children.values():
        _describe(child, f"{name} {child.name}", parts)


def _text(command: Any) -> str:
    parts = inspect.cleandoc(command.help or "").replace("\b\n", "").split("\n\n")
    return "\n\n".join(part if re.search("^ ", part, re.MULTILINE) else textwrap.fill(part, 110) for part in parts)


def _row(command: Any, parameter: Any) -> str:
    from pad_pipeline.workflows.commands.reword import help_text

    names = " ".join(f"`{option}`" for option in (*parameter.opts, *parameter.secondary_opts))
    if parameter.param_type_name == "argument":
        names = f"`{(parameter.name or '').upper()}`"
    said = getattr(parameter, "show_default", None)
    default = said if isinstance(said, str) else parameter.default
    shown = "required" if parameter.required else "" if default in (None, "", False) or callable(default) else default
    text = _cell(help_text(command, parameter))
    return f"| {names} | {getattr(shown, 'value', shown)} | {text} |"
