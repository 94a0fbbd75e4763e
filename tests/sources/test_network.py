"""Over HTTP, sources give what they give from a disk, and a server that fails costs one image or ends in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pad_pipeline.addresses import address_problem
from pad_pipeline.images import BadImage
from pad_pipeline.records import Place
from pad_pipeline.sources import cells
from pad_pipeline.sources.open import open_source
from pad_pipeline.sources.read import read_bytes
from tests.conftest import data
from tests.sources.server import Handler
from tests.sources.small_sources import LISTS, MOST, brief, error_of, png, write_list, write_tar


def test_a_remote_folder_is_listed_as_a_local_one(web: SimpleNamespace) -> None:
    """Would catch another order, or other names, for the same folder behind a URL."""
    for name in ("b.jpg", "a.png", "sub/c.jpg", "sub/more/d.jpg", "notes.txt"):
        (web.folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (web.folder / "images" / name).write_bytes(png())
    remote, local = open_source(f"{web.url}/images"), open_source(web.folder / "images")
    assert list(map(brief, remote)) == list(map(brief, local))
    assert remote.root == f"{web.url}/images"
    assert read_bytes(remote.root, Place("sub/c.jpg"), MOST) == png()


@pytest.mark.parametrize("kind", LISTS)
def test_lists_are_read_over_http(web: SimpleNamespace, tmp_path: Path, kind: str) -> None:
    """Would catch a kind of list that only works on a disk, and a root that is not the list's own folder."""
    rows = [{"image": f"{n}.jpg", "caption": f"number {n}"} for n in range(50)]
    (web.folder / "d").mkdir()
    path = write_list(web.folder / f"d/list.{kind}", rows)
    source = open_source(f"{web.url}/d/list.{kind}")
    assert list(source) == list(open_source(path))
    assert source.root == f"{web.url}/d"
    assert open_source(f"{web.url}/d/list.{kind}", image_root=tmp_path).root == str(tmp_path)
    assert error_of(f"{web.url}/d/none.{kind}").startswith("images = ")


def test_tars_are_read_over_http(web: SimpleNamespace) -> None:
    """Would catch offsets that only fit a disk, a pattern that a server's listing doesn't match, and a server without
    ranges that passes for a tar that ends early."""
    for number in range(2):
        members = [(f"{number}.jpg", png(number)), (f"{number}.txt", b"words"), (f"{number}-big.jpg", bytes(100_000))]
        write_tar(web.folder / f"tars/x-{number}.tar", members)
    for pattern in ("tars/x-*.tar", "tars/x-1.tar"):
        remote, local = open_source(f"{web.url}/{pattern}"), open_source(f"{web.folder}/{pattern}")
        planned = list(remote)
        assert planned == list(local)
        assert remote.root == f"{web.url}/tars"
        assert read_bytes(remote.root, planned[0].place, MOST) == png(int(planned[0].id))
    content = (web.folder / "tars/x-0.tar").read_bytes()
    web.special["/whole.tar"] = lambda handler: handler.answer(content)
    web.special["/stream.tar"] = lambda handler: handler.answer(content, headers={"Accept-Ranges": "none"})
    for name in ("whole", "stream", "none"):
        assert f"{name}.tar: it can't be read" in error_of(f"{web.url}/{name}.tar")


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.parquet", "x.tar", "x.json", "folder"])
def test_a_network_that_fails_is_one_line(web: SimpleNamespace, name: str) -> None:
    """Would catch a connection that breaks off as a traceback, or as the end of the list."""
    content = b'[{"image": "a.jpg"},\n' if name == "x.json" else b'{"image": "a.jpg"}\n'
    content = b"image\na.jpg\n" if name == "x.csv" else content
    headers = {"Content-Length": "5000000", "Accept-Ranges": "none"}
    status = 500 if name == "folder" else 200
    web.special[f"/{name}"] = lambda handler: handler.answer(content, status, headers if status == 200 else {})
    assert error_of(f"{web.url}/{name}").startswith("images = ")


