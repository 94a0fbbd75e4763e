"""The results of one part of the GPU benchmark: tables, notes and failures, written to disk after each row."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pad_pipeline.storage import atomic_write_text

RUNNING, FINISHED = "running", "finished"


class Sheet:
    """Collects the rows of one part, and writes `NAME.json` and `NAME.md` after each, so that a cut loses nothing.

    Args:
        folder: folder of the results.
        name: name of the part, and of its files.
        title: heading of the Markdown.
        deadline: time at which the part is cut, on the clock of `time.time`.
    """

    def __init__(self, folder: Path, name: str, title: str, deadline: float = float("inf")) -> None:
        self.folder, self.name, self.title, self.deadline = folder, name, title, deadline
        self.state, self.began = RUNNING, time.time()
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self.notes: list[str] = []
        self.failures: list[dict[str, str]] = []
        self.save()

    def row(self, table: str, **cells: Any) -> None:
        """Append a row to a table. Numbers are kept in full in the JSON, and rounded in the Markdown."""
        self.tables.setdefault(table, []).append(cells)
        self.save()
        shown = ", ".join(f"{name} {_shown(value)}" for name, value in cells.items())
        print(f"[{self.name} {time.time() - self.began:.1f} s] {table}: {shown}", flush=True)

    def note(self, text: str) -> None:
        """Append a sentence, which stands above the tables."""
        self.notes.append(text)
        self.save()
        print(f"[{self.name} {time.time() - self.began:.1f} s] {text}", flush=True)

    def attempt(self, what: str, work: Callable[[], object], needs: float = 0.0) -> bool:
        """Call `work`, and return whether it came to its end. An exception is written down as a failure.

        Nothing is called if fewer than `needs` seconds are left before the deadline.
        """
        left = self.deadline - time.time()
        if left < needs:
            self.failures.append({"what": what, "why": f"left out: {left:.0f} s were left, and it needs {needs:.0f} s"})
            self.save()
            return False
        try:
            work()
        except Exception as error:  # whatever it is, the other measurements go on
            traceback.print_exc()
            self.failures.append({"what": what, "why": f"{type(error).__name__}: {str(error)[:500]}"})
            self.save()
            return False
        return True

    def finish(self, state: str = FINISHED) -> None:
        """Write how the part ended."""
        self.state = state
        self.save()

    def save(self) -> None:
        """Write both files. Each replaces its predecessor at once."""
        facts = {"state": self.state, "seconds": round(time.time() - self.began, 1), "title": self.title}
        found = {"notes": self.notes, "failures": self.failures, "tables": self.tables}
        atomic_write_text(self.folder / f"{self.name}.json", json.dumps(facts | found, indent=1, default=str) + "\n")
        atomic_write_text(self.folder / f"{self.name}.md", as_markdown(facts | found))


def read_sheet(folder: Path, name: str) -> dict[str, Any] | None:
    """Return the JSON of a part; None if it wrote none."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def end_sheet(folder: Path, name: str, title: str, state: str) -> None:
    """Write the end of a part whose process is gone, and keep what it wrote before."""
    found = read_sheet(folder, name) or {"seconds": 0.0, "title": title, "notes": [], "failures": [], "tables": {}}
    found = {"state": state} | {key: value for key, value in found.items() if key != "state"}
    atomic_write_text(folder / f"{name}.json", json.dumps(found, indent=1) + "\n")
    atomic_write_text(folder / f"{name}.md", as_markdown(found))


def as_markdown(found: dict[str, Any]) -> str:
    """Return a part's results as Markdown."""
    lines = [f"## {found['title']}", "", f"{found['state']}, {found['seconds']:.0f} s.", *found["notes"]]
    for name, rows in found["tables"].items():
        columns = list(dict.fromkeys(column for row in rows for column in row))
        lines += ["", f"### {name}", "", f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
        lines += [f"| {' | '.join(_shown(row.get(column, '')) for column in columns)} |" for row in rows]
    if found["failures"]:
        lines += ["", "### Not measured", "", "| what | why |", "| --- | --- |"]
        lines += [f"| {one['what']} | {_cell(one['why'])} |" for one in found["failures"]]
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return _cell(str(value))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")
