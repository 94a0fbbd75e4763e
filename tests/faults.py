"""A proxy before a server of S3's protocol, which fails as a test says."""

from __future__ import annotations

import http.client
import http.server
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

CUT, HANG, HALF, SHORT, STALL, LOST, TORN, ERROR_200, STALE = range(9)
"""What can go wrong beside an error's status: the connection is cut before the answer; the answer never comes; it is
cut in its middle; it is cut, and says that this was all; it stops in its middle, and never goes on; the request is
carried out, and the answer is lost; half of an upload arrives; an error comes with status 200; a listing is an earlier
one, or lacks its last object."""
NAMES = ("cut", "hang", "half", "short", "stall", "lost", "torn", "error with 200", "stale listing")
Fault = Callable[[str, str], int | None]
"""Takes the method and the path of a request; returns a status to answer, one of the numbers above, or None to let the
request through."""


class Rule(NamedTuple):
    """A fault for some requests: for `times` of them, after the first `after`."""

    fault: int
    method: str
    part: str
    after: int
    times: int


class Faults:
    """The faults of a proxy, and the requests that it saw."""

    def __init__(self) -> None:
        self.fault: Fault = lambda method, path: None
        self.seen: list[tuple[str, str]] = []
        """Method and path of each request, also of failed ones."""
        self.injected: Counter[str] = Counter()
        """Number of faults, by name or status."""
        self.listings: dict[str, bytes] = {}
        """The last true answer to each listing."""
        self.lifted = threading.Event()
        """Ends the waits of requests that hang."""

    def times(self, number: int, status: int, method: str, part: str) -> None:
        """Fail the next `number` requests of this method whose path contains `part`."""
        self.rules([Rule(status, method, part, 0, number)])

    def rules(self, rules: list[Rule]) -> None:
        """Fail as the rules say; the first that fits a request holds."""
        left, lock = [[rule.after, rule.times] for rule in rules], threading.Lock()

        def fault(method: str, path: str) -> int | None:
            with lock:
                for rule, counts in zip(rules, left, strict=True):
                    if rule.method != method or rule.part not in unquote(path):
                        continue
                    if counts[0] > 0:
                        counts[0] -= 1
                    elif counts[1] > 0:
                        counts[1] -= 1
                        return rule.fault
            return None

        self.lifted.set()
        self.lifted = threading.Event()
        self.fault = fault


@contextmanager
def faulty(server: str) -> Iterator[tuple[str, Faults]]:
    """Yield the URL of a proxy before a server of S3's protocol, and its faults."""
    faults, target = Faults(), urlsplit(server)

    class Proxy(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *parts: Any) -> None:
            pass

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            faults.seen.append((self.command, self.path))
            fault = self.possible(faults.fault(self.command, self.path))
            if fault is not None:
                faults.injected[NAMES[fault] if fault < len(NAMES) else str(fault)] += 1
            if fault == HANG:
                faults.lifted.wait(60)
            if fault in (CUT, HANG):
                self.cut()
            elif fault == ERROR_200 or (fault is not None and fault >= len(NAMES)):
                code = {403: "AccessDenied", 503: "SlowDown"}.get(fault, "InternalError")
                error = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
                self.answer(200 if fault == ERROR_200 else fault, [], error)
            else:
                self.forward(body, fault)

        def possible(self, fault: int | None) -> int | None:
            """The fault, if a request of this kind can have it."""
            listing = "list-type" in self.path
            fits = {
                HALF: self.command == "GET", SHORT: self.command == "GET" and not listing, STALL: self.command == "GET",
                LOST: self.command in ("PUT", "POST", "DELETE"), TORN: self.command == "PUT",
                ERROR_200: listing or self.command in ("POST", "PUT"), STALE: listing,
            }  # fmt: skip
            return fault if fault is None or fits.get(fault, True) else None

        def forward(self, body: bytes, fault: int | None) -> None:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            if fault == TORN:
                body = body[: len(body) // 2]
                kept = re.compile(r"(?i)content-(length|md5)|x-amz-checksum.*|x-amz-sdk-checksum.*")
                headers = {name: value for name, value in headers.items() if not kept.fullmatch(name)}
            onward = http.client.HTTPConnection(str(target.hostname), target.port or 80)
            onward.request(self.command, self.path, body, {**headers, "Host": target.netloc})
            found = onward.getresponse()
            content = found.read()
            onward.close()
            dropped = {"transfer-encoding", "content-length", "connection"}
            answered = [(name, value) for name, value in found.getheaders() if name.lower() not in dropped]
            length = found.getheader("Content-Length") if self.command == "HEAD" else None
            if "list-type" in self.path:
                if fault == STALE:
                    known = faults.listings.get(self.path)
                    last = content.rpartition(b"<Contents>")[0]
                    content = known or (last + content[content.rindex(b"</Contents>") + 11 :] if last else content)
                else:
                    faults.listings[self.path] = content
            if fault == LOST:
                self.cut()
                return
            if fault in (HALF, STALL):
                length, content = str(len(content)), content[: len(content) // 2]
            if fault == SHORT:
                content = content[: len(content) // 2]
            self.answer(found.status, answered, content, length)
            if fault == STALL:
                self.wfile.flush()
                faults.lifted.wait(60)
            if fault in (HALF, STALL):
                self.cut()

        def cut(self) -> None:
            self.close_connection = True
            self.wfile.flush()
            self.connection.close()

        def answer(self, status: int, headers: list[tuple[str, str]], body: bytes, length: str | None = None) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", length or str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads, block_on_close = True, False

        def handle_error(self, *_: Any) -> None:  # a client that has given up
            pass

    with Server(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{proxy.server_port}", faults
        faults.lifted.set()
        proxy.shutdown()
