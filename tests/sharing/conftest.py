"""The runs that are exported and reported on: each is made once, and no test changes it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pad_pipeline.miniature.files import World
from tests.sharing.mixed_run import import_run, scored, write_coco

Pad = Callable[..., Any]
"""The fixture `pad`: runs a command in this process."""


@pytest.fixture(scope="session")
def mixed_run(world: World, models_toml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """13 images: a wide one with two regions, one of them with a hostile label, which the crop cuts off; a blank one;
    one that is missing; ten scenes. Scores differ."""
    folder = tmp_path_factory.mktemp("mixed")
    write_coco(folder, world)
    scored(import_run(folder, models_toml, "crop"), folder / "run")
    return folder / "run"


@pytest.fixture(scope="session")
def built(world: World, models_toml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scenes, annotated by the small models: scores, alternates, and one image that failed."""
    from pad_pipeline.sources.open import open_source
    from pad_pipeline.workflows.models.settings import load_models
    from pad_pipeline.workflows.runs.build import build
    from pad_pipeline.workflows.runs.options import RunOptions

    images = tmp_path_factory.mktemp("images") / "images"
    shutil.copytree(world.images, images)
    (images / "broken.png").write_bytes(b"no image")
    records = json.loads(world.llava.read_text())
    broken = {"id": "broken", "image": "broken.png", "conversations": records[0]["conversations"]}
    (images.parent / "llava.json").write_text(json.dumps([*records, broken]))
    models = load_models(str(models_toml))
    view = models.view.model_copy(update={"size": 112})
    out = tmp_path_factory.mktemp("built") / "out"
    build(open_source(images.parent / "llava.json", images), out, models, view, RunOptions(shard_size=4, threads=1))
    return out
