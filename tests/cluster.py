"""Ray clusters on this machine."""

from __future__ import annotations

import json
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
def cluster(cpus: int = 2, port: int = 0, autoscaler: dict[str, Any] | None = None) -> Iterator[str]:
    """One node in processes of its own, and its address. It outlives the drivers that join it. Another Ray on this
    machine is neither joined nor stopped.

    With `autoscaler`, Ray's own autoscaler runs beside it with this configuration.
    """
    port, client = port or free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="pad-ray-") as folder:
        command = [
            *(RAY, "start", "--head", "--block", "--port", port),
            *("--ray-client-server-port", client, "--temp-dir", folder, "--num-cpus", cpus),
            *("--include-dashboard", "false", "--disable-usage-stats", "--object-store-memory", 200_000_000),
        ]
        # Without a token, which drivers that are given an address would have to be told.
        environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
        environment.pop("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "")  # a Ray of this process alone may have set it
        if autoscaler:
            configuration = Path(folder, "autoscaler.yaml")
            configuration.write_text(json.dumps(autoscaler))
            command += ["--autoscaling-config", configuration]
            environment |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        said = Path(folder, "started.log")
        with said.open("w") as log:
            started = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, env=environment)
        try:
            while not (found := re.search(r"ray start --address='(.+?)'", said.read_text())):
                assert started.poll() is None, said.read_text()
                time.sleep(0.1)
            yield found[1]
        finally:
            started.terminate()  # it ends all that it started
            started.wait(30)


def nodes_by_demand(number: int) -> dict[str, Any]:
    """Return a configuration of Ray's autoscaler that adds up to `number` nodes with a GPU and as many without one,
    processes of this machine, as they are needed. Ray's provider of such nodes wants the head's port to be 6379."""
    head = {"resources": {"CPU": 0}, "node_config": {}, "min_workers": 0, "max_workers": 0}
    plain = {"CPU": 2, "object_store_memory": 100_000_000}
    types = {
        name: {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": number}
        for name, resources in (("cpu", plain), ("gpu", plain | {"GPU": 1}))
    }
    lists = "initialization_commands setup_commands head_setup_commands worker_setup_commands cluster_synced_files"
    lists += " head_start_ray_commands worker_start_ray_commands rsync_exclude rsync_filter"
    empty: dict[str, Any] = {name: [] for name in lists.split()}
    empty |= {"auth": {}, "docker": {}, "file_mounts": {}, "file_mounts_sync_continuously": False}
    provider = {"type": "fake_multinode", "disable_node_updaters": True, "disable_launch_config_check": True}
    return empty | {
        "cluster_name": "test", "max_workers": 2 * number, "upscaling_speed": 1.0, "idle_timeout_minutes": 1,
        "provider": provider, "head_node_type": "head", "available_node_types": {"head": head, **types},
    }  # fmt: skip


def is_free(port: int) -> bool:
    """Return whether nobody listens on a port."""
    try:
        socket.create_server(("", port)).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def nodes(number: int, gpus: int = 0) -> Iterator[tuple[Any, list[Any]]]:
    """A head without CPUs, and nodes with one each; the cluster, and these nodes. Ray is told that each has some GPUs:
    where none is, what gets one computes on the CPU."""
    before = dict(os.environ)
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        from ray.cluster_utils import Cluster

        memory = {"object_store_memory": 200_000_000}
        head = {"num_cpus": 0, "include_dashboard": False, **memory}
        made = Cluster(initialize_head=True, head_node_args=head)
        try:
            yield made, [made.add_node(num_cpus=1, num_gpus=gpus, **memory) for _ in range(number)]
        finally:
            made.shutdown()
    finally:
        for name in os.environ.keys() - before:
            del os.environ[name]
        os.environ.update(before)
