"""The runs that are exported and reported on: each is made once, and no test changes it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pad_pipeline.miniature.files import World
from pad_pipeline.report import pages, site
from pad_pipeline.shards.reader import open_shards
from tests.sharing.browser import Page
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


@pytest.fixture(scope="session")
def report(mixed_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images a page, four in a block of the index: so that what is found lies across both."""
    out = tmp_path_factory.mktemp("report") / "r"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "BLOCK", 4)
        list(site.write_report(open_shards(mixed_run), out, site.ReportSettings(page_size=3)))
    return out


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Chromium without a window; a skip where there is none."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver_path = shutil.which("chromedriver")
    if not browser or not driver_path:
        pytest.skip("no chromium with chromedriver here (Debian: apt install chromium chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    profile = tmp_path_factory.mktemp("profile")
    flags = "headless no-sandbox disable-gpu disable-dev-shm-usage no-first-run"
    flags += " disable-quic disable-background-networking disable-component-update disable-sync"
    for flag in [*flags.split(), f"user-data-dir={profile}"]:
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options=options, service=Service(driver_path))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def page(chromium: Any, report: Path) -> Page:
    return Page(chromium, report)


@pytest.fixture(scope="session")
def ids(mixed_run: Path) -> list[str]:
    """Of all images, in the run's order."""
    return [row["id"] for _, row in open_shards(mixed_run).rows()]
