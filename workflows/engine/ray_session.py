"""Ray on this machine, or a cluster, joined quietly and left again."""

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
    """Ray, joined.

    Args:
        address: of a running cluster; empty starts Ray on this machine, on loopback, and stops it at the end.

    Raises:
        UserError: there is no Ray at the address.
    """
    # Before Ray is imported, which reads these once: no notes about its own future, no notes of its C++ parts.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if not address:
        # Loopback, for whoever reaches Ray's ports can run code here. Its own option for this machine's address
        # turns 127.0.0.1 into the outer one; on a system that it takes for no cluster it stays on loopback.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    with _quiet_stderr():  # Ray announces there that it was told to be quiet
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
        # A death is told in our words, and not on standard output; there is no option for this.
        ray._private.worker.print_to_stdstream = lambda *_, **__: None
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            "address",
            address or "local",
            f"Ray can't be joined there ({error})",
            "start a cluster with `ray start --head`; where it wants a token, set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN; or leave Ray out",
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray puts its own there, which ends without a word


def knock(address: str) -> None:
    """Whether anybody listens there at all: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=5).close()


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Send what native code writes to this process's standard error nowhere. Exceptions come through as ever."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
