"""A proxy before a server, which fails as a test says."""

from __future__ import annotations

import http.client
import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

Fault = Callable[[str, str], int | None]
"""Takes the method and the path of a request; returns the status to answer, 0 to cut the connection, or None to let the
request through."""


class Faults:
    """The faults of a proxy, and the requests that it saw."""

    def __init__(self) -> None:
        self.fault: Fault = lambda method, path: None
        self.seen: list[tuple[str, str]] = []
        """Method and path of each request, also of failed ones."""

    def times(self, number: int, status: int, method: str, part: str) -> None:
        """Fail the next `number` requests of this method whose path contains `part`."""
        left = [number]

        def fault(asked: str, path: str) -> int | None:
            if asked != method or part not in path or not left[0]:
                return None
            left[0] -= 1
            return status

        self.fault = fault


@contextmanager
def faulty(server: str) -> Iterator[tuple[str, Faults]]:
    """Yield the URL of a proxy before a server of S3's protocol, and its faults."""
    faults, target = Faults(), urlsplit(server)

    class Proxy(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *parts: Any) -> None:
            pass

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            faults.seen.append((self.command, self.path))
            status = faults.fault(self.command, self.path)
            if status == 0:
                self.close_connection = True
                self.connection.close()
                return
            if status is not None:
                code = {403: "AccessDenied", 503: "SlowDown"}.get(status, "InternalError")
                self.answer(status, [], f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode())
                return
            onward = http.client.HTTPConnection(str(target.hostname), target.port or 80)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            onward.request(self.command, self.path, body, {**headers, "Host": target.netloc})
            found = onward.getresponse()
            content = found.read()
            dropped = {"transfer-encoding", "content-length", "connection"}
            kept = [(name, value) for name, value in found.getheaders() if name.lower() not in dropped]
            length = found.getheader("Content-Length") if self.command == "HEAD" else None
            self.answer(found.status, kept, content, length)
            onward.close()

        def answer(self, status: int, headers: list[tuple[str, str]], body: bytes, length: str | None = None) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", length or str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        proxy.daemon_threads, proxy.block_on_close = True, False
        threading.Thread(target=proxy.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{proxy.server_port}", faults
        proxy.shutdown()
