"""What code and what libraries a run was made with."""

from __future__ import annotations

import ast
import hashlib
import io
import os
import platform
import tokenize
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pad_pipeline

_PACKAGE = Path(str(pad_pipeline.__file__)).parent
_NO_BYTES = (
    *("training", "measures", "analysis", "evaluation", "exports", "report", "miniature", "workflows"),
    *("verify", "packages", "console"),
)
"""Rooms of the package that only read shards, draw or print: no byte of a shard comes from them."""
_WORKFLOWS = ("engine/chain.py", "runs/chains.py", "runs/steps.py", "runs/rewrite.py")
"""The files of `workflows` that say which steps a shard goes through, and what is read and written for them."""
_LIBRARIES = ("torch", "torchvision", "transformers", "tokenizers", "numpy", "pillow", "pycocotools", "pyarrow")


def code_fingerprint(package: Path = _PACKAGE) -> str:
    """The version of pad, and a short sha256 over the code that decides what a shard holds.

    The sha256 is over the statements of that code, in no order. It changes with a number, a name or a condition. It
    does not change with a comment, a docstring, or the file that a statement stands in.

    Args:
        package: the folder of the package `pad_pipeline`.
    """
    files = [path for path in package.glob("**/*.py") if not path.relative_to(package).parts[0].startswith(_NO_BYTES)]
    files += [*(package / "stages").rglob("*.py"), *(package / "workflows" / name for name in _WORKFLOWS)]
    statements = [text for path in {file.resolve() for file in files} for text in _statements(path.read_text("utf-8"))]
    digest = hashlib.sha256((package / "stages/unboxable.txt").read_bytes())
    for text in sorted(statements):
        digest.update(hashlib.sha256(text.encode()).digest())
    return f"{pad_pipeline.__version__}+{digest.hexdigest()[:12]}"


def _statements(source: str) -> Iterator[str]:
    """The top-level statements of a module as text, without comments, docstrings and blank lines. An import counts as
    what it imports; of pad's own modules only the name that is imported counts, because the module may move."""
    tree = ast.parse(source)
    lines = [line.encode() for line in source.splitlines()]  # positions of `ast` count bytes

    def blank(node: ast.AST) -> None:
        first, last = node.lineno - 1, node.end_lineno - 1  # type: ignore[attr-defined]
        for number in range(first, last + 1):
            start = node.col_offset if number == first else 0  # type: ignore[attr-defined]
            stop = node.end_col_offset if number == last else len(lines[number])  # type: ignore[attr-defined]
            lines[number] = lines[number][:start] + b" " * (stop - start) + lines[number][stop:]

    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            before = token.line[: token.start[1]].encode()
            lines[token.start[0] - 1] = before + b" " * len(token.string.encode())
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            blank(node)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            blank(node)
            module = getattr(node, "module", None) or ""
            module = "pad_pipeline" if module.startswith("pad_pipeline") else module
            yield from (f"import {module} {name.name} {name.asname}" for name in node.names)
    for node in tree.body:
        first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
        text = [line.decode().rstrip() for line in lines[first - 1 : node.end_lineno]]
        if any(text):
            yield "\n".join(filter(None, text))


def environment(threads: int) -> dict[str, str]:
    """Versions and threads: what can move last digits without being a setting."""
    found = {"python": platform.python_version(), "machine": platform.machine(), "threads": str(threads)}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
