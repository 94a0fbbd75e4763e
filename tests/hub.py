"""A hub like Hugging Face's on this machine, for huggingface_hub, fsspec and pad's own range reads; and a web server.

It speaks the part of the hub's protocol that they use: facts and file lists of repositories, `resolve` with ETags and
redirects of large files to a CDN, ranges, gated repositories, and the errors of a hub that is busy or breaks off.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c" * 40
"""The commit of each repository to which a test gives no other."""
_API = re.compile(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/(.+))?)?")
_RESOLVE = re.compile(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Hub:
    """The state of a hub: what it holds, how it misbehaves, and what it was asked."""

    folder: Path
    """Holds `models/OWNER/NAME/`, `datasets/OWNER/NAME/`, `spaces/OWNER/NAME/`, and `web/` for other URLs."""
    url: str = ""
    commits: dict[str, str] = field(default_factory=dict)
    """Name of a repository -> its commit; the branch is `main`."""
    large: int = 2000
    """Files with more bytes are of LFS: they have a sha256, and come from the CDN."""
    gated: dict[str, str] = field(default_factory=dict)
    """Name of a repository -> the only token that may read its files."""
    refused: str = ""
    """Part of the paths that may not be listed."""
    versions: bool = True
    """Whether files have an ETag."""
    faults: dict[str, Iterator[str]] = field(default_factory=dict)
    """End of a path -> what goes wrong with one answer after another: a status, `cut BYTES`, `whole` for an answer
    without ranges, `fine`. When they are used up, all is fine."""
    asked: list[tuple[str, str, str, str]] = field(default_factory=list)
    """Method, path, Range and Authorization of each request."""
    sent: Counter[str] = field(default_factory=Counter)
    """Path of a file -> bytes that were sent of it."""

    def repository(self, name: str, kind: str = "models") -> Path:
        folder = self.folder / kind / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def requests(self, end: str, method: str = "GET") -> int:
        return sum(asked == method and path.endswith(end) for asked, path, *_ in self.asked)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *parts: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        header = self.headers.get
        self.hub.asked.append((self.command, path, header("Range", ""), header("Authorization", "")))
        if self.hub.refused and self.hub.refused in path:
            return self.answer(b'{"error": "ask for access"}', 403)
        if found := _API.fullmatch(path):
            return self.api(*found.groups(), **parse_qs(parts.query))
        if found := _RESOLVE.fullmatch(path):
            return self.resolve(*found.groups())
        if path.startswith(("/cdn/", "/web/")):
            fault = self.fault()
            return None if fault is True else self.send(self.hub.folder / path.removeprefix("/cdn/").lstrip("/"), fault)
        return self.answer(b"{}", 404)

    def repository(self, kind: str, name: str, revision: str | None) -> tuple[Path, str] | None:
        """The folder and the commit; None after an error that was sent."""
        folder, commit = self.hub.folder / kind / name, self.hub.commits.get(name, COMMIT)
        if not folder.is_dir():
            self.answer(b"{}", 401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif revision not in (None, "main", commit):
            self.answer(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
        else:
            return folder, commit
        return None

    def api(self, kind: str, name: str, question: str, revision: str, below: str = "", **options: Any) -> None:
        found = None if self.fault() is True else self.repository(kind, name, revision)
        if not found:
            return
        folder, commit = found
        if question != "tree":
            gated = "manual" if name in self.hub.gated else False
            return self.answer(json.dumps({"id": name, "sha": commit, "siblings": [], "gated": gated}).encode())
        deep = options.get("recursive", ["false"])[0].lower() in ("true", "1")
        start = folder / (below or "")
        paths = sorted(start.rglob("*") if deep else start.iterdir()) if start.is_dir() else []
        if below and not paths:
            return self.answer(b'{"error": "not found"}', 404, {"X-Error-Code": "EntryNotFound"})
        self.answer(json.dumps([self.entry(folder, path) for path in paths]).encode())

    def entry(self, folder: Path, path: Path) -> dict[str, Any]:
        facts: dict[str, Any] = {"path": path.relative_to(folder).as_posix(), "oid": "a" * 40}
        if path.is_dir():
            return facts | {"type": "directory"}
        facts |= {"type": "file", "size": path.stat().st_size, "oid": self.etag(path)}
        if path.stat().st_size > self.hub.large:
            facts["lfs"] = {"oid": self.etag(path), "size": path.stat().st_size, "pointerSize": 134}
        return facts

    def etag(self, path: Path) -> str:
        content = path.read_bytes()
        return (hashlib.sha256 if len(content) > self.hub.large else hashlib.sha1)(content).hexdigest()

    def resolve(self, kind: str | None, name: str, revision: str, file: str) -> None:
        fault = self.fault()
        if fault is True or not (found := self.repository(kind or "models", name, revision)):
            return
        folder, commit = found
        token, path = self.headers.get("Authorization", ""), folder / file
        if name in self.hub.gated and token != f"Bearer {self.hub.gated[name]}":
            message = "Access to this model is restricted, and you are not in the authorized list"
            self.answer(b"{}", 403 if token else 401, {"X-Error-Code": "GatedRepo", "X-Error-Message": message})
        elif not path.is_file():
            self.answer(b"{}", 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        elif path.stat().st_size > self.hub.large:
            linked = {"X-Linked-Size": str(path.stat().st_size), "X-Linked-ETag": f'"{self.etag(path)}"'}
            # Another host, as with the hub's CDN, which must not get the token.
            cdn = (
                self.hub.url.replace("127.0.0.1", "localhost") + "/cdn/" + path.relative_to(self.hub.folder).as_posix()
            )
            self.answer(b"", 302, {"Location": f"{cdn}?signature=s", "X-Repo-Commit": commit} | linked)
        else:
            self.send(path, fault, {"X-Repo-Commit": commit})

    def send(self, path: Path, fault: str, headers: dict[str, str] | None = None) -> None:
        if not path.is_file():
            return self.answer(b"{}", 404)
        content, wanted = path.read_bytes(), self.headers.get("Range")
        tag = f'"{self.etag(path)}"'
        headers = ({"ETag": tag} if self.hub.versions else {}) | {"Accept-Ranges": "bytes"} | (headers or {})
        if self.headers.get("If-Range", tag) != tag or fault == "whole":
            wanted = None
        whole, status = len(content), 200
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            content, status = content[int(first) : int(last or whole) + 1], 206
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(content) - 1}/{whole}"
        cut = int(fault.removeprefix("cut ")) if fault.startswith("cut") else None
        if self.command == "GET":  # before the answer: the client may look as soon as it has all bytes
            self.hub.sent[path.name] += len(content) if cut is None else min(cut, len(content))
        self.answer(content, status, headers, cut)

    def fault(self) -> Literal[True] | str:
        """What goes wrong with this answer; True if an error was sent."""
        path = urlsplit(self.path).path
        faults = next((faults for end, faults in self.hub.faults.items() if path.endswith(end)), None)
        found = next(faults, "") if faults is not None else ""
        if found.isdigit():
            self.answer(b"{}", int(found), {"Retry-After": "0"} if found == "429" else {})
            return True
        return "" if found == "fine" else found

    def answer(
        self, body: bytes, status: int = 200, headers: dict[str, str] | None = None, cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True


@contextmanager
def serve(folder: Path) -> Iterator[Hub]:
    """Serve `folder` as a hub until the block ends."""
    hub = Hub(folder)
    handler = type("Handler", (_Handler,), {"hub": hub})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        yield hub
        server.shutdown()
