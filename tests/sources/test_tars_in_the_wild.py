"""Tars as public data sets have them: lists of turns, other encodings, members in any order."""

from __future__ import annotations

import gzip
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pad_pipeline.sources import gzipped, webdataset
from pad_pipeline.sources.open import open_source
from pad_pipeline.sources.read import read_bytes
from tests.sources.small_sources import MOST, error_of, png, write_tar

TURNS = [{"from": "human", "value": "What?\n<image>"}, {"from": "gpt", "value": "A dog."}]


def captions(path: Path, members: list[tuple[str, bytes]]) -> tuple[list[tuple[str, str]], dict[str, int]]:
    source = open_source(write_tar(path, members))
    planned = list(source)
    assert not [one.problem for one in planned if one.problem]
    return [(one.id, one.caption) for one in planned], dict(source.counts)


@pytest.mark.parametrize(
    "value",
    [
        TURNS,
        [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A dog."}],
        {"conversations": TURNS},
        {"messages": TURNS},
        {"texts": [{"user": "What?", "assistant": "A dog."}]},
        {"caption": "A dog.", "url": "https://x/1.jpg", "key": "a", "status": "success"},
        {"caption": ["A dog.", "An animal."], "image": {"height": 1}},
    ],
    ids=["list", "roles", "conversations", "messages", "texts", "img2dataset", "captions"],
)
def test_json_members_of_every_form_give_captions(tmp_path: Path, value: Any) -> None:
    """Catches lmms-lab/LLaVA-558K-Webdataset and Energon's tars, whose JSON is a list of turns."""
    members = [("a.jpg", png()), ("a.json", json.dumps(value).encode())]
    assert captions(tmp_path / "a.tar", members) == ([("a", "A dog.")], {})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_texts_are_decoded_by_their_mark(tmp_path: Path, encoding: str) -> None:
    """Catches captions of Windows tools that are stored broken."""
    members = [("a.jpg", png()), ("a.txt", "café\n".encode(encoding))]
    members += [("b.jpg", png()), ("b.json", json.dumps({"caption": "süß"}, ensure_ascii=False).encode(encoding))]
    assert captions(tmp_path / "a.tar", members) == ([("a", "café"), ("b", "süß")], {})


def test_a_text_that_is_not_utf8_is_left_out_and_counted(tmp_path: Path) -> None:
    """Catches a caption with a replacement character in the place of each letter that was lost."""
    source = open_source(write_tar(tmp_path / "a.tar", [("a.jpg", png()), ("a.txt", "café".encode("latin-1"))]))
    assert [(one.id, one.caption, one.problem) for one in source] == [("a", "", "")]
    assert source.counts == {"captions that can't be read, which are left out": 1}
    assert "a.tar/a: 'utf-8' codec" in source.counts.examples["captions that can't be read, which are left out"]


def test_members_of_a_sample_need_not_stand_together(tmp_path: Path) -> None:
    """Catches a tar with all images first: its captions were lost, and only "samples without an image" counted."""
    names = "abc"
    members = [(f"{name}.jpg", png()) for name in names] + [(f"{name}.txt", name.encode()) for name in names]
    found, counts = captions(tmp_path / "a.tar", members)
    assert found == [(name, name) for name in names]
    assert counts == {"members that do not stand with the rest of their sample": 3}


def test_memory_for_scattered_members_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a tar of a million samples that is held in memory; what is lost then is counted and named."""
    monkeypatch.setattr(webdataset, "_HELD", 3 * webdataset._OF_A_SAMPLE)
    members = [(f"{number}.jpg", png()) for number in range(8)] + [("0.txt", b"late"), ("7.txt", b"near")]
    source = open_source(write_tar(tmp_path / "a.tar", members))
    assert [(one.id, one.caption) for one in source] == [(str(number), "near" * (number == 7)) for number in range(8)]
    assert source.counts == {"members too far from the rest of their sample, which are left out": 1}
    assert [*source.counts.examples.values()] == ["a.tar/0.txt"]


def test_compressed_members_are_read(tmp_path: Path) -> None:
    """Catches `.txt.gz` and `.json.gz`, which webdataset decodes; and a small one that unpacks to gigabytes."""
    members = [("a.jpg", png()), ("a.txt.gz", gzip.compress(b"a dog")), ("b.jpg", png())]
    members += [("b.json.gz", gzip.compress(json.dumps({"caption": "a cat"}).encode()))]
    assert captions(tmp_path / "a.tar", members) == ([("a", "a dog"), ("b", "a cat")], {})
    bomb = [("a.jpg", png()), ("a.txt.gz", gzip.compress(b"x" * (64 << 20)))]
    source = open_source(write_tar(tmp_path / "b.tar", bomb))
    assert [one.caption for one in source] == [""]
    assert source.counts.total() == 1


def test_keys_are_split_at_the_first_dot(tmp_path: Path) -> None:
    """Catches `a.left.jpg` and `a.right.jpg` as two samples, where webdataset has one."""
    members = [("d.1/a.left.jpg", png(1)), ("d.1/a.right.jpg", png(2)), ("d.1/a.txt", b"both")]
    source = open_source(write_tar(tmp_path / "a.tar", members))
    assert [(one.id, one.source, one.caption) for one in source] == [("d.1/a", "a.tar/d.1/a.left.jpg", "both")]
    assert source.counts == {"more images of the same sample": 1}


@pytest.mark.parametrize("ending", ["tar.gz", "tgz"])
def test_a_compressed_tar_gives_what_the_tar_gives(tmp_path: Path, ending: str) -> None:
    """Catches `.tar.gz` shards, which webdataset reads; images that threads ask for in any order; and a seek to the
    beginning for each of them."""
    members = [(f"{number}.jpg", bytes([number]) * 60_000) for number in range(100)]
    members += [(f"{number}.txt", f"{number}".encode()) for number in range(100)]
    plain = Path(write_tar(tmp_path / "a.tar", members))
    (tmp_path / f"b.{ending}").write_bytes(gzip.compress(plain.read_bytes()))
    source, whole = open_source(f"{tmp_path}/b.{ending}"), open_source(plain)
    planned = list(source)
    assert [(one.id, one.caption) for one in planned] == [(one.id, one.caption) for one in whole]
    order = [(37 * number) % 100 for number in range(100)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda number: read_bytes(source.root, planned[number].place, MOST), order))
    assert found == [bytes([number]) * 60_000 for number in order]


def test_images_before_the_window_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an image far back that comes out as other bytes."""
    monkeypatch.setattr(gzipped, "_PIECE", 1000)
    members = [(f"{number:02d}.jpg", bytes([number]) * 5000) for number in range(50)]
    plain = Path(write_tar(tmp_path / "a.tar", members))
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
    source = open_source(f"{tmp_path}/b.tar.gz")
    planned = list(source)
    for number in (0, 49, 3, 48, 20):
        assert read_bytes(source.root, planned[number].place, MOST) == bytes([number]) * 5000


@pytest.mark.parametrize("cut", [0.5, 0.9])
def test_a_compressed_tar_that_ends_early_is_used_as_far_as_it_goes(tmp_path: Path, cut: float) -> None:
    """Catches a download that broke off and passes for whole."""
    members = [(f"{number}.jpg", os.urandom(3000)) for number in range(20)]
    content = gzip.compress(Path(write_tar(tmp_path / "a.tar", members)).read_bytes())
    (tmp_path / "b.tar.gz").write_bytes(content[: int(len(content) * cut)])
    source = open_source(f"{tmp_path}/b.tar.gz")
    planned = list(source)
    assert 0 < len(planned) < 20
    assert source.counts["tars that can't be read to the end"] == 1
    assert read_bytes(source.root, planned[0].place, MOST) == members[0][1]
    (tmp_path / "c.tar.gz").write_bytes(b"no gzip")
    assert "c.tar.gz: it can't be read" in error_of(tmp_path / "c.tar.gz")


@pytest.mark.parametrize("content", [b'[{"bbox": [1, 2, 3, 4]}]', b'["a cat"]', b'"a cat"', b"5", b"", b"{broken"])
def test_json_of_another_kind_does_not_cost_the_image(tmp_path: Path, content: bytes) -> None:
    """Catches detections in the `.json` of a sample, which made an image with a good caption unusable."""
    found, counts = captions(tmp_path / "a.tar", [("a.jpg", png()), ("a.txt", b"a dog"), ("a.json", content)])
    assert (found, sum(counts.values())) == ([("a", "a dog")], 1)


def test_a_second_tar_behind_the_end_is_counted(tmp_path: Path) -> None:
    """Catches `cat a.tar b.tar`, of which the second half was lost in silence."""
    one, other = (Path(write_tar(tmp_path / f"{name}.tar", [(f"{name}.jpg", png())])).read_bytes() for name in "ab")
    (tmp_path / "c.tar").write_bytes(one + other)
    source = open_source(tmp_path / "c.tar")
    assert [one.id for one in source] == ["a"]
    assert source.counts == {"tars with something behind their end, which is not read": 1}


def test_a_caption_of_another_name_can_be_named(tmp_path: Path) -> None:
    """Catches a note that names an option which is then refused."""
    path = write_tar(tmp_path / "a.tar", [("a.jpg", png()), ("a.json", b'{"scene": "a dog"}')])
    source = open_source(path)
    assert [one.caption for one in source] == [""]
    assert list(source.counts.other_texts) == ["scene"]
    assert [one.caption for one in open_source(path, columns={"caption": "scene"})] == ["a dog"]
