"""An S3 server with a made-up bucket, whose listing and objects are computed when they are asked for."""

from __future__ import annotations

import http.server
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = 1000
"""Objects on one page of a listing, the most that S3 gives."""


class Bucket(http.server.BaseHTTPRequestHandler):
    """Answers for `objects` names: `images/000000000.jpg` and so on, and the two files of each of as many shards in
    `run/`. Every index is `index`."""

    objects = 0
    index = b""
    latency = 0.0
    """Seconds before each answer."""
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """A page of the listing, or a range of an index."""
        time.sleep(self.latency)
        parts = urlsplit(self.path)
        asked = {name: value[0] for name, value in parse_qs(parts.query).items()}
        if "list-type" in asked:
            self._answer(200, self._page(asked))
        elif unquote(parts.path).endswith(".parquet"):
            first, last = re.findall(r"\d+", self.headers.get("Range", "bytes=0-999999999"))
            self._answer(206, self.index[int(first) : int(last) + 1])
        else:
            self._answer(404, b"")

    def do_HEAD(self) -> None:
        """Size of an index; nothing else is there."""
        time.sleep(self.latency)
        there = urlsplit(self.path).path.endswith(".parquet")
        self._answer(200 if there else 404, b"", len(self.index) if there else 0)

    def _page(self, asked: dict[str, str]) -> bytes:
        run = asked.get("prefix", "").startswith("run/")
        total = 2 * self.objects if run else self.objects
        first = int(asked.get("continuation-token", "0"))
        last = min(first + PAGE, total)
        content = ""
        for number in range(first, last):
            key = _shard_file(number) if run else f"images/{number:09d}.jpg"
            size = len(self.index) if key.endswith("parquet") else 4
            content += f"<Contents><Key>{key}</Key><Size>{size}</Size></Contents>"
        more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{last}</NextContinuationToken>"
        return f"<ListBucketResult>{content}{more if last < total else ''}</ListBucketResult>".encode()

    def _answer(self, status: int, body: bytes, size: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if size is None else size))
        self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        self.send_header("ETag", '"0"')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def _shard_file(number: int) -> str:
    return f"run/pad-{number // 2:06d}.{'tar' if number % 2 else 'parquet'}"


@contextmanager
def served() -> Iterator[str]:
    """Yield the address of the server, in threads of this process."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket) as server:
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


if __name__ == "__main__":  # OBJECTS LATENCY < INDEX: it runs until its input ends
    Bucket.objects, Bucket.latency = int(sys.argv[1]), float(sys.argv[2])
    Bucket.index = sys.stdin.buffer.read(int(sys.argv[3]))
    with served() as address:
        print(address, flush=True)
        sys.stdin.buffer.read()