def test_an_image_is_read_over_http(web: SimpleNamespace) -> None:
    """Would catch a URL that is taken for a path below the root, or bytes that are altered on the way."""
    (web.folder / "a b.png").write_bytes(png(7))
    assert read_bytes(web.url, Place(f"{web.url}/a%20b.png"), MOST) == png(7)
    assert read_bytes(web.url, Place(f"{web.url}/a%20b.png", 1, 3), MOST) == b"PNG"
    with pytest.raises(BadImage, match="nothing at this URL"):
        read_bytes(web.url, Place(f"{web.url}/none.png"), MOST)
    for url in ("file:///etc/passwd", "zip::file:///x.zip", "memory://x", "local:///etc/passwd"):
        with pytest.raises(BadImage, match="pad reads"):
            read_bytes("/nowhere", Place(url), MOST)
        with pytest.raises(BadImage, match="pad reads"):
            read_bytes("/nowhere", Place(url, 0, 4), MOST)


def test_a_file_that_is_too_large_is_not_read_to_its_end(web: SimpleNamespace) -> None:
    """Would catch a URL that fills the memory: one that says its size, one that says none, and one that lies."""
    sent = 0

    def flood(handler: Handler, headers: dict[str, str]) -> None:
        nonlocal sent
        handler.send_response(200)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command == "GET":
            try:
                for _ in range(16_000):
                    handler.wfile.write(bytes(1 << 16))
                    sent += 1 << 16
            except OSError:
                return

    web.special["/honest"] = lambda handler: flood(handler, {"Content-Length": str(16_000 << 16)})
    web.special["/silent"] = lambda handler: flood(handler, {})
    web.special["/lying"] = lambda handler: flood(handler, {"Content-Length": "9"} if handler.command == "HEAD" else {})
    for path in ("honest", "silent", "lying"):
        with pytest.raises(BadImage, match="allows 100000"):
            read_bytes(web.url, Place(f"{web.url}/{path}"), 100_000)
    assert sent < 100 << 20


def test_a_server_that_breaks_off_is_a_bad_image(web: SimpleNamespace) -> None:
    """Would catch half an image that passes for whole, because the server promised more than it sent."""
    web.special["/half.png"] = lambda handler: handler.answer(png()[:40], headers={"Content-Length": "70"})
    with pytest.raises(BadImage, match="5 tries"):
        read_bytes(web.url, Place(f"{web.url}/half.png"), MOST)


def test_a_server_that_is_busy_is_asked_again(web: SimpleNamespace) -> None:
    """Would catch an image lost for good because its server was overloaded for a second."""
    answers = []

    def busy(handler: Handler) -> None:
        answers.append(503 if len(answers) < 2 else 200)
        handler.answer(png(), answers[-1])

    web.special["/busy.png"] = busy
    assert read_bytes(web.url, Place(f"{web.url}/busy.png"), MOST) == png()


def test_a_server_without_ranges_is_a_bad_image(web: SimpleNamespace) -> None:
    """Would catch the beginning of a tar in the place of an image in its middle."""
    web.special["/a.tar"] = lambda handler: handler.answer(bytes(5000))
    with pytest.raises(BadImage):
        read_bytes(web.url, Place(f"{web.url}/a.tar", 1000, 10), MOST)


def test_a_server_that_fails_is_not_a_file_that_is_not_there(web: SimpleNamespace, tmp_path: Path) -> None:
    """Catches fsspec's `exists` and `FileNotFoundError`, which over HTTP stand for every answer, a 503 too: paths with
    \\ that are not found, and images of a Parquet file that fail at the first try."""
    listed = write_list(tmp_path / "list.jsonl", [{"image": "sub\\a.png"}])
    web.special["/sub/a.png"] = lambda handler: handler.answer(b"", 503)
    assert "it can't be looked up whether it holds 'sub/a.png'" in error_of(listed, image_root=web.url)
    web.special["/sub/a.png"] = lambda handler: handler.answer(b"", 404)
    assert [one.source for one in open_source(listed, image_root=web.url)] == ["sub\\a.png"]
    content = Path(write_list(web.folder / "a.parquet", [{"image": png(7)}])).read_bytes()
    (planned,) = open_source(f"{web.url}/a.parquet")
    answers = []

    def busy(handler: Handler) -> None:
        answers.append(503 if len(answers) < 4 else 200)  # two tries, each with HEAD and GET
        first, _, last = handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        handler.answer(content[int(first) : int(last or len(content)) + 1], answers[-1], {"Accept-Ranges": "bytes"})

    web.special["/a.parquet"] = busy
    assert read_bytes(web.url, planned.place, MOST) == png(7)
    web.special["/a.parquet"] = lambda handler: handler.answer(b"", 503)
    cells._columns.clear()
    with pytest.raises(BadImage, match="it can't be fetched, in 5 tries"):
        read_bytes(web.url, planned.place, MOST)


