"""A data set of the Hugging Face hub, whose protocol a small server on this machine speaks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from huggingface_hub import HfFileSystem

from pad_pipeline.errors import UserError
from pad_pipeline.sources.open import open_source
from pad_pipeline.sources.read import read_bytes
from tests.hub import Hub
from tests.sources.small_sources import MOST, error_of, png
from tests.sources.test_parquet_images import write_images


@pytest.fixture
def served(online: Hub) -> Iterator[Hub]:
    HfFileSystem.clear_instance_cache()
    yield online
    HfFileSystem.clear_instance_cache()


@pytest.fixture
def hub(served: Hub) -> Path:
    return served.repository("owner/name", "datasets")


@pytest.mark.parametrize("where", ["", "/data/train-*.parquet", "/data/train-{00000..00001}.parquet"])
def test_a_data_set_of_the_hub_is_read_by_its_name(hub: Path, where: str) -> None:
    """Catches a data set that has to be downloaded by hand, and a row that gets another row's image."""
    for number in range(2):
        write_images(hub / f"data/train-0000{number}.parquet", 3, 3 * number, text=["a", "b", "c"])
    (hub / "README.md").write_text("# a data set")
    source = open_source(f"hf://datasets/owner/name{where}")
    planned = list(source)
    assert [(one.id, one.caption) for one in planned] == [(str(number), "abc"[number % 3]) for number in range(6)]
    assert [read_bytes(source.root, one.place, MOST) for one in planned] == [png(number) for number in range(6)]


@pytest.mark.parametrize("clone", [False, True], ids=["hub", "clone"])
def test_a_data_set_with_a_folder_for_each_config_is_read_by_its_folders(hub: Path, clone: bool) -> None:
    """The form of HuggingFaceM4/FineVision and LLaVA-OneVision-Data: `CONFIG/train-*.parquet`. Catches "there is no
    image in it", and two data sets that are read as one."""
    (hub / ".gitattributes").write_text("*.parquet filter=lfs")
    (hub / "assets").mkdir()
    (hub / "assets/figure.png").write_bytes(png())
    name = str(hub) if clone else "hf://datasets/owner/name"
    for number in range(2):
        write_images(hub / f"ai2d/train-0000{number}.parquet", 2, 2 * number)
    source = open_source(name)
    planned = list(source)
    assert [one.id for one in planned] == ["0", "1", "2", "3"]
    assert [read_bytes(source.root, one.place, MOST) for one in planned] == [png(number) for number in range(4)]
    write_images(hub / "chart/train-00000.parquet", 1, 7)
    fsspec.filesystem("hf").invalidate_cache()
    folders = f"each in a folder (ai2d, chart); name the folder of one, such as {name}/ai2d"
    assert error_of(name) == f"images = {name}: it holds several data sets, {folders}"
    assert [one.id for one in open_source(f"{name}/chart")] == ["7"]
    for number in range(20):
        write_images(hub / f"d{number:02d}/train-00000.parquet", 1)
    fsspec.filesystem("hf").invalidate_cache()
    assert "(ai2d, chart, d00, d01, d02, d03, d04, d05, ...); name" in error_of(name)


def test_a_listing_that_is_refused_is_an_error(hub: Path, served: Hub) -> None:
    """Catches a folder that may not be listed and is taken for one that does not exist, so that its images are lost."""
    served.refused = "images/data"
    (hub / "images").mkdir()
    (hub / "images/0.png").write_bytes(png(0))
    with pytest.raises(UserError, match=r"images/data: it can't be listed .*403"):
        open_source("hf://datasets/owner/name/images")
