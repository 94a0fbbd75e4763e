"""A web server on this machine, which can also answer as bad servers do."""

from __future__ import annotations

import http.server
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Handler(http.server.SimpleHTTPRequestHandler):
    """A folder, with ranges; and special answers by path."""

    special: dict[str, Callable[[Handler], None]]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.path in self.special:
            return self.special[self.path](self)
        path, wanted = Path(self.translate_path(self.path)), self.headers.get("Range")
        if not path.is_file() or wanted is None:
            return super().do_GET() if self.command == "GET" else super().do_HEAD()
        content = path.read_bytes()
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last or len(content)) + 1]
        self.answer(part, 206, {"Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"})

    def answer(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing."""
