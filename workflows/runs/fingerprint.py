"""Fingerprint of the code, and versions of the libraries, with which a run is made."""

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
"""Parts of the package that only read shards, draw or print, so that no byte of a shard depends on them."""
_WORKFLOWS = ("engine/chain.py", "runs/chains.py", "runs/steps.py", "runs/rewrite.py")
"""Files of `workflows` on which a shard's bytes depend: they define the steps of a chain, and read and write shards."""
_LIBRARIES = ("torch", "torchvision", "transformers", "tokenizers", "numpy", "pillow", "pycocotools", "pyarrow")


def code_fingerprint(package: Path = _PACKAGE) -> str:
    """Return the version of pad and a short sha256 over the code in the folder `package` that decides shards' content.

    The sha256 is over the set of statements of that code. It changes with any number, name or condition. It does not
    change with a comment, a docstring, or the file that holds a statement.
    """
    files = [path for path in package.glob("**/*.py") if not path.relative_to(package).parts[0].startswith(_NO_BYTES)]
    files += [*(package / "stages").rglob("*.py"), *(package / "workflows" / name for name in _WORKFLOWS)]
    statements = [text for path in {file.resolve() for file in files} for text in _statements(path.read_text("utf-8"))]
    digest = hashlib.sha256((package / "stages/unboxable.txt").read_bytes())
    for text in sorted(statements):
        digest.update(hashlib.sha256(text.encode()).digest())
    return f"{pad_pipeline.__version__}+{digest.hexdigest()[:12]}"


def _statements(source: str) -> Iterator[str]:
    """Yield the top-level statements of a module as text, without comments, docstrings and blank lines. For each
    imported name, yield module and name; for pad's own modules the name only, because a module may move."""
    tree = ast.parse(source)
    lines = [line.encode() for line in source.splitlines()]  # bytes, because positions of `ast` count bytes

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
    """Return all that can change last digits but is no setting: versions, kind of processor, number of threads."""
    facts = {"python": platform.python_version(), "machine": platform.machine(), "threads": str(threads)}
    for name in _LIBRARIES:
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = "absent"
    return facts


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
