"""A file of weights is fetched once for all workers of a node."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from tests.conftest import ROOT


def test_a_file_is_fetched_once_for_all_workers_of_a_node(tmp_path: Path) -> None:
    """Eight workers of a node that start together fetched 2.5 GB each."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.send_header("Accept-Ranges", "none")
            self.end_headers()

        def do_GET(self) -> None:
            asked.append(self.path)
            self.do_HEAD()
            self.wfile.write(bytes(1_000_000))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/sam.pth"
    code = (
        "import sys; from pad_pipeline.weights import fetch_file; print(fetch_file('segmenter.weights', sys.argv[1]))"
    )
    environment = os.environ | {"PAD_CACHE": str(tmp_path)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, url], stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
        )
        for _ in range(3)
    ]
    paths = {worker.communicate()[0] for worker in workers}
    server.shutdown()
    assert len(paths) == 1
    assert hashlib.sha256(Path(paths.pop().strip()).read_bytes()).digest() == hashlib.sha256(bytes(1_000_000)).digest()
    assert len(asked) == 1
