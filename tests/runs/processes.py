"""`pad` as a process of its own, which can be killed, limited or made to fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

PAD = Path(sys.executable).with_name("pad")
"""The command, as it was installed."""


def process(arguments: list[object], what: str = "", **more: Any) -> subprocess.Popen[str]:
    """`pad` as a process of its own; with something wrong in it, see `doomed`."""
    command = [sys.executable, "-m", "tests.doomed", what, "--"] if what else [PAD]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": ROOT}
    return subprocess.Popen(list(map(str, [*command, *arguments])), **(options | more))


def finished(started: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit code, and all that it printed."""
    said, _ = started.communicate(timeout=300)
    return started.returncode, said


def ray_workers(driver: subprocess.Popen[str]) -> list[int]:
    """The process numbers of a run's workers on Ray, and of no other run's on this machine."""
    parents, workers = {}, []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if b"ray::LinkActor" in (folder / "cmdline").read_bytes():
                    workers.append(int(folder.name))
            except OSError:
                continue

    def ours(number: int) -> bool:
        return number == driver.pid or (number in parents and ours(parents[number]))

    return [worker for worker in workers if ours(worker)]
