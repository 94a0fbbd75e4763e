"""Start Ray on this machine or join a cluster, hide Ray's own messages, and leave Ray at the end."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pad_pipeline
from pad_pipeline.console import note
from pad_pipeline.errors import UnavailableError, UserError

HEAD_EVERY = 3.0
"""Seconds between two checks of the cluster's head."""
HEAD_PATIENCE = 40.0
"""Seconds without an answer after which the head is given up. Ray itself ends the process after 60 seconds."""


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
    with _spoken_for(), _quiet_stderr():  # even a quiet Ray prints a message while it starts
        import ray

        _start(ray, address)
    try:
        yield ray
    finally:
        with _quiet_stderr():
            ray.shutdown()


@contextmanager
def _spoken_for() -> Iterator[None]:
    """Let a shell print an error if this process ends inside the block. Ray's native code ends the process without a
    message, and with exit code 1, if the raylet dies while the process joins the cluster."""
    rule = "this process was ended while it joined the cluster, perhaps because Ray's process raylet died"
    lost = UnavailableError("engine", "ray", rule, "start Ray again, then run the same command again to resume")
    script = 'read -r joined || printf "%s\\n" "$0" >&2'
    with subprocess.Popen(["/bin/sh", "-c", script, f"error: {lost}"], stdin=subprocess.PIPE) as shell:
        try:
            yield
        finally:
            assert shell.stdin
            with suppress(OSError):
                shell.stdin.write(b"joined\n")
                shell.stdin.close()


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


_DURATION = re.compile(r"(\d{1,6})([smh])")


def seconds_of(field: str, duration: str) -> float:
    """Return the seconds of a duration such as 30s, 10m or 2h. `field` is the caller's parameter, for the error.

    Raises:
        UserError: the text is no duration.
    """
    if not (found := _DURATION.fullmatch(duration)):
        raise UserError(field, duration, "it should be a number and a unit", "write for instance 30s, 10m or 2h")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


def refuse_without_ray(**given: Any) -> None:
    """Raise a `UserError` for the first parameter of a cluster that is given, though the command does not use Ray."""
    for name, value in given.items():
        if value not in (None, ""):
            raise UserError(name, value, "it goes with `engine` ray", "leave it out, or use `engine` ray")


class Cluster(NamedTuple):
    """A Ray cluster, and what a command wants from it."""

    address: str = ""
    """See `ray_session`."""
    gpus: float | None = None
    """GPUs that each worker with models reserves; None means 1, but 0 on this machine alone if it has no GPU."""
    wait: float = 600.0
    """Seconds that the command waits for missing workers before it stops."""


def living_nodes(ray: Any) -> dict[str, dict[str, float]]:
    """Return the resources of each living node of the cluster, by the node's id."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def gpus_each(ray: Any, cluster: Cluster) -> float:
    """Return the GPUs that each worker with models reserves. A cluster may get its first GPU later; this machine can't.

    Raises:
        UserError: `cluster.gpus` is not 0, and this machine alone has no GPU.
    """
    if not cluster.address and not any(node.get("GPU", 0) for node in living_nodes(ray).values()):
        if cluster.gpus:
            raise UserError("gpus", cluster.gpus, "Ray finds no GPU on this machine", "leave it out, or give 0")
        return 0
    return 1 if cluster.gpus is None else cluster.gpus


def hide_gpus(ray: Any) -> None:
    """Hide the GPUs of this machine from PyTorch, in a worker of Ray that reserves none. Ray itself does not."""
    if not ray.get_gpu_ids():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


class Patience:
    """Watches whether a cluster has room for workers that Ray's own libraries start.

    Args:
        ray: the module of a session.
        needs: what each worker reserves, by Ray's names: CPU, GPU.
        least: the fewest workers.
        wait: seconds for which there may be room for fewer.
        say: a function that gets a message.
    """

    def __init__(self, ray: Any, needs: dict[str, float], least: int, wait: float, say: Callable[[str], None]) -> None:
        self.ray, self.least, self.wait, self.say = ray, least, wait, say
        self.needs = {name: amount for name, amount in needs.items() if amount}
        self.since: float | None = None
        self.said = False

    def check(self) -> None:
        """Look at the cluster. Call this every few seconds.

        Raises:
            UnavailableError: there was too little room for too long, or the machine of this process left the cluster.
        """
        nodes = living_nodes(self.ray)
        check_own_node(self.ray, nodes)
        room = sum(
            min(int(node.get(name, 0) / amount + 1e-6) for name, amount in self.needs.items())
            for node in nodes.values()
        )
        if room >= self.least:
            self.since, self.said = None, False
            return
        self.since = self.since or time.monotonic()
        reserved = " and ".join(f"{amount:g} {name}" for name, amount in self.needs.items())
        rule = f"the cluster has room for {room} of at least {self.least} workers, which reserve {reserved} each"
        if time.monotonic() - self.since > self.wait:
            remedy = "run the same command again when it has room, or give a longer `wait`"
            raise UnavailableError("wait", f"{self.wait:g} s", rule, remedy)
        if not self.said:
            self.said = True
            cpu = " `gpus` 0 computes on the CPU." if "GPU" in self.needs else ""
            self.say(f"Waiting up to {self.wait:g} seconds: {rule}.{cpu}")


def check_own_node(ray: Any, nodes: Container[str]) -> None:
    """Raise `UnavailableError` if the machine of this process is not among the living nodes."""
    if (own := ray.get_runtime_context().get_node_id()) and own not in nodes:
        rule = "the Ray process of this machine (its raylet) died, or the cluster has given this machine up"
        raise UnavailableError("engine", "ray", rule, "start Ray again, then run the same command again to resume")


@contextmanager
def watched(ray: Any) -> Iterator[None]:
    """End this process with a message and exit code 4 if the head of the cluster does not answer for `HEAD_PATIENCE`.

    Without that, each call to Ray hangs, and after a minute Ray ends the process without a message.
    """
    if ray.util.client.ray.is_connected():  # a client raises errors when its connection ends
        yield
        return
    host, port = _host_and_port(ray.get_runtime_context().gcs_address)
    stopped = threading.Event()

    def watch() -> None:
        answered = 0.0  # if it never answers, a firewall may be the reason, and Ray itself finds out
        while True:
            try:
                socket.create_connection((host, int(port)), timeout=HEAD_EVERY).close()
                answered = time.monotonic()
            except OSError:
                if answered and time.monotonic() - answered > HEAD_PATIENCE:
                    rule = f"the head of the cluster at {host}:{port} does not answer (Ray's process gcs_server)"
                    lost = UnavailableError("engine", "ray", rule, "run the same command again to resume")
                    note(f"error: {lost}", "red")
                    os._exit(lost.code)
            if stopped.wait(HEAD_EVERY):
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        stopped.set()


def _host_and_port(address: str) -> tuple[str, str]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), port  # an IPv6 address stands in brackets


def check_listening(address: str) -> None:
    """Raise an OSError if nothing listens at the address. Ray itself would try for minutes."""
    host, port = _host_and_port(address.removeprefix("ray://"))
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
