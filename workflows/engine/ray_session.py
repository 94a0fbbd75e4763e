"""Start Ray on this machine, or join a cluster, without Ray's own messages; and leave it at the end."""

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
    """Yield the module `ray`, joined to the cluster at `address`. An empty address starts Ray on this machine, on
    loopback, and stops it at the end.

    Raises:
        UserError: there is no Ray at the address.
    """
    # Before Ray is imported, which reads these once: no notes about its own future, no notes of its C++ parts.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if not address:
        # Use loopback, because anybody who reaches Ray's ports can run code here. Ray's own option for this machine's
        # address turns 127.0.0.1 into the outer one; with this variable Ray stays on loopback.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    with _quiet_stderr():  # Ray announces there that it was asked to be quiet
        import ray

        _start(ray, address)
    try:
        yield ray
    finally:
        with _quiet_stderr():
            ray.shutdown()


def _start(ray: Any, address: str) -> None:
    options: dict[str, Any] = {"include_dashboard": False}
    if address:  # the cluster's nodes may lack this package or have another version of it
        package = str(Path(str(pad_pipeline.__file__)).parent)
        options = {"runtime_env": {"py_modules": [package]}}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        knock(address)
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **options)
        # A death is reported in our words, and not on standard output; there is no option for this.
        ray._private.worker.print_to_stdstream = lambda *_, **__: None
    except (OSError, ValueError, RuntimeError) as error:
        remedy = "start a cluster with `ray start --head`; if it wants a token, set RAY_AUTH_MODE=token and "
        remedy += "RAY_AUTH_TOKEN; or leave Ray out"
        raise UserError("address", address or "local", f"Ray can't be joined there ({error})", remedy) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray replaces it by one that ends without a message


def knock(address: str) -> None:
    """Raise an OSError if nobody listens at the address: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=5).close()


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Discard everything that is written to standard error, by native code too. Exceptions pass."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