NEVER = ("169.254.169.254", "169.254.170.2", "fe80::1%2", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe",
         "fd00:ec2::254", "2002:a9fe:a9fe::1", "100.100.100.200", "168.63.129.16")  # fmt: skip
PRIVATE = ("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "::1", "::",
           "fd12::1", "::ffff:10.0.0.1", "64:ff9b::a00:1")  # fmt: skip


def test_addresses_are_told_apart() -> None:
    """Catches an address in another notation (IPv4 in IPv6, 6to4, NAT64) that passes for a public one."""
    for address in NEVER:
        assert all("never read" in address_problem(address, private) for private in (False, True)), address
    for address in PRIVATE:
        assert "private address" in address_problem(address, False) and not address_problem(address, True), address
    for address in ("93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:8.8.8.8"):
        assert not address_problem(address, False), address


def test_a_list_can_not_point_to_this_machine(web: SimpleNamespace) -> None:
    """Catches a list from somebody else whose "images" are the pages of a server that only this machine reaches, under
    any of its names, and names that are checked before and not when they are looked up."""
    port, asked = web.url.rpartition(":")[2], []
    web.special["/a.png"] = lambda handler: asked.append(handler.path) or handler.answer(png())
    for host in ("127.0.0.1", "localhost", "0.0.0.0", "127.1", "2130706433", "0x7f000001", "[::ffff:127.0.0.1]"):
        with pytest.raises(BadImage, match=r"private address|not a canonical"):
            read_bytes("/nowhere", Place(f"http://{host}:{port}/a.png"), MOST)
    assert asked == []
    assert read_bytes("/nowhere", Place(f"http://localhost:{port}/a.png"), MOST, private=True) == png()
    assert read_bytes(f"{web.url}/d", Place(f"{web.url}/a.png"), MOST) == png(), "the server of the list itself"


def test_secrets_of_a_cloud_are_never_read(web: SimpleNamespace) -> None:
    """A server that the user trusts redirects to the address at which a cloud hands out credentials. Catches a check of
    the first URL alone, and a refusal that is tried again."""
    asked = []

    def redirect(handler: Handler) -> None:
        asked.append(handler.path)
        handler.answer(b"", 302, {"Location": "http://169.254.169.254/latest/meta-data/"})

    web.special["/a.png"] = redirect
    for place in (Place("a.png"), Place(f"{web.url}/a.png"), Place("a.png", 0, 10)):
        with pytest.raises(BadImage, match="never read"):
            read_bytes(web.url, place, MOST, private=True)
    assert len(asked) == 3
    web.special["/list.csv"] = redirect
    assert "it can't be opened" in error_of(f"{web.url}/list.csv")


def test_a_build_says_how_to_read_a_server_of_ones_own(
    web: SimpleNamespace, tmp_path: Path, models_toml: Path, pad: Callable[..., Any]
) -> None:
    """An image server in one's own network. Catches a refusal without a remedy, and an option that would make a run of
    its own of the same images."""
    (web.folder / "a.png").write_bytes(png(1))
    listed = write_list(tmp_path / "list.jsonl", [{"image": f"{web.url}/a.png"}])
    command = ["build", "--images", listed, "--models", models_toml, "--view-size", 112, "--engine", "local"]
    refused = pad(*command, "--out", tmp_path / "out")
    assert refused.code == 2
    assert "its host has a private address, of this machine or network; --private-addresses allows" in refused.err
    made = pad(*command, "--out", tmp_path / "out", "--private-addresses")
    assert made.code == 0, made.err
    write_list(web.folder / "list.jsonl", [{"image": f"{web.url}/a.png"}])
    command[2] = f"{web.url}/list.jsonl"
    assert pad(*command, "--out", tmp_path / "own").code == 0
    assert data(tmp_path / "own") == data(tmp_path / "out")
