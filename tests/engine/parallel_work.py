"""What the processes of test_over_shards.py do. This module imports little, so that they start fast."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

from pad_pipeline.errors import UserError

NAMES = [f"pad-{number:06d}" for number in range(20)]
MEETING = threading.Barrier(4, timeout=60)
"""Ends the wait of four calls that one process carries out at the same time."""


def shout(name: str) -> tuple[str, int]:
    return name.upper(), os.getpid()


def meet(name: str) -> tuple[str, int]:
    MEETING.wait()
    return name, os.getpid()


def die(name: str) -> str:
    if name == NAMES[7]:
        os.kill(os.getpid(), signal.SIGKILL)
    return name


def die_once(item: tuple[str, str]) -> str:
    name, mark = item
    if name == NAMES[7] and not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return name


def refuse(name: str) -> str:
    if name == NAMES[7]:
        raise UserError("shards", name, "it is damaged", "see `pad verify`")
    return name


def slow(item: tuple[str, str]) -> None:
    Path(item[1], str(os.getpid())).touch()
    signal.pause()
