"""One run at a time in a folder: a lock that a dead process does not hold."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pad_pipeline.errors import UserError
from pad_pipeline.storage import Folder

LOCK_NAME = ".lock"
BEAT = 10.0
"""Seconds between two signs of life in an object store, which has no locks of its own."""
SILENCE = 3
"""Beats without a sign of life after which the holder counts as dead."""


@contextmanager
def locked(folder: Folder) -> Iterator[None]:
    """Hold the run's folder.

    Raises:
        UserError: another run holds it.
    """
    with _leased(folder) if folder.remote else _flocked(folder.path / LOCK_NAME, folder):
        yield


def _owner() -> dict[str, Any]:
    return {"host": socket.gethostname(), "process": os.getpid(), "token": secrets.token_hex(8)}


def _in_use(folder: Folder, owner: dict[str, Any]) -> UserError:
    holder = f"process {owner.get('process', '?')} on {owner.get('host', '?')}"
    return UserError("out", folder, f"another run is writing there ({holder})", "wait for its end, or stop it")


@contextmanager
def _flocked(path: Path, folder: Folder) -> Iterator[None]:
    """The kernel's own lock, which goes with the process."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            content = os.pread(lock, 1000, 0)
            os.close(lock)
            raise _in_use(folder, _parsed(content)) from error
        with suppress(FileNotFoundError):
            if os.fstat(lock).st_ino == path.stat().st_ino:
                break
        os.close(lock)  # its last holder removed it while we waited: what we hold is nobody's name
    try:
        os.ftruncate(lock, 0)  # a longer name, of a process that died, would stand behind ours
        os.pwrite(lock, json.dumps(_owner()).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


@contextmanager
def _leased(folder: Folder) -> Iterator[None]:
    """A file that is written anew every few seconds; who finds it unchanged for a while knows that its writer died.

    No clocks are compared. Two that start within the same second are told apart by reading back what was written; a
    store that shows old listings for longer than that could let both in.
    """
    owner, stop = _owner(), threading.Event()
    held = _read(folder)
    if held and not (held.get("host") == owner["host"] and not _alive(held.get("process"))):
        stop.wait(BEAT * SILENCE)
        if (now := _read(folder)) and now != held:
            raise _in_use(folder, now)
    _beat(folder, owner, 0)
    stop.wait(min(1.0, BEAT))
    if (now := _read(folder)).get("token") != owner["token"]:
        raise _in_use(folder, now)

    def live() -> None:
        beats = 0
        while not stop.wait(BEAT):
            beats += 1
            with suppress(OSError):  # the run itself will find out that the store is gone
                if _read(folder).get("token", owner["token"]) != owner["token"]:
                    signal.raise_signal(signal.SIGTERM)  # we were silent, and another took the folder for free
                    return
                _beat(folder, owner, beats)

    heart = threading.Thread(target=live, name="lock", daemon=True)
    heart.start()
    try:
        yield
    finally:
        stop.set()
        heart.join()
        with suppress(OSError):
            if _read(folder).get("token") == owner["token"]:
                folder.delete(LOCK_NAME)


def _beat(folder: Folder, owner: dict[str, Any], beats: int) -> None:
    with folder.commit(LOCK_NAME) as partial:
        partial.write_text(json.dumps(owner | {"beats": beats}))


def _read(folder: Folder) -> dict[str, Any]:
    return _parsed(folder.read(LOCK_NAME)) if folder.has(LOCK_NAME) else {}


def _parsed(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _alive(process: Any) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, TypeError, ValueError):
        return False
    except PermissionError:
        return True
    return True
