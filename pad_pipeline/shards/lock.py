"""Locks a folder, or a part of a run, so that only one process at a time writes it. A lock ends with its process."""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from pad_pipeline.errors import UserError
from pad_pipeline.storage import Folder

LOCK_NAME = ".lock"
_NAME = re.compile(r"\.lock(?:-\d+-of-(\d+))?")
BEAT = 10.0
"""Seconds between two updates of the lock file in an object store. Object stores have no locks of their own."""
SILENCE = 3
"""The process that holds a lock counts as dead when the lock file has not changed for `SILENCE * BEAT` seconds."""


def lock_name(part: str) -> str:
    """Return the lock file of a part of a run, such as `3-of-8`; of the whole run if `part` is empty."""
    return f"{LOCK_NAME}-{part}" if part else LOCK_NAME


@contextmanager
def locked(folder: Folder, part: str = "") -> Iterator[None]:
    """Lock a run's folder, or a part of the run, for a `with` block.

    A part excludes itself, the whole run, and parts of another number of parts.

    Raises:
        UserError: another run has locked it.
    """
    name = lock_name(part)
    # Take the own lock first, and then look for others: so at least one of two that begin at once sees the other.
    with (_leased if folder.remote else _flocked)(folder, name):
        if not folder.remote:
            for rival in _rivals(folder, name):
                if owner := _flock_owner(folder.path / rival):
                    raise _in_use(folder, owner)
        yield


def _rivals(folder: Folder, name: str) -> list[str]:
    """Return the lock files in a folder that exclude the lock `name`, without `name` itself."""
    of = {one: match[1] for one, _ in folder.files(LOCK_NAME) if (match := _NAME.fullmatch(one)) and one != name}
    parts = cast("re.Match[str]", _NAME.fullmatch(name))[1]
    return [one for one, count in of.items() if not (count and count == parts)]


def _owner() -> dict[str, Any]:
    return {"host": socket.gethostname(), "process": os.getpid(), "token": secrets.token_hex(8)}


def _in_use(folder: Folder, owner: dict[str, Any]) -> UserError:
    holder = f"process {owner.get('process', '?')} on {owner.get('host', '?')}"
    return UserError("out", folder, f"another run is writing into it ({holder})", "wait for its end, or stop it")


def _flock_owner(path: Path) -> dict[str, Any]:
    """Return the owner of a lock file; empty if its process is dead, and then remove the file."""
    with suppress(FileNotFoundError):
        lock = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        except BlockingIOError:
            return _parsed(os.pread(lock, 1000, 0)) or {"process": "?"}
        finally:
            os.close(lock)
    return {}


@contextmanager
def _flocked(folder: Folder, name: str) -> Iterator[None]:
    """Hold a lock of the operating system, which ends with the process."""
    path = folder.path / name
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
def _leased(folder: Folder, name: str) -> Iterator[None]:
    """Hold a lock by rewriting the lock file every few seconds. A process whose file stays unchanged is dead.

    No clocks are compared. If two runs start within the same second, each reads the files again, and only the run that
    wrote its own last continues. Both would continue if the store returned old content for longer than a second.
    """
    owner, stop = _owner(), threading.Event()
    # Take over a lock only if its process is dead: it is gone from this host, or its file stays unchanged.
    earlier = {one: found for one in (name, *_rivals(folder, name)) if (found := _read(folder, one))}
    if any(found.get("host") != owner["host"] or _alive(found.get("process")) for found in earlier.values()):
        stop.wait(BEAT * SILENCE)
        for one, found in earlier.items():
            if (now := _read(folder, one)) and now != found:
                raise _in_use(folder, now)
    _beat(folder, name, owner, 0)
    thread = threading.Thread(target=_keep_alive, args=(folder, name, owner, stop), name="lock", daemon=True)
    try:
        stop.wait(min(1.0, BEAT))
        if (now := _read(folder, name)).get("token") != owner["token"]:
            raise _in_use(folder, now)
        for rival in _rivals(folder, name):
            if (now := _read(folder, rival)) and now != earlier.get(rival):
                raise _in_use(folder, now)
            folder.delete(rival)
        thread.start()
        yield
    finally:
        stop.set()
        if thread.ident:
            thread.join()
        with suppress(OSError):
            if _read(folder, name).get("token") == owner["token"]:
                folder.delete(name)


def _keep_alive(folder: Folder, name: str, owner: dict[str, Any], stop: threading.Event) -> None:
    """Rewrite a lock file until `stop` is set."""
    beats = 0
    while not stop.wait(BEAT):
        beats += 1
        with suppress(OSError):  # if the store can't be reached, the run itself fails
            if _read(folder, name).get("token", owner["token"]) != owner["token"]:
                signal.raise_signal(signal.SIGTERM)  # our updates came too late: another run took over
                return
            _beat(folder, name, owner, beats)


def _beat(folder: Folder, name: str, owner: dict[str, Any], beats: int) -> None:
    with folder.commit(name) as partial:
        partial.write_text(json.dumps(owner | {"beats": beats}))


def _read(folder: Folder, name: str) -> dict[str, Any]:
    with suppress(FileNotFoundError):  # its owner may delete it after `has`
        if folder.has(name):
            return _parsed(folder.read(name))
    return {}


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
