"""Shards and annotation files from anywhere are not trusted: exports refuse what is hostile in them in one line."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pad_pipeline.images import ENDINGS, DecodeSettings
from pad_pipeline.records import ImageRecord, Place, Shard
from pad_pipeline.shards.reader import Sample, ShardFolder
from tests.sharing.conftest import Pad

DAMAGE = [
    {"box": [0, 0, 1e9, 1]}, {"score": "high"}, {"alternates": 3}, {"prompt": None}, {"mask_box": [1, 2, 3]},
    {"mask_box": "wide"}, 7,
]  # fmt: skip
DIVIDES = {"rle": {"size": [0, 5], "counts": "00"}}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_under_pad_is_not_trusted(
    damage: Any, built: Path, models_toml: Path, pad: Pad, tmp_path: Path
) -> None:
    """An annotation file is outside data: a spoiled entry is left out, and the row says which annotation it is."""
    from pad_pipeline.sources.coco import CocoSource
    from pad_pipeline.stages.annotate import HumanRegions
    from pad_pipeline.stages.decode import Decode

    assert pad("export", "coco", built, "--out", tmp_path / "coco").code == 0
    path = tmp_path / "coco/instances.json"
    data = json.loads(path.read_text())
    entry = data["annotations"][0]
    entry["pad"] = entry["pad"] | damage if isinstance(damage, dict) else damage
    path.write_text(json.dumps(data))
    planned = next(one for one in CocoSource(path, tmp_path / "coco/images") if one.annotations)
    record = ImageRecord(planned.id, planned.source, key="key", annotations=list(planned.annotations))  # type: ignore[arg-type]
    record.place = Place(planned.source)
    shard = HumanRegions()(Decode(DecodeSettings(), str(tmp_path / "coco/images"))(Shard(0, [record])))
    assert len(shard.rows[0].regions) == len(planned.annotations) - 1
    assert f"annotation {entry['id']}" in shard.rows[0].reason and "`pad export`" in shard.rows[0].reason


def with_index(folder: Path, name: str, **values: Any) -> None:
    """Write a shard's index anew, with other values in its first row that is ok."""
    path = folder / f"{name}.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    next(row for row in rows if row["status"] == "ok").update(values)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)


@pytest.mark.parametrize("kind", ["coco", "fiftyone"])
@pytest.mark.parametrize("key", ["../../../evil", "below/evil", "a.b", "", "x" * 300])
def test_a_key_of_a_foreign_shard_is_no_path(kind: str, key: str, built: Path, pad: Pad, tmp_path: Path) -> None:
    """The key became a part of the image's path as it stood in the index: shards from anywhere wrote outside --out,
    over any file of the user's."""
    foreign = tmp_path / "a/b/foreign"
    shutil.copytree(built, foreign)
    with_index(foreign, "pad-000001", key=key)
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "a/b/c")}
    done = pad("export", kind, foreign, "--out", tmp_path / "a/b/c/out")
    assert done.code == 2 and done.err.count("\n") == 1 and "not a key that pad writes" in done.err, done.err
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "a/b/c")} == before
    checked = pad("verify", foreign)
    assert checked.code == 1 and "not a key that pad writes" in checked.out + checked.err


def test_keys_that_pad_makes_are_keys(models_toml: Path, pad: Pad, tmp_path: Path) -> None:
    """Ids of all kinds: in other scripts, long, repeated, with dots and slashes; nothing of them is refused. Catches a
    rule that is narrower than what `pad build` writes."""
    ids = ["../..", "été", "日本語" * 30, "x" * 500, "x" * 500, "a.b/c", "a.b/c", "", "\n", "\u0130.\u0301"]
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    images = [{"id": number, "file_name": "a.png", "pad": {"id": name}} for number, name in enumerate(ids)]
    (tmp_path / "coco.json").write_text(json.dumps({"images": images, "annotations": []}))
    command = ["import", "coco", "--annotations", tmp_path / "coco.json", "--images", tmp_path]
    done = pad(*command, "--models", models_toml, "--view-size", 112, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert pad("verify", tmp_path / "out").code == 0
    done = pad("export", "coco", tmp_path / "out", "--out", tmp_path / "coco")
    assert done.code == 0, done.err
    assert len(list((tmp_path / "coco/images").iterdir())) == len(ids)


@pytest.mark.parametrize("kind", [b'"/.."', b'"PNX"', b"12345", b"[3,4]", b"null "])
def test_a_format_of_a_foreign_shard_is_no_path(kind: bytes, built: Path, pad: Pad, tmp_path: Path) -> None:
    """It became the file's ending, whatever it was; one that is no text was a traceback."""
    foreign = tmp_path / "foreign"
    shutil.copytree(built, foreign)
    tar = foreign / "pad-000000.tar"
    assert tar.read_bytes().count(b'"format":"PNG"') == 4
    tar.write_bytes(tar.read_bytes().replace(b'"format":"PNG"', b'"format":' + kind))
    done = pad("export", "coco", foreign, "--out", tmp_path / "out")
    assert done.code == 2 and done.err.count("\n") == 1 and "does not decode images of this format" in done.err, (
        done.err
    )
    assert not list(tmp_path.glob("out/images/*"))


def test_every_format_that_is_decoded_has_an_ending() -> None:
    """A format that a new Pillow opens would be built, and refused by the exports."""
    Image.init()
    assert set(Image.OPEN) <= ENDINGS.keys()
    assert all(re.fullmatch("[a-z0-9]+", ending) for ending in ENDINGS.values())


@pytest.mark.parametrize("kind", ["coco", "fiftyone", "parquet", "hub"])
@pytest.mark.parametrize("field", [b'"regions":', b'"label":', b'"box":', b'"score":', b'"caption":'])
def test_a_field_that_a_foreign_sample_lacks_is_told(
    kind: str, field: bytes, built: Path, pad: Pad, tmp_path: Path
) -> None:
    """One line and exit code 2, or nothing where the export has no use for it; never a traceback."""
    foreign = tmp_path / "foreign"
    shutil.copytree(built, foreign)
    tar = foreign / "pad-000000.tar"
    assert field in tar.read_bytes()
    tar.write_bytes(tar.read_bytes().replace(field, b'"' + field[2:-2] + b'_":'))  # as long as before
    done = pad("export", kind, foreign, "--out", tmp_path / "out")
    assert done.code in (0, 2) and "Traceback" not in done.err, done.err
    assert done.code == 2 or kind in ("parquet", "hub")
    assert done.err.count("\n") <= 1


@pytest.mark.parametrize("kind", ["coco", "fiftyone", "parquet"])
@pytest.mark.parametrize("damage", [DIVIDES, {"rle": {"counts": "11"}}, {"rle": 3}])
def test_a_mask_of_a_foreign_shard_kills_nothing(
    damage: dict[str, Any], kind: str, built: Path, pad: Pad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pycocotools divides by the height that a mask states, and 0 ended the process by a signal; where it reads beyond
    a mask's end, anything can happen. The sample is spoiled as it is read: its place in the tar stays the same."""
    read = ShardFolder.sample

    def spoiled(self: ShardFolder, name: str, row: dict[str, Any], image: bool = True) -> Sample:
        sample = read(self, name, row, image)
        sample.meta |= {"height": 0, "width": 5} if damage == DIVIDES else {}
        for region in sample.meta["regions"]:
            region |= damage
        return sample

    monkeypatch.setattr(ShardFolder, "sample", spoiled)
    done = pad("export", kind, built, "--out", tmp_path / "out")
    assert done.code == 2 and done.err.count("\n") == 1 and "mask 0 of" in done.err, done.err
