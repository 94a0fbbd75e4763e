"""A folder of images or of PAD's shards is listed and read, and what is no source at all is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pad_pipeline.images import BadImage
from pad_pipeline.records import Place
from pad_pipeline.sources.open import open_source
from pad_pipeline.sources.read import read_bytes
from tests.sources.small_sources import LISTS, MOST, error_of, png, write_list, write_tar


def test_a_folder_lists_images_in_order(tmp_path: Path) -> None:
    """Would catch an order that the file system decides, hidden files taken for images, and others left out unsaid."""
    for name in ("b.jpg", "a.PNG", "sub/c.webp", ".hidden.jpg", ".cache/x.jpg", "notes.txt", "sub/.d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    source = open_source(tmp_path)
    assert [(p.id, p.source) for p in source] == [("a", "a.PNG"), ("b", "b.jpg"), ("sub/c", "sub/c.webp")]
    assert source.counts == {"files that are no images": 1, "links to folders, which are not followed": 1}


def test_a_file_name_that_is_not_utf8_is_a_failed_row(tmp_path: Path) -> None:
    """Would catch a name that no Parquet file can hold, found out when the plan is written."""
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")).touch()
    (planned,) = open_source(tmp_path)
    assert "UTF-8" in planned.problem
    assert planned.source.encode() == b"\\xff.jpg"


def test_a_local_file_is_read_as_far_as_allowed(tmp_path: Path) -> None:
    """Would catch a folder or a huge file that is read, and a place behind a file's end that gives nothing."""
    (tmp_path / "a.png").write_bytes(png())
    root = str(tmp_path)
    assert read_bytes(root, Place("a.png"), MOST) == png()
    assert read_bytes(root, Place("a.png", 1, 3), MOST) == b"PNG"
    for place, most in ((Place("a.png"), 10), (Place("a.png", 0, 20), 10), (Place("a.png", 9999, 3), MOST)):
        with pytest.raises(BadImage):
            read_bytes(root, place, most)
    for name in ("none.png", ".", "a.png/b.png", "x" * 5000, "a\0.png"):
        with pytest.raises(BadImage):
            read_bytes(root, Place(name), MOST)


def test_shards_are_a_source(tmp_path: Path) -> None:
    """Would catch an offset of the wrong member, and a failed row that is annotated again as if it had not failed."""
    from pad_pipeline.geometry import View
    from pad_pipeline.records import ImageRecord, Shard
    from pad_pipeline.shards.run import Run
    from pad_pipeline.shards.writer import write_shard
    from pad_pipeline.storage import Folder

    view = View()
    facts: dict[str, Any] = {"images": 3, "shards": 2, "shard_size": 2, "view": view, "embedding_width": 4}
    run = Run(kind="build", counts={}, settings={}, fingerprints={}, **facts)
    empty = {"coverage": np.zeros((0, view.grid, view.grid), np.uint8), "embeds": np.zeros((0, 4), np.float16)}
    rows = [ImageRecord(f"d/{key}", f"d/{key}.png", key=key, data=png(n), **empty) for n, key in enumerate("ab")]
    rows[1].fail("decode", "broken")
    run.write(Folder(tmp_path))
    write_shard(Shard(0, rows), Folder(tmp_path), run.identity)
    source = open_source(tmp_path)
    good, failed = source
    assert (good.id, good.source) == ("d/a", "d/a.png")
    assert read_bytes(source.root, good.place, MOST) == png(0)
    meta = json.loads(read_bytes(source.root, good.earlier, MOST))
    assert meta["id"] == "d/a"
    assert "decode: broken" in failed.problem
    assert source.counts == {"shards that are not finished": 1}


def test_what_can_not_be_a_source_is_refused(tmp_path: Path) -> None:
    """Would catch a traceback for a typing error, an option that is ignored, and a URL that opens local files."""
    for name in ("none", *(f"none.{kind}" for kind in (*LISTS, "json", "tar"))):
        assert "there is no such" in error_of(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    assert "notes.txt" in error_of(tmp_path / "notes.txt")
    assert error_of(tmp_path, columns={"image": "x"}).startswith("columns = ")
    assert error_of(tmp_path, image_root=tmp_path).startswith("image_root = ")
    assert error_of(write_tar(tmp_path / "a.tar", []), image_root=tmp_path).startswith("image_root = ")
    listed = write_list(tmp_path / "list.csv", [{"image": "a.jpg"}])
    assert error_of(listed, image_root=tmp_path / "none").startswith("image_root = ")
    for url in (f"file://{listed}", f"zip::file://{listed}", f"local://{listed}", "memory://x/*.tar", "ftp://h/x.json"):
        assert "pad reads" in error_of(url)
        assert "pad reads" in error_of(listed, image_root=url)
