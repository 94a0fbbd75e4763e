"""Locks a folder, so that only one run at a time writes into it. A lock ends when its process dies."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

from pad_pipeline.errors import UserError
from pad_pipeline.storage import Folder

LOCK_NAME = ".lock"
BEAT = 10.0
"""Seconds between two updates of the lock file in an object store. Object stores have no locks of their own."""
SILENCE = 3
"""The process that holds a lock counts as dead when the lock file has not changed for `SILENCE * BEAT` seconds."""


def locked(folder: Folder) -> AbstractContextManager[None]:
    """Lock a run's folder for a `with` block; raise `UserError` if another run has locked it."""
    return _leased(folder) if folder.remote else _flocked(folder)


def _owner() -> dict[str, Any]:
    return {"host": socket.gethostname(), "process": os.getpid(), "token": secrets.token_hex(8)}


def _in_use(folder: Folder, owner: dict[str, Any]) -> UserError:
    holder = f"process {owner.get('process', '?')} on {owner.get('host', '?')}"
    return UserError("out", folder, f"another run is writing into it ({holder})", "wait for its end, or stop it")


@contextmanager
def _flocked(folder: Folder) -> Iterator[None]:
    """Hold a lock of the operating system, which ends with the process."""
    path = folder.path / LOCK_NAME
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = _parsed(os.pread(lock, 1000, 0))
            os.close(lock)
            raise _in_use(folder, owner) from error
        with suppress(FileNotFoundError):
            if os.fstat(lock).st_ino == path.stat().st_ino:
                break
        os.close(lock)  # the process that held the lock deleted the file after we opened it: try again
    try:
        os.ftruncate(lock, 0)  # the file may hold the text of a process that died
        os.pwrite(lock, json.dumps(_owner()).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


@contextmanager
def _leased(folder: Folder) -> Iterator[None]:
    """Hold a lock by rewriting the lock file every few seconds. A process whose file stays unchanged is dead.

    No clocks are compared. If two runs start within the same second, each reads the file again, and only the run that
    wrote it last continues. Both would continue if the store returned old content for longer than a second.
    """
    owner, stop = _owner(), threading.Event()
    # Take over a lock only if its process is dead: it is gone from this host, or its file stays unchanged.
    earlier = _read(folder)
    if earlier and not (earlier.get("host") == owner["host"] and not _alive(earlier.get("process"))):
        stop.wait(BEAT * SILENCE)
        if (now := _read(folder)) and now != earlier:
            raise _in_use(folder, now)
    _beat(folder, owner, 0)
    stop.wait(min(1.0, BEAT))
    if (now := _read(folder)).get("token") != owner["token"]:
        raise _in_use(folder, now)

    def keep_alive() -> None:
        beats = 0
        while not stop.wait(BEAT):
            beats += 1
            with suppress(OSError):  # if the store can't be reached, the run itself fails
                if _read(folder).get("token", owner["token"]) != owner["token"]:
                    signal.raise_signal(signal.SIGTERM)  # our updates came too late: another run took over
                    return
                _beat(folder, owner, beats)

    thread = threading.Thread(target=keep_alive, name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        with suppress(OSError):
            if _read(folder).get("token") == owner["token"]:
                folder.delete(LOCK_NAME)


def _beat(folder: Folder, owner: dict[str, Any], beats: int) -> None:
    with folder.commit(LOCK_NAME) as partial:
        partial.write_text(json.dumps(owner | {"beats": beats}))


def _read(folder: Folder) -> dict[str, Any]:
    return _parsed(folder.read(LOCK_NAME)) if folder.has(LOCK_NAME) else {}


def _parsed(content: bytes) -> dict[str, Any]:
    with suppress(ValueError):
        if isinstance(value := json.loads(content), dict):
            return value
    return {}


def _alive(process: Any) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, TypeError, ValueError):
        return False
    except PermissionError:  # the process of another user
        pass
    return True
