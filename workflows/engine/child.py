"""A child process that holds a chain and works on the tasks that its parent sends; parent's and child's code are here.

The child is a new process and no fork, because models and threads would not survive a fork. multiprocessing would run
the caller's script again in it; here no part of the script is run. The child ignores signals of the terminal, ends when
its parent asks, and ends at once when its parent is gone, so that no orphan goes on writing.
"""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, NoReturn

from pad_pipeline.workflows.engine.chain import Chain, Done, Link, Task, Worked, portable

PATIENCE = 20.0
"""Seconds that a child has to end by itself."""
LOG_FORMAT = "%(asctime)s %(name)s: %(message)s"
"""Format of the messages of libraries, which `pad` shows when it is verbose."""
_START = (
    "import sys; sys.path[:] = sys.argv[3:]; from pad_pipeline.workflows.engine.child import main; "
    "main(int(sys.argv[1]), sys.argv[2].split())"
)


class ChildDied(Exception):
    """The child process has died; the text says how."""


class Child:
    """The parent's end of a child process, which first imports `modules`."""

    _waiting: Child | None = None
    """A child that `preload` started, and nobody has taken yet."""

    def __init__(self, *modules: str) -> None:
        self.connection, theirs = Pipe()
        with theirs:
            command = [sys.executable, "-c", _START, str(theirs.fileno()), " ".join(modules), *sys.path]
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)

    @classmethod
    def preload(cls, *modules: str) -> None:
        """Start the child that `taken` returns next. It imports modules while this process does other things."""
        cls._waiting = cls._waiting or cls(*modules)

    @classmethod
    def taken(cls) -> Child:
        """Return the child that `preload` started, or else a new one."""
        child, cls._waiting = cls._waiting or cls(), None
        return child

    def begin(self, link: Link) -> None:
        """Have the child build a chain; errors as in `receive`."""
        level = logging.getLogger().level if logging.getLogger().handlers else 0
        self.send((link, level))
        self.receive()

    def send(self, what: object) -> None:
        """Send a task, or raise `ChildDied`."""
        try:
            self.connection.send(what)
        except OSError as error:
            raise self._death() from error

    def receive(self) -> Done | dict[str, Worked] | str | None:
        """Return the child's next message: the name of the step that it begins, the work of its stages, or the result
        of the task.

        Raises:
            ChildDied: the child died.
            Exception: an exception of the child.
        """
        try:
            while not self.connection.poll(1.0):
                if self.process.poll() is not None and not self.connection.poll():
                    raise EOFError  # a process that the child started may still hold its end
            answer: Exception | Done | dict[str, Worked] | str | None = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._death() from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def stop(self) -> None:
        """End the child: first by a request, then by force."""
        self.process.terminate()
        self._wait()

    def _wait(self) -> int:
        """Wait for the child's end, at most `PATIENCE` seconds, then kill it; return its exit code."""
        try:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(PATIENCE)
        finally:  # also if the user interrupts the wait
            self.process.kill()
            code = self.process.wait()
            self.connection.close()
        return code

    def _death(self) -> ChildDied:
        code = self._wait()
        return ChildDied(f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}")


def main(descriptor: int, modules: list[str]) -> NoReturn:
    """Run the child: import modules, receive and build a chain, and work on the tasks that come then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets these too, and passes them on
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    os.set_inheritable(descriptor, False)
    code = 0
    try:
        connection, inbox = Connection(descriptor), SimpleQueue[bytes]()
        threading.Thread(target=_listen, args=(connection, inbox), daemon=True).start()
        for name in modules:
            importlib.import_module(name)
        _work(connection, inbox)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        code = 1
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)  # a normal exit would wait for threads that read from a network


def _stop(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def _listen(connection: Connection, inbox: SimpleQueue[bytes]) -> None:
    """Queue the parent's messages. When the parent is gone, nothing more may be written."""
    while True:
        try:
            inbox.put(connection.recv_bytes())
        except (EOFError, OSError):
            os._exit(1)


def _work(connection: Connection, inbox: SimpleQueue[bytes]) -> None:
    chain: Chain

    def tick() -> None:
        connection.send(chain.worked())

    try:
        link, level = pickle.loads(inbox.get())
        if level:
            logging.basicConfig(level=level, format=LOG_FORMAT)
        chain = Chain(link, tick)
    except Exception as error:
        connection.send(portable(error))
        return
    connection.send(None)
    while True:
        try:
            answer: Any = _done(chain, pickle.loads(inbox.get()), connection)
        except Exception as error:
            answer = portable(error)
        connection.send(answer)


def _done(chain: Chain, task: Task, connection: Connection) -> Done:
    item: Any = task
    for number, name in enumerate(chain.names):
        connection.send(name)  # so that the parent knows where the child dies
        item = chain.run(item, number, number + 1)
    connection.send(chain.worked())
    done: Done = item
    return done
