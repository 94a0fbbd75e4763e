"""WebDataset tars give exactly their members, also where they are cut off, damaged or hostile."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest

from pad_pipeline.images import BadImage
from pad_pipeline.sources.open import open_source
from pad_pipeline.sources.read import read_bytes
from tests.sources.small_sources import MOST, error_of, write_tar


@pytest.mark.parametrize(
    "form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["ustar", "gnu", "pax"]
)
def test_tar_offsets_give_exactly_the_members(tmp_path: Path, form: int) -> None:
    """Would catch an offset that forgets the headers of a long name, or a size that holds the padding."""
    folders = ["", "x/", "y" * 90 + "/"] + (["z" * 250 + "/ü"] if form != tarfile.USTAR_FORMAT else [])
    images = {f"{folder}{n}.jpg": bytes([n]) * (510 + n) for folder in folders for n in range(4)}
    write_tar(tmp_path / "tars/a.tar", list(images.items()), form)
    source = open_source(tmp_path / "tars/a.tar")
    planned = list(source)
    assert [p.source for p in planned] == [f"a.tar/{name}" for name in images]
    assert [read_bytes(source.root, p.place, MOST) for p in planned] == list(images.values())
    assert source.counts == {}


def test_tar_samples_hold_what_lies_beside_the_image(tmp_path: Path) -> None:
    """Would catch a caption of the neighbor, a key cut at the wrong dot, and an image that is a mask."""
    turns = [{"from": "gpt", "value": "from the turns"}]
    members = [
        ("s.1/000.jpg", b"0"), ("s.1/000.txt", "a dög\n".encode()),
        ("s.1/001.JSON", json.dumps({"id": 17, "caption": "from json"}).encode()), ("s.1/001.PNG", b"1"),
        ("s.1/002.depth.png", b"no"), ("s.1/002.png", b"2"), ("s.1/002.caption", b"two"),
        ("s.1/003.json", json.dumps({"conversations": turns}).encode()), ("s.1/003.webp", b"3"),
        ("s.1/004.cls", b"4"), ("s.1/004.txt", b"no image"),
        ("s.1/005.jpg", b"5"), ("s.1/005.json", b"{broken"),
        ("./s.1/006.left.jpg", b"6"), ("./s.1/006.right.jpg", b"no"),
        ("s.1/._007.jpg", b"of a Mac"), ("README", b"no ending"),
    ]  # fmt: skip
    write_tar(tmp_path / "a.tar", members)
    source = open_source(tmp_path / "a.tar")
    planned = list(source)
    assert [(p.id, p.caption) for p in planned] == [
        ("s.1/000", "a dög"),
        ("17", "from json"),
        ("s.1/002", "two"),
        ("s.1/003", "from the turns"),
        ("s.1/005", ""),
        ("s.1/006", ""),
    ]
    read_back = [read_bytes(source.root, p.place, MOST) for p in planned]
    assert read_back == [b"0", b"1", b"2", b"3", b"5", b"6"]
    assert not any(p.problem for p in planned)
    assert source.counts == {
        "samples without an image": 1,
        "more images of the same sample": 2,
        "members without a key or an ending": 2,
        "JSON members that can't be read, whose texts are left out": 1,
    }


def test_tars_of_a_pattern_come_in_order(tmp_path: Path) -> None:
    """Would catch an order that the file system decides, samples that grow together over two tars, and a wrong root."""
    for name in ("d/b/x-1.tar", "d/a/x-0.tar", "d/a/x-1.tar", "d/a/y.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_tar(tmp_path / name, [("same.jpg", name.encode())])
    source = open_source(f"{tmp_path}/d/*/x-?.tar")
    names = ["a/x-0.tar", "a/x-1.tar", "b/x-1.tar"]
    assert [(p.place.file, p.source, p.id) for p in source] == [(name, f"{name}/same.jpg", "same") for name in names]
    assert source.root == str(tmp_path / "d")
    assert "no file has such a name" in error_of(f"{tmp_path}/d/*/z-?.tar")
    assert "no such file" in error_of(f"{tmp_path}/d/z.tar")
    assert "no such folder" in error_of(f"{tmp_path}/e/*.tar")
    (tmp_path / "d/b/x-1.tar").rename(tmp_path / "d/[x].tar")
    assert [p.place.file for p in open_source(f"{tmp_path}/d/[x].tar")] == ["[x].tar"]


def test_a_member_that_is_no_plain_file_is_not_used(tmp_path: Path) -> None:
    """Would catch a link that is followed out of the tar, and a sparse file whose bytes don't lie in one piece."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (("a.jpg", tarfile.SYMTYPE), ("b.jpg", tarfile.LNKTYPE), ("c.jpg", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        folder = tarfile.TarInfo("d.jpg")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        sparse = tarfile.TarInfo("e.jpg")
        sparse.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "9", "GNU.sparse.major": "0"}
        sparse.size = 1
        tar.addfile(sparse, io.BytesIO(b"x"))
        good = tarfile.TarInfo("f.jpg")
        good.size = 1
        tar.addfile(good, io.BytesIO(b"f"))
    source = open_source(path)
    assert [p.source for p in source] == ["a.tar/f.jpg"]
    assert source.counts == {"members that are no plain files": 4}


