"""Options are words of the command line: below it, errors name Python's parameters."""

from __future__ import annotations

import ast
import re

from tests.house.test_layers import MODULES

OPTION = re.compile(r"(?<![\w-])--[a-z]")
OTHER_PROGRAMS = {
    "workflows.checks.machine": ["--gpus all", "--shm-size", "--ulimit", "--upgrade"],  # docker, pip
    "workflows.engine.ray_session": ["--head"],
    "workflows.checks.network": ["--head"],
    "workflows.learning.lmms": [
        "--num_processes", "--model", "--tasks", "--include_path", "--batch_size", "--log_samples", "--output_path",
    ],
}  # fmt: skip
"""Modules that write another program's command line, or a whole one of pad's; and what stands in it."""


def test_no_text_below_the_commands_holds_an_option() -> None:
    """Docstrings too: each would send a Python caller to words that he can't write."""
    used: dict[str, set[str]] = {name: set() for name in OTHER_PROGRAMS}
    wrong = []
    for name, path in MODULES.items():
        if name.startswith("workflows.commands") or name == "workflows.cli":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
                continue
            for found in OPTION.finditer(node.value):
                rest = node.value[found.start() :]
                allowed = [text for text in OTHER_PROGRAMS.get(name, []) if rest.startswith(text)]
                used.get(name, set()).update(allowed)
                if not allowed:
                    wrong.append(f"{path}:{node.lineno}: {rest[:40]}")
    assert not wrong, "\n".join(wrong)
    assert used == {name: set(texts) for name, texts in OTHER_PROGRAMS.items()}, "an entry is not needed any more"


def test_no_field_is_an_argument_in_capitals() -> None:
    """`UserError("SHARDS", ...)` would be the command line's word as well; PAD_CACHE is a variable's name."""
    fields = {
        (name, node.args[0].value)
        for name, path in MODULES.items()
        if not name.startswith("workflows.commands")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "UserError"
        and node.args and isinstance(node.args[0], ast.Constant)
    }  # fmt: skip
    assert len(fields) > 60
    assert {field for _, field in fields if str(field).isupper()} == {"PAD_CACHE"}
