"""Start Ray on this machine or join a cluster, hide Ray's own messages, and leave Ray at the end."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pad_pipeline
from pad_pipeline.errors import UserError


@contextmanager
def ray_session(address: str) -> Iterator[Any]:
    """Join the cluster at `address`, yield the module `ray`, and leave the cluster at the end.

    An empty address starts Ray on this machine, reachable over loopback only, and stops it at the end.

    Raises:
        UserError: there is no Ray at the address.
    """
    # Ray reads these variables when it is imported. They hide Ray's notes on coming changes, and its C++ messages.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if not address:
        # Use loopback, because anybody who reaches Ray's ports can run code here. Ray's option for the address of this
        # machine would replace 127.0.0.1 by the outer address. This variable keeps Ray on loopback.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    with _quiet_stderr():  # even a quiet Ray prints a message while it starts
        import ray

        _start(ray, address)
    try:
        yield ray
    finally:
        with _quiet_stderr():
            ray.shutdown()


def _start(ray: Any, address: str) -> None:
    options: dict[str, Any] = {"include_dashboard": False}
    if address:  # send this package along, because the nodes may have another version of it, or none
        package = str(Path(str(pad_pipeline.__file__)).parent)
        options = {"runtime_env": {"py_modules": [package]}}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        check_listening(address)
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **options)
        # Ray has no option against its own reports of dead workers on standard output. The engine reports them.
        ray._private.worker.print_to_stdstream = lambda *_, **__: None
    except (OSError, ValueError, RuntimeError) as error:
        remedy = "start a cluster with `ray start --head`; if it wants a token, set RAY_AUTH_MODE=token and "
        remedy += "RAY_AUTH_TOKEN; or leave Ray out"
        raise UserError("address", address or "local", f"Ray can't be joined there ({error})", remedy) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray sets a handler that ends the process without a message


def check_listening(address: str) -> None:
    """Raise an OSError if nothing listens at the address. Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=5).close()


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Discard all output to standard error, even from native code. Exceptions pass."""
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
