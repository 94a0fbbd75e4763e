"""`pad` as a process of its own, which can be killed, limited or made to fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

PAD = Path(sys.executable).with_name("pad")
"""The command, as it was installed."""
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""The addresses of this machine alone, as `/proc/net/tcp` writes them."""


def process(arguments: list[object], what: str = "", **more: Any) -> subprocess.Popen[str]:
    """`pad` as a process of its own; with something wrong in it, see `doomed`."""
    command = [sys.executable, "-m", "tests.doomed", what, "--"] if what else [PAD]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": ROOT}
    return subprocess.Popen(list(map(str, [*command, *arguments])), **(options | more))


def finished(started: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit code, and all that it printed."""
    said, _ = started.communicate(timeout=300)
    return started.returncode, said


def descendants(of: int) -> list[int]:
    """Return the numbers of a process and of all that it started, and they in turn; of no other on this machine."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue

    def ours(number: int) -> bool:
        return number == of or (number in parents and ours(parents[number]))

    return [number for number in parents if ours(number)]


def ray_workers(of: int) -> list[int]:
    """Return the numbers of the workers on Ray among the descendants of a process."""
    return [number for number in descendants(of) if b"ray::LinkActor" in command_of(number)]


def command_of(number: int) -> bytes:
    """The command line of a process; empty where it is gone."""
    try:
        return Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:
        return b""


def listening(processes: list[int]) -> list[str]:
    """The addresses on which some of these processes listen."""
    sockets = {}
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":  # LISTEN
                sockets[f"socket:[{fields[9]}]"] = fields[1].partition(":")[0]
    found = []
    for number in processes:
        try:
            held = {str(link.readlink()) for link in Path(f"/proc/{number}/fd").iterdir()}
        except OSError:  # a process that has ended
            continue
        found += [sockets[name] for name in held & sockets.keys()]
    return found
