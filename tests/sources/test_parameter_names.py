"""Who calls the library from Python is told which of his arguments is wrong, by its own name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pad_pipeline.analysis.model import Subject
from pad_pipeline.errors import UserError
from pad_pipeline.miniature.files import World
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.sources.coco import CocoSource
from pad_pipeline.sources.folder import FolderSource, RemoteFolderSource
from pad_pipeline.sources.llava import LlavaSource
from pad_pipeline.sources.manifest import ManifestSource
from pad_pipeline.sources.open import open_source
from pad_pipeline.sources.stored import ShardsSource, StoredSource
from pad_pipeline.sources.webdataset import TarSource
from pad_pipeline.storage import Folder
from pad_pipeline.training.job import Job
from pad_pipeline.training.loop import train
from pad_pipeline.training.settings import TrainSettings
from pad_pipeline.verify import verify_run
from pad_pipeline.workflows.learning.analyze import analyze
from pad_pipeline.workflows.models.settings import ModelSettings, load_models
from pad_pipeline.workflows.runs.build import build, import_coco
from pad_pipeline.workflows.runs.options import RunOptions
from pad_pipeline.workflows.toml import read_settings


def refusal(call: Callable[..., Any], *arguments: Any, **named: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        list(call(*arguments, **named))
    assert "--" not in str(caught.value)
    return caught.value


def test_each_source_names_its_own_parameter(tmp_path: Path, world: World, shards: Path) -> None:
    none, rows = tmp_path / "none", tmp_path / "rows.csv"
    rows.write_text("picture,caption\na.png,one\n")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "run.json").write_bytes((shards / "run.json").read_bytes())
    cases: list[tuple[Any, tuple[Any, ...], str]] = [
        (FolderSource, (none,), "images"),
        (RemoteFolderSource, ("ftp://host/images",), "images"),
        (LlavaSource, (none, None), "images"),
        (LlavaSource, (world.images / "scene-000000.png", None), "images"),
        (LlavaSource, ("ftp://host/a.json", None), "images"),
        (LlavaSource, (world.llava, none), "image_root"),
        (ManifestSource, (str(none) + ".csv", None, {}), "images"),
        (ManifestSource, (str(rows), None, {}), "images"),
        (ManifestSource, (str(rows), None, {"image": "jpg"}), "columns"),
        (ManifestSource, (str(rows), none, {"image": "picture"}), "image_root"),
        (TarSource, (f"{none}/*.tar",), "images"),
        (TarSource, (f"{tmp_path}/*.tar",), "images"),
        (ShardsSource, (Folder(none),), "images"),
        (ShardsSource, (Folder(unfinished),), "images"),
        (StoredSource, ([str(none)],), "shards"),
        (CocoSource, (none, world.images), "annotations"),
        (CocoSource, (world.instances, none), "images"),
        (CocoSource, (world.instances, world.images, none), "captions"),
    ]
    for source, arguments, field in cases:
        assert refusal(source, *arguments).field == field, (source, arguments)
        assert field in inspect.signature(source).parameters


def test_open_source_names_its_own_parameter(tmp_path: Path, world: World) -> None:
    for images, named, field in (
        ("ftp://host/images", {}, "images"),
        ("ftp://host/list.parquet", {}, "images"),
        ("s3a+b://host/a.json", {}, "images"),
        (tmp_path / "none", {}, "images"),
        (world.llava, {"columns": {"image": "x"}}, "columns"),
        (world.images, {"image_root": tmp_path}, "image_root"),
    ):
        assert refusal(open_source, images, **named).field == field, images


def test_a_training_names_what_of_the_job_is_wrong(tmp_path: Path, models_toml: Path, shards: Path) -> None:
    """The fields of `Job`, or of its settings."""
    parts = {name: str(models_toml.parent / which) for name, which in (("vision", "clip"), ("llm", "llm"))}
    good: dict[str, Any] = parts | {"stage": 1, "shards": str(shards), "settings": TrainSettings()}
    (tmp_path / "used").mkdir()
    (tmp_path / "used/file").write_text("mine")
    (tmp_path / "mm_projector.bin").write_text("none")
    none = str(tmp_path / "none")
    for field, changes in {
        "out": {"out": str(tmp_path / "used")},
        "shards": {"shards": none},
        "vision": {"vision": none},
        "llm": {"llm": parts["vision"]},
        "init": {"init": str(tmp_path / "mm_projector.bin")},
        "data": {"shards": "", "data": none},
        "image_root": {"shards": "", "data": str(models_toml), "image_root": none},
        "held_out": {"settings": TrainSettings(held_out=1000, max_length=600)},
    }.items():
        assert refusal(train, Job(**(good | {"out": str(tmp_path / "out")} | changes))).field == field, field


def test_analyses_and_builds_name_their_parameters(
    tmp_path: Path, models: ModelSettings, models_toml: Path, world: World, shards: Path
) -> None:
    none, parts = tmp_path / "none", (str(models_toml.parent / "clip"), str(models_toml.parent / "llm"))
    (tmp_path / "mm_projector.bin").write_text("none")
    for field, arguments in {"model": (none,), "vision": (tmp_path / "mm_projector.bin",)}.items():
        assert refusal(Subject, *arguments).field == field
    assert refusal(Subject, tmp_path / "mm_projector.bin", *parts).field == "model"
    assert refusal(Subject, tmp_path, parts[0]).field == "vision"
    assert refusal(analyze, [], None, str(none), None, None).field == "shards"
    for opened in (open_shards, verify_run):
        assert refusal(opened, none).field == "shards" == refusal(opened, "ftp://host/run").field
    assert refusal(load_models, "large").field == "models"
    assert refusal(read_settings, TrainSettings, none, {}).field == "settings"
    assert refusal(read_settings, TrainSettings, None, {"micro_batch": 0}).field == "micro_batch"

    source, view = open_source(world.images), models.view
    for field, out, options in (
        ("out", world.images, RunOptions()),
        ("out", "", RunOptions()),
        ("out", "ftp://host/run", RunOptions()),
        ("out", none, RunOptions(fork=tmp_path / "new")),
        ("fork", shards, RunOptions(fork=shards)),
        ("fork", shards, RunOptions(fork="ftp://host/run")),
        ("fork", shards, RunOptions(fork=world.images)),
        ("redo_from", tmp_path / "out", RunOptions(redo_from="segment")),
        ("retry_failed", tmp_path / "out", RunOptions(retry_failed=True)),
    ):
        assert refusal(build, source, out, models, view, options).field == field, (out, options)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refusal(build, open_source(empty), tmp_path / "out", models, view, RunOptions()).field == "images"
    lost = CocoSource(world.instances, empty)
    given = tmp_path / "out", models.llm, models.decode, view, RunOptions()
    assert refusal(import_coco, lost, *given).field == "images"
    lost = LlavaSource(world.llava, empty)
    assert refusal(build, lost, tmp_path / "out", models, view, RunOptions()).field == "image_root"
