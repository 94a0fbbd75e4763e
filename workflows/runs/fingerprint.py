"""The code fingerprint of a run, and the versions of the libraries that it uses."""

from __future__ import annotations

import ast
import hashlib
import io
import platform
import tokenize
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pad_pipeline

_PACKAGE = Path(str(pad_pipeline.__file__)).parent
_NOT_HASHED = (
    *("training", "measures", "analysis", "evaluation", "exports", "report", "miniature", "workflows"),
    "duplicates",
    *("verify", "packages", "console", "quality"),
    *("transfers", "remote_tensors", "tables", "pins", "hub_errors"),
)
"""Parts of the package that only read shards, draw or print; and those that fetch weights, which have hashes of their
own in run.json. No byte of a shard depends on them."""
_HASHED_WORKFLOWS = ("engine/chain.py", "runs/chains.py", "runs/shard_io.py", "runs/rewrite.py")
"""Files of `workflows` on which the bytes of a shard depend: they define the operations of a chain."""
_LIBRARIES = ("torch", "torchvision", "transformers", "tokenizers", "numpy", "pillow", "pycocotools", "pyarrow")


@cache
def code_fingerprint() -> str:
    """Return `fingerprint_of` the code of this process, which stays the same when its files are changed."""
    return fingerprint_of(_PACKAGE)


def fingerprint_of(package: Path) -> str:
    """Return the version of pad and a short sha256 over the code that decides the bytes of shards.

    The sha256 is over the sorted statements of the code in the folder `package`. It changes with any number, name or
    condition. It does not change with a comment, a docstring, or the file that contains a statement.
    """
    files = [path for path in package.glob("**/*.py") if not path.relative_to(package).parts[0].startswith(_NOT_HASHED)]
    files += [*(package / "stages").rglob("*.py"), *(package / "workflows" / name for name in _HASHED_WORKFLOWS)]
    statements = [text for path in {file.resolve() for file in files} for text in _statements(path.read_text("utf-8"))]
    digest = hashlib.sha256((package / "stages/unboxable.txt").read_bytes())
    for text in sorted(statements):
        digest.update(hashlib.sha256(text.encode()).digest())
    return f"{pad_pipeline.__version__}+{digest.hexdigest()[:12]}"


def _statements(source: str) -> Iterator[str]:
    """Yield the top-level statements of a module as text, without comments, docstrings and blank lines.

    Also yield the module and name of each import. For an import from pad itself, yield only the name, so that moving a
    module changes nothing. The code must be formatted by ruff, so that each docstring and import has lines of its own.
    """
    tree, lines = ast.parse(source), source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            lines[token.start[0] - 1] = token.line[: token.start[1]]
    for node in ast.walk(tree):
        match node:
            case ast.Import() | ast.ImportFrom():
                module = getattr(node, "module", None) or ""
                module = "pad_pipeline" if module.startswith("pad_pipeline") else module
                yield from (f"import {module} {name.name} {name.asname}" for name in node.names)
            case ast.Expr(value=ast.Constant(value=str())):
                pass
            case _:
                continue
        last = node.end_lineno or node.lineno
        lines[node.lineno - 1 : last] = [""] * (last - node.lineno + 1)
    for node in tree.body:
        first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
        text = [line.rstrip() for line in lines[first - 1 : node.end_lineno]]
        if any(text):
            yield "\n".join(filter(None, text))


def environment(threads: int) -> dict[str, str]:
    """Return the facts that can change last digits and are no settings: versions, processor, number of threads."""
    facts = {"python": platform.python_version(), "machine": platform.machine(), "threads": str(threads)}
    for name in _LIBRARIES:
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = "absent"
    return facts
