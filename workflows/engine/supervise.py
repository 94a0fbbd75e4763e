"""The local engine in a child process: one that dies over an image is started again, and the journal says where."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from contextlib import suppress
from typing import NoReturn

from pad_pipeline.console import errors

_PR_SET_PDEATHSIG = 1
_pipe = -1
"""Where the child writes a sign of life; -1 where nobody watches."""


def supervised() -> None:
    """Go on in a child process; the parent waits, passes signals on, and starts a child that died anew.

    It does nothing where threads or models are in the process already, which would not survive the fork.
    """
    if sys.platform != "linux" or "torch" in sys.modules or threading.active_count() > 1 or _pipe >= 0:
        return
    while True:
        sys.stdout.flush()
        sys.stderr.flush()
        reads, writes = os.pipe()
        parent, child = os.getpid(), os.fork()
        if child == 0:
            os.close(reads)
            _begin(writes, parent)
            return
        os.close(writes)
        _watch(child, reads)


def alive() -> None:
    """A task is about to begin: if the process dies from here on, it is worth another try."""
    _write(b"t")


def ended() -> None:
    """The process ends by its own will."""
    _write(b"e")


def _write(sign: bytes) -> None:
    if _pipe >= 0:
        os.write(_pipe, sign)


def _begin(pipe: int, parent: int) -> None:
    global _pipe
    _pipe = pipe
    os.setpgid(0, 0)  # Ctrl-C and Ctrl-Z go to the parent alone, which passes them on once
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _watch(child: int, pipe: int) -> None:
    """Wait for the child; return where it should be started again."""

    def forward(number: int, frame: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, number)

    def pause(number: int, frame: object) -> None:
        os.kill(child, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)  # until the shell's `fg` or `bg`
        os.kill(child, signal.SIGCONT)

    handlers = dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), forward) | {signal.SIGTSTP: pause}
    handlers = {n: handler for n, handler in handlers.items() if signal.getsignal(n) is not signal.SIG_IGN}  # nohup
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    signs = b""
    while piece := os.read(pipe, 1 << 16):  # to the end: the child, and all that it started, are gone then
        signs = (signs + piece)[-1:]
    os.close(pipe)
    _, status = os.waitpid(child, 0)
    for number, handler in before.items():
        signal.signal(number, handler)
    code = os.waitstatus_to_exitcode(status)
    if signs == b"e":
        _exit(code)
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    if signs != b"t":
        errors.print(f"error: the process died ({how}) before it had begun a shard", style="red", highlight=False)
        _exit(1)
    errors.print(f"The process died ({how}); going on in a new one.", style="yellow", highlight=False)


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    os._exit(code if code >= 0 else 128 - code)  # the parent holds nothing that wants closing
