"""Ray clusters on this machine."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RAY = Path(sys.executable).with_name("ray")


@contextmanager
def cluster(cpus: int = 2) -> Iterator[str]:
    """One node in processes of its own, and its address. It outlives the drivers that join it. Another Ray on this
    machine is neither joined nor stopped."""
    port, client = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="pad-ray-") as folder:
        command = [
            *(RAY, "start", "--head", "--block", "--port", port),
            *("--ray-client-server-port", client, "--temp-dir", folder, "--num-cpus", cpus),
            *("--include-dashboard", "false", "--disable-usage-stats", "--object-store-memory", 200_000_000),
        ]
        said = Path(folder, "started.log")
        with said.open("w") as log:
            # Without a token, which drivers that are given an address would have to be told.
            environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
            environment.pop("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "")  # a Ray of this process alone may have set it
            started = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, env=environment)
        try:
            while not (found := re.search(r"ray start --address='(.+?)'", said.read_text())):
                assert started.poll() is None, said.read_text()
                time.sleep(0.1)
            yield found[1]
        finally:
            started.terminate()  # it ends all that it started
            started.wait(30)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def nodes(number: int, gpus: int = 0) -> Iterator[tuple[Any, list[Any]]]:
    """A head without CPUs, and nodes with one each; the cluster, and these nodes. Ray is told that each has some GPUs:
    where none is, what gets one computes on the CPU."""
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 200_000_000}
    head = {"num_cpus": 0, "include_dashboard": False, **memory}
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield made, [made.add_node(num_cpus=1, num_gpus=gpus, **memory) for _ in range(number)]
    finally:
        made.shutdown()
