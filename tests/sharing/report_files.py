"""What the files of a report say, read without a browser."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np


def content(report: Path, name: str) -> Any:
    """What a data file gives the page."""
    text = (report / "data" / f"{name}.js").read_text("ascii")
    found = re.fullmatch(rf'padData\("{name}",(.*)\);\n', text)
    assert found and "<" not in text, name
    return json.loads(found[1])


def cards_of(report: Path) -> list[dict[str, Any]]:
    names = sorted(path.stem for path in (report / "data").glob("page-*.js"))
    return [card for name in names for card in content(report, name)]


def table(report: Path, mark: str) -> dict[str, list[str]]:
    """The rows of a table of index.html: first cell -> the others."""
    text = (report / "index.html").read_text()
    body = text[text.index(mark) :]
    rows = re.findall(r"<tr>(.*?)</tr>", body[: body.index("</table>")], re.DOTALL)
    cells = [[html.unescape(re.sub("<[^>]*>", "", cell)) for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)]
             for row in rows]  # fmt: skip
    return {first: rest for first, *rest in cells}


def totals(report: Path) -> dict[str, int]:
    found = re.findall(r'<dd data-total="(.*?)">(.*?)</dd>', (report / "index.html").read_text())
    return {name: int(count.replace(",", "")) for name, count in found}


def rings(path: str) -> list[np.ndarray]:
    """The closed lines of an outline, `[N, 2]` each."""
    found = []
    for ring in path.split("M")[1:]:
        start, steps = (np.array(part.split(), int).reshape(-1, 2) for part in ring.removesuffix("z").split("l"))
        found.append(np.vstack([start, start + steps.cumsum(0)]))
    return found


def area(line: np.ndarray) -> float:
    """Within a closed line; negative where it runs the other way round."""
    x, y = line.T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2)
