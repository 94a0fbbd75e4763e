"""The web server that the tests of sources ask."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from pad_pipeline import retries
from tests.sources.server import Handler


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """`tmp_path / "web"` over HTTP on this machine; no waiting between tries."""
    monkeypatch.setattr(retries, "PAUSE", 0.0)
    folder = tmp_path / "web"
    folder.mkdir()
    handler = type("Handler", (Handler,), {"special": {}})
    serve = lambda *a, **k: handler(*a, directory=str(folder), **k)  # noqa: E731
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield SimpleNamespace(folder=folder, url=f"http://127.0.0.1:{server.server_port}", special=handler.special)
        server.shutdown()