def test_hostile_member_names_are_only_names(tmp_path: Path) -> None:
    """Would catch a member's name that is taken for a place on the disk."""
    names = ["../../x.jpg", "/etc/y.jpg", "a/../../z.jpg", "C:\\w.jpg"]
    write_tar(tmp_path / "tars/a.tar", [(name, name.encode()) for name in names])
    source = open_source(tmp_path / "tars/a.tar")
    planned = list(source)
    assert [p.place.file for p in planned] == ["a.tar"] * 4
    assert [read_bytes(source.root, p.place, MOST).decode() for p in planned] == names
    assert [path.name for path in tmp_path.rglob("*")] == ["tars", "a.tar"]


def test_a_tar_that_ends_early_is_used_as_far_as_it_goes(tmp_path: Path) -> None:
    """Would catch a download that broke off and passes for whole, and one that takes all others with it."""
    path = tmp_path / "a.tar"
    write_tar(path, [(f"{n}.{ending}", bytes([n]) * 600) for n in range(3) for ending in ("jpg", "txt")])
    write_tar(tmp_path / "b.tar", [("b.jpg", b"b")])
    content = path.read_bytes()
    assert [p.id for p in open_source(path)] == ["0", "1", "2"]
    member = 512 + 1024
    bad_header = content[: 4 * member] + b"\1" * 512 + content[4 * member + 512 :]
    cases = {
        "inside an image": (content[: 2 * member + 700], ["0", "1", "b"]),
        "inside a text": (content[: 3 * member + 700], ["0", "1", "b"]),
        "inside a header": (content[: 4 * member + 100], ["0", "1", "b"]),
        "between members": (content[: 4 * member], ["0", "1", "b"]),
        "a bad header": (bad_header, ["0", "1", "b"]),
    }
    for case, (cut, expected) in cases.items():
        path.write_bytes(cut)
        source = open_source(f"{tmp_path}/*.tar")
        planned = list(source)
        assert [p.id for p in planned] == expected, case
        assert source.counts == {"tars that can't be read to the end": 1}, case
        if case == "inside an image":
            with pytest.raises(BadImage, match="ends inside"):
                read_bytes(source.root, planned[1].place, MOST)
        if case == "inside a text":
            assert planned[1].caption == ""


def _header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "evil",
    [
        _header("b.jpg", -1),
        _header("b.txt", -1024),
        _header("b.txt", 1 << 60),
        _header("b.jpg", 1 << 60, tarfile.GNUTYPE_LONGNAME),
        _header("b.jpg", -512, tarfile.XHDTYPE),
        (_header("x", 512, tarfile.XHDTYPE) + b"11 size=-9\n".ljust(512, b"\0")) * 3000,
        _header("x", 512, tarfile.XHDTYPE) + b"20 GNU.sparse.map=x\n".ljust(512, b"\0") + _header("b.jpg", 0),
    ],
    ids=["negative", "backwards", "huge", "huge name", "negative pax", "nested pax", "bad sparse"],
)
def test_a_tar_header_that_lies_ends_the_tar(tmp_path: Path, evil: bytes) -> None:
    """Would catch a header that leads backwards, for ever; that asks for a terabyte; or that makes a traceback."""
    path = Path(write_tar(tmp_path / "a.tar", [("a.jpg", b"a")]))
    path.write_bytes(path.read_bytes()[:1024] + evil + bytes(2048))
    source = open_source(path)
    assert [p.id for p in source] == ["a"]
    assert source.counts["tars that can't be read to the end"] == 1


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    """Would catch a compressed tar that yields nothing, and nobody knows why."""
    good = Path(write_tar(tmp_path / "good.tar", [("a.jpg", b"a")])).read_bytes()
    for bad in (gzip.compress(good), b"", b"\1" * 2000, good[:100]):
        (tmp_path / "bad.tar").write_bytes(bad)
        told = error_of(tmp_path / "bad.tar")
        assert "no tar" in told
        assert "gunzip" in told
    (tmp_path / "bad.tar").write_bytes(bytes(1024))
    assert list(open_source(tmp_path / "bad.tar")) == []
