"""Connect the workers of Ray Train to a torch process group that listens on one address instead of all of them.

Ray Train's own way lets torch's store listen on every address of the machine. Anybody who reaches a process group can
run code in it, because objects that ranks exchange are pickled.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from datetime import timedelta
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.train import get_context
from ray.train.torch.config import TorchConfig, _TorchBackend
from torch._C._distributed_c10d import Store, TCPStore

from pad_pipeline.workflows.engine.ray_session import hide_gpus

_store: Store | None = None
"""The store of the process group, in the worker of rank 0 only."""


class GroupConfig(TorchConfig):  # type: ignore[misc]
    """Settings of Ray Train's backend that sets up the process group."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """Return the class that makes the process group."""
        return _GroupBackend


class _GroupBackend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Set the environment variables of each worker's rank, and make the process group if there are several."""
        worker_group.execute(_set_ranks)
        if len(worker_group) > 1:
            group = *worker_group.execute_single(0, _listen), backend_config.timeout_s
            ray.get([worker_group.execute_single_async(rank, _join, *group) for rank in range(len(worker_group))])


def _set_ranks() -> None:
    hide_gpus(ray)
    context = get_context()
    os.environ["RANK"], os.environ["WORLD_SIZE"] = str(context.get_world_rank()), str(context.get_world_size())
    os.environ["LOCAL_RANK"] = str(context.get_local_rank())


def _listen() -> tuple[str, int]:
    """Start the store on the address that this node has in Ray's cluster, and return its address and port."""
    global _store
    host = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    port = (listener := socket.create_server((host, 0), family=family)).getsockname()[1]
    _store = TCPStore(host, port, None, True, wait_for_workers=False, master_listen_fd=listener.detach())
    return host, port


def _join(host: str, port: int, seconds: int) -> None:
    if ipaddress.ip_address(host).is_loopback:  # all workers are on this machine
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, "lo0" if sys.platform == "darwin" else "lo")
    store = _store or TCPStore(host, port, None, False, wait_for_workers=False)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    rank, world = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timedelta(seconds=seconds))
