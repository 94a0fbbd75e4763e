"""Builds from images inside Parquet files and inside compressed tars, from end to end."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pad_pipeline.miniature.files import World
from pad_pipeline.shards.reader import open_shards
from tests.sources.small_sources import write_tar

Pad = Callable[..., Any]


@pytest.fixture
def inputs(world: World, tmp_path: Path) -> dict[str, Path]:
    """The same ten scenes in three forms."""
    images = sorted(world.images.iterdir())[:10]
    column = [{"bytes": path.read_bytes(), "path": path.name} for path in images]
    texts = [f"scene {path.stem}" for path in images]
    pq.write_table(pa.table({"image": column, "text": texts}), tmp_path / "scenes.parquet", row_group_size=3)
    members = [(path.name, path.read_bytes()) for path in images]
    members += [(f"{path.stem}.txt", text.encode()) for path, text in zip(images, texts, strict=True)]
    tar = Path(write_tar(tmp_path / "scenes.tar", members))
    (tmp_path / "zipped.tar.gz").write_bytes(gzip.compress(tar.read_bytes()))
    return {"parquet": tmp_path / "scenes.parquet", "tar": tar, "gz": tmp_path / "zipped.tar.gz"}


def test_every_form_gives_the_same_samples(
    pad: Pad, common: list[object], inputs: dict[str, Path], tmp_path: Path
) -> None:
    """Catches an image that gets the bytes, caption or regions of another row, and a run that can't be continued."""
    found = {}
    for name, images in inputs.items():
        out = tmp_path / name
        command = ["build", "--images", images, *common, "--engine", "local", "--shard-size", 4, "--out", out]
        done = pad(*command, *(["--strict"] if name == "parquet" else []))
        assert done.code == 0, done.err
        assert pad("verify", "--deep", out).code == 0
        again = pad(*command)
        assert again.code == 0 and "3 of 3 shards are finished already" in again.err
        shards = open_shards(out)
        samples = [shards.sample(shard, row) for shard, row in shards.rows()]
        keys = ("id", "caption", "tags", "regions")
        found[name] = [(one.image, *(one.meta[key] for key in keys)) for one in samples]  # type: ignore[literal-required]
    assert found["parquet"] == found["tar"] == found["gz"]
    assert len(found["tar"]) == 10


def test_a_table_that_was_replaced_is_noticed(
    pad: Pad, common: list[object], inputs: dict[str, Path], tmp_path: Path
) -> None:
    """Catches a resume that mixes rows of two versions of a data set."""
    command = ["build", "--images", inputs["parquet"], *common, "--engine", "local", "--out", tmp_path / "out"]
    assert pad(*command).code == 0
    table = pq.read_table(inputs["parquet"])
    pq.write_table(table.set_column(0, "image", table["image"].combine_chunks()[::-1]), inputs["parquet"])
    refused = pad(*command)
    assert refused.code == 2 and "made with something else" in refused.err
