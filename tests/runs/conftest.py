"""What the tests of runs share: options of small builds, an import without models, images of one's own to change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import Any

import fsspec
import pytest

from pad_pipeline.miniature.files import World

Pad = Callable[..., Any]
"""The fixture `pad`: runs a command in this process."""


@pytest.fixture(scope="session")
def common(models_toml: Path) -> list[object]:
    """Options of a build with the small models."""
    return ["--models", models_toml, "--view-size", 112, "--threads", 1]


@pytest.fixture(scope="session")
def imported(world: World, models_toml: Path) -> list[object]:
    """An import of the ten scenes: no model runs, so it takes no time."""
    return ["import", "coco", "--annotations", world.instances, "--images", world.images,
            "--models", models_toml, "--view-size", 112]  # fmt: skip


@pytest.fixture
def folder(world: World, tmp_path: Path) -> Path:
    """Images of one's own, to change."""
    images = tmp_path / "images"
    shutil.copytree(world.images, images)
    return images


@contextmanager
def living(lock: str) -> Iterator[None]:
    """Write signs of life of another run into the lock at this path of a store, from before the block to its end."""
    files, stop, beats = fsspec.filesystem("s3"), Event(), count()

    def beat() -> None:
        holder = {"host": "there", "process": 1, "token": "y", "beats": next(beats)}
        files.pipe(lock, json.dumps(holder).encode())

    def live() -> None:
        while not stop.wait(0.05):
            beat()

    beat()
    other = Thread(target=live)
    other.start()
    try:
        yield
    finally:
        stop.set()
        other.join()


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """A bucket of an S3 server on this machine."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        files = fsspec.filesystem("s3")
        files.makedirs("bucket", exist_ok=True)  # the buckets of one process outlive its servers
        yield "s3://bucket"
        files.clear_instance_cache()  # the next server has another port
    server.stop()
