"""Before a model runs, a build says what it found and what it left out, and stops where the input is useless."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pad_pipeline.errors import UserError
from pad_pipeline.plan import PLAN_NAME, PlanFacts, write_plan
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.sources.base import Source
from pad_pipeline.sources.open import open_source
from pad_pipeline.workflows.runs.survey import check, counts_of, show
from tests.sources.small_sources import png

Pad = Callable[..., Any]


def planned(folder: Path, records: list[Any], files: str = "", **named: Any) -> tuple[PlanFacts, Source]:
    (folder / "list.json").write_text(json.dumps(records))
    for name in files:
        (folder / f"{name}.png").write_bytes(png())
    source = open_source(folder / "list.json", **named)
    return write_plan(source, folder / PLAN_NAME, 8, "sizes"), source


def test_all_that_was_left_out_is_shown_with_an_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a caption, a record or a file that is lost and nobody is told before hours of annotation."""
    records = [{"image": "a.png", "caption": "a"}, {"caption": "no image"}, {"image": ["b.png", "c.png"]}]
    records += [{"image": "missing.png"}, {"image": "../d.png", "id": "d"}]
    facts, source = planned(tmp_path, records, "abc")
    show(facts, source)
    assert capsys.readouterr().err.splitlines() == [
        "5 images are planned: 1 with a caption, 0 with a conversation.",
        "  1 records without an image (the first: record 1)",
        "  1 records with several images, which are annotated without their texts (the first: record 2)",
        "  1 images that can't be used: the image path ... climbs out of the image root "
        "(the first: the image path '../d.png' climbs out of the image root)",
        "  1 images that are not there",
    ]
    assert counts_of(facts, source) == {
        "images that are not there": 1,
        "planned images with a caption": 1,
        "records with several images, which are annotated without their texts": 1,
        "records without an image": 1,
        "the image path ... climbs out of the image root": 1,
    }
    with pytest.raises(UserError, match=r"strict = True: 1 records without an image .*; and 3 more kinds"):
        check(facts, source, "images", strict=True)


def test_images_in_other_stores_are_shown_before_they_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A list from somebody else may name what only the user may read, and the shards then hold it. Catches a bucket
    that is read without a word, and a count that would change run.json."""
    urls = ["s3://mine/a.png", "s3://other/b.png", "s3://other/c.png", "hf://datasets/my/private/x/d.png", "e.png"]
    urls += ["https://host/f.png", "file:///etc/passwd"]
    facts, source = planned(tmp_path, [{"image": url} for url in urls], image_root="s3://mine/images")
    show(facts, source)
    assert capsys.readouterr().err.splitlines()[1:3] == [
        "  2 are read from s3://other with your credentials (the first: s3://other/b.png)",
        "  1 are read from hf://datasets/my/private with your credentials (the first: hf://datasets/my/private/x/d.png)",
    ]
    assert not [name for name in counts_of(facts, source) if "credentials" in name]
    check(facts, source, "images", strict=False)


def test_a_clean_source_passes_a_strict_build(tmp_path: Path) -> None:
    facts, source = planned(tmp_path, [{"image": "a.png", "caption": "a"}], "a")
    check(facts, source, "images", strict=True)


def test_other_texts_are_named_where_no_caption_was_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a training without captions, although a column of the list holds them."""
    facts, source = planned(tmp_path, [{"image": "a.png", "scene": "a dog", "license": "x"}], "a")
    show(facts, source)
    said = capsys.readouterr().err
    assert "no image has a caption, and there are other texts: scene, license; `columns` caption=scene" in said
    with pytest.raises(UserError, match="there are other texts"):
        check(facts, source, "images", strict=True)


def test_the_problem_of_most_records_is_the_error(tmp_path: Path) -> None:
    """Catches "correct the image root" for images that are there: their records have another problem."""
    records = [{"image": {"no": "path"}, "id": str(number)} for number in range(3)] + [{"image": "a.png"}]
    facts, source = planned(tmp_path, records, "a")
    with pytest.raises(UserError, match="3 of its 4 images have this problem: record 0: image is an object") as error:
        check(facts, source, "images", strict=False)
    assert error.value.field == "images"


def test_a_source_without_a_usable_image_is_refused(tmp_path: Path) -> None:
    """Catches a wrong image root, with which every image of millions would fail one by one."""
    facts, source = planned(tmp_path, [{"image": "a.png"}, {"image": "b.png"}])
    with pytest.raises(UserError, match=r"image_root = .*: it has none of the images that .* lists \(2 in all\)"):
        check(facts, source, "images", strict=False)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.doc").write_text("x")
    source = open_source(tmp_path / "photos")
    facts = write_plan(source, tmp_path / PLAN_NAME, 8)
    with pytest.raises(UserError, match=r"there is no image in it; 1 files that are no images \(the first: a.doc\)"):
        check(facts, source, "images", strict=False)


def test_a_command_names_its_options_and_keeps_the_counts(pad: Pad, models_toml: Path, tmp_path: Path) -> None:
    """Catches a note that names a parameter of Python, and counts that are gone after the run."""
    box = {"image_id": 1, "category_id": 3}
    coco = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 3, "name": "thing"}],
        "annotations": [box | {"id": 1, "bbox": [0, 0, 1, 1]}, box | {"id": 2, "bbox": [0, 0]}],
    }
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    command: list[Any] = ["import", "coco", "--annotations", tmp_path / "coco.json", "--images", tmp_path]
    command += ["--models", models_toml, "--view-size", 112, "--out", tmp_path / "out"]
    refused = pad(*command, "--strict")
    assert refused.code == 2 and "--strict = True: 1 annotations left out" in refused.err
    done = pad(*command)
    assert done.code == 0
    assert "annotation 2 of image 1" in done.err
    kind = "annotations left out, because their bbox is not four numbers [x, y, width, height]"
    assert open_shards(tmp_path / "out").run.counts == {kind: 1}
    assert json.loads(pad("stats", tmp_path / "out", "--json").out)["left_out"] == {kind: 1}
