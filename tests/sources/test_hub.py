"""A data set of the Hugging Face hub, whose protocol a small server on this machine speaks."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from huggingface_hub import HfFileSystem, constants

from pad_pipeline.errors import UserError
from pad_pipeline.sources.open import open_source
from pad_pipeline.sources.read import read_bytes
from tests.sources.small_sources import MOST, error_of, png
from tests.sources.test_parquet_images import write_images

API, COMMIT = "/api/datasets/owner/name", "c" * 40


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub that lists a data set's repository and sends ranges of its files."""

    protocol_version = "HTTP/1.1"
    folder: Path
    refused: str = "nothing"
    """Part of the paths that this server refuses to list."""

    def log_message(self, *parts: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == API or path.startswith(f"{API}/revision/"):
            self.answer(json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": []}).encode())
        elif self.refused in path:
            self.answer(b'{"error": "ask for access"}', 403)
        elif path.startswith(f"{API}/tree/"):
            below = self.folder / path.removeprefix(f"{API}/tree/").partition("/")[2]
            entries = [self.entry(one) for one in sorted(below.iterdir())] if below.is_dir() else []
            self.answer(json.dumps(entries or {"error": "not found"}).encode(), 200 if entries else 404)
        elif "/resolve/" in path:
            content = (self.folder / path.partition("/resolve/main/")[2]).read_bytes()
            start, _, end = self.headers["Range"].removeprefix("bytes=").partition("-")
            self.answer(content[int(start) : int(end) + 1], 206)
        else:
            self.answer(b"{}", 404)

    def entry(self, path: Path) -> dict[str, Any]:
        facts = {"path": path.relative_to(self.folder).as_posix(), "oid": "a" * 40}
        return facts | ({"type": "directory"} if path.is_dir() else {"type": "file", "size": path.stat().st_size})

    def answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        for name, value in {"Content-Length": str(len(body)), "ETag": '"x"', "X-Repo-Commit": COMMIT}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(Hub, "folder", folder, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # for this server alone
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        HfFileSystem.clear_instance_cache()
        yield folder
        HfFileSystem.clear_instance_cache()
        server.shutdown()


@pytest.mark.parametrize("where", ["", "/data/train-*.parquet", "/data/train-{00000..00001}.parquet"])
def test_a_data_set_of_the_hub_is_read_by_its_name(hub: Path, where: str) -> None:
    """Catches a data set that has to be downloaded by hand, and a row that gets another row's image."""
    for number in range(2):
        write_images(hub / f"data/train-0000{number}.parquet", 3, 3 * number, text=["a", "b", "c"])
    (hub / "README.md").write_text("# a data set")
    source = open_source(f"hf://datasets/owner/name{where}")
    planned = list(source)
    assert [(one.id, one.caption) for one in planned] == [(str(number), "abc"[number % 3]) for number in range(6)]
    assert [read_bytes(source.root, one.place, MOST) for one in planned] == [png(number) for number in range(6)]


@pytest.mark.parametrize("clone", [False, True], ids=["hub", "clone"])
def test_a_data_set_with_a_folder_for_each_config_is_read_by_its_folders(hub: Path, clone: bool) -> None:
    """The form of HuggingFaceM4/FineVision and LLaVA-OneVision-Data: `CONFIG/train-*.parquet`. Catches "there is no
    image in it", and two data sets that are read as one."""
    (hub / ".gitattributes").write_text("*.parquet filter=lfs")
    (hub / "assets").mkdir()
    (hub / "assets/figure.png").write_bytes(png())
    name = str(hub) if clone else "hf://datasets/owner/name"
    for number in range(2):
        write_images(hub / f"ai2d/train-0000{number}.parquet", 2, 2 * number)
    source = open_source(name)
    planned = list(source)
    assert [one.id for one in planned] == ["0", "1", "2", "3"]
    assert [read_bytes(source.root, one.place, MOST) for one in planned] == [png(number) for number in range(4)]
    write_images(hub / "chart/train-00000.parquet", 1, 7)
    fsspec.filesystem("hf").invalidate_cache()
    folders = f"each in a folder (ai2d, chart); name the folder of one, such as {name}/ai2d"
    assert error_of(name) == f"images = {name}: it holds several data sets, {folders}"
    assert [one.id for one in open_source(f"{name}/chart")] == ["7"]
    for number in range(20):
        write_images(hub / f"d{number:02d}/train-00000.parquet", 1)
    fsspec.filesystem("hf").invalidate_cache()
    assert "(ai2d, chart, d00, d01, d02, d03, d04, d05, ...); name" in error_of(name)


def test_a_listing_that_is_refused_is_an_error(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a folder that may not be listed and is taken for one that does not exist, so that its images are lost."""
    monkeypatch.setattr(Hub, "refused", "images%2Fdata")
    (hub / "images").mkdir()
    (hub / "images/0.png").write_bytes(png(0))
    with pytest.raises(UserError, match=r"images/data: it can't be listed .*403"):
        open_source("hf://datasets/owner/name/images")
