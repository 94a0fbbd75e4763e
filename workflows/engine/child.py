"""A child process that builds a chain and works on tasks. This module has the code of both parent and child.

The child is a new process and not a fork, because models and threads do not survive a fork. `multiprocessing` is not
used, because it would run the caller's script again in the child. The child ignores signals from the terminal. It ends
when its parent asks, and at once when its parent is gone, so that no orphan goes on writing.
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
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any, NoReturn

from pad_pipeline.workflows.engine.chain import NO_MEMORY, Chain, Done, Link, MemoryRanOut, StageWork, portable

WRITES_WITHIN = 10.0
"""Seconds in which a child that is asked to end can finish the shard that it writes."""
PATIENCE = 20.0
"""Seconds in which a child can end by itself after a request. Then it is killed."""
_FEW_SPINS = {"GOMP_SPINCOUNT": "1000"}
"""How long a thread of OpenMP that waits for another one keeps its core. With its default, a build takes 1.4 times as
long, or much longer, on cores that other programs use too. On idle cores, this number costs 5%."""
_START = (
    "import sys; sys.path[:] = sys.argv[3:]; from pad_pipeline.workflows.engine.child import main; "
    "main(int(sys.argv[1]), sys.argv[2].split())"
)


class ChildDied(Exception):
    """The child process died. The text has its signal or exit code."""


class Child:
    """A child process, as its parent sees it. The child first imports `modules`."""

    _waiting: Child | None = None
    """A child that `preload` started and that `take` has not returned yet."""

    def __init__(self, *modules: str) -> None:
        self.connection, theirs = Pipe()
        with theirs:
            command = [sys.executable, "-c", _START, str(theirs.fileno()), " ".join(modules), *sys.path]
            self.process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=_FEW_SPINS | os.environ
            )

    @classmethod
    def preload(cls, *modules: str) -> None:
        """Start the child that `take` returns next. The child imports `modules` in the meantime."""
        cls._waiting = cls._waiting or cls(*modules)

    @classmethod
    def take(cls) -> Child:
        """Return the child that `preload` started, or else a new one."""
        child, cls._waiting = cls._waiting or cls(), None
        return child

    def begin(self, link: Link) -> None:
        """Let the child build the chain of `link`. The errors are the same as in `receive`."""
        level = logging.getLogger().level if logging.getLogger().handlers else 0
        self.send((link, level))
        self.receive()

    def send(self, message: object) -> None:
        """Send a message to the child. If the child has died, `receive` first gives what it said before."""
        with suppress(OSError):
            self.connection.send(message)

    def receive(self) -> Done | dict[str, StageWork] | str | None:
        """Return the child's next message: None when its chain is built, the name of the operation that it begins, the
        work of its stages, or the result of the task.

        Raises:
            ChildDied: the child died.
            Exception: any exception that the child raised.
        """
        try:
            while not self.connection.poll(1.0):
                if self.process.poll() is not None and not self.connection.poll():
                    raise EOFError  # a process that the child started may keep the connection open
            answer: Exception | Done | dict[str, StageWork] | str | None = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._death() from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def stop(self) -> None:
        """End the child by a request. If it does not obey, kill it."""
        self.process.terminate()
        self._wait()

    def _wait(self) -> int:
        """Wait until the child ends, and kill it after `PATIENCE` seconds. Return its exit code."""
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
        if code == NO_MEMORY:
            return ChildDied("its memory ran out")
        return ChildDied(f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}")


def main(descriptor: int, modules: list[str]) -> NoReturn:
    """Run the child: import `modules`, receive a link, build its chain, and work on the tasks that follow. `descriptor`
    is the file descriptor of the connection to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets both signals too, and ends the child
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
        _writing.acquire(timeout=WRITES_WITHIN)  # otherwise temporary files of a store would stay
        os._exit(code)  # a normal exit would wait for threads that read from a network


def _stop(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def _listen(connection: Connection, inbox: SimpleQueue[bytes]) -> None:
    """Queue the parent's messages. When the parent is gone, end at once, so that nothing more is written."""
    while True:
        try:
            inbox.put(connection.recv_bytes())
        except (EOFError, OSError):
            os._exit(1)


def _work(connection: Connection, inbox: SimpleQueue[bytes]) -> None:
    """Build the chain, and work on tasks in three lanes, so that the operations with a model need not wait for the
    others: the operations before them on the next shard, and those after them on the shard before."""
    lock, read, computed = threading.Lock(), SimpleQueue[Any](), SimpleQueue[Any]()

    def send(message: object) -> None:
        with lock:
            connection.send(message)

    try:
        link, level = pickle.loads(inbox.get())
        if level:
            logging.basicConfig(level=level, format="%(asctime)s %(name)s: %(message)s")  # as in cli.py
        chain: Chain = Chain(link, lambda: send(chain.work()))
    except Exception as error:
        send(portable(error))
        return

    def step(item: Any, first: int, last: int) -> Any:
        try:
            for number in range(first, last):
                if not isinstance(item, Exception):
                    send(chain.names[number])  # so that the parent knows in which operation the child dies
                    item = chain.run(item, number, number + 1)
        except MemoryRanOut:
            os._exit(NO_MEMORY)
        except Exception as error:
            return portable(error)
        return item

    def finish(item: Any) -> None:
        with _writing:
            result = step(item, last, len(chain.names))
        send(chain.work())
        send(result)

    first, last = link.before, len(chain.names) - link.after
    _lane(lambda: read.put(step(pickle.loads(inbox.get()), 0, first)))
    _lane(lambda: finish(computed.get()))
    send(None)
    while True:
        with suppress(Empty):  # a signal that arrives just before a wait is only handled after it
            computed.put(step(read.get(timeout=0.2), first, last))


_writing = threading.Lock()
"""Held while the last operations of the chain work on a shard."""


def _lane(work: Callable[[], None]) -> None:
    """Repeat `work` in a thread of its own. If it raises an exception, the process ends."""
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 0

    def repeat() -> None:
        try:
            if torch:
                torch.set_num_threads(threads)  # the number is that of a thread, and it affects the order of sums
            while True:
                work()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)

    threading.Thread(target=repeat, daemon=True).start()
