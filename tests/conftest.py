"""What the tests share: small models and a drawn world, made once; and the command line, run as a user runs it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
# Each test process keeps to one core: threads that wait for a core that another test process has take twice the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ["COLUMNS"] = "160"  # where tables stand beside long paths

from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http

from pad_pipeline import retries
from pad_pipeline.miniature.files import World, write_world
from pad_pipeline.miniature.world import LABELS
from pad_pipeline.records import ImageRecord
from pad_pipeline.workflows import cli
from pad_pipeline.workflows.commands import runs
from pad_pipeline.workflows.models.settings import ModelSettings, load_models
from tests.hub import Hub, serve
from tests.small_models import write_small_models

ROOT = Path(__file__).parents[1]
"""The checkout."""
MODEL_PAGES = [ROOT / "docs/howto/models.md", *sorted((ROOT / "docs/models").glob("*.md"))]
"""The documentation of the models: the choice of them, and a page for each family."""
SHARED = ROOT.parent / "shared"
"""Data for checks that does not belong to the project; tests that use it skip where it is absent."""


def shared(path: str) -> Path:
    """A path in the shared data, or a skip that says what is missing."""
    found = SHARED / "data" / path
    if not found.exists():
        pytest.skip(f"no check data at {found}")
    return found


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the longest tests come first, so that no process is left alone with one of them at the end."""
    first = ("test_docs", "runs", "training", "miniature")
    items.sort(key=lambda item: not {item.path.stem, item.path.parent.name} & set(first))
    items.sort(key=lambda item: item.path.stem != first[0])


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Converted checkpoints and hashes of the tests, and not the user's own cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAD_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def one_process() -> Iterator[None]:
    """Commands that tests call in this process run their chain in it too: a child would import everything for each of
    hundreds of builds. What must run in a child starts `pad` as a process of its own (`tests/runs/processes.py`)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "ISOLATED", False)
        yield


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """What a test's own `--threads` sets holds for that test alone: sums over another number of threads differ in their
    last digits."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def models_toml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The TOML of small random models over the drawn world's labels; `clip` and `llm` stand beside it."""
    texts = ["a red house on the grass under the sky.", "a blue ball on the floor in front of the wall."]
    return write_small_models(tmp_path_factory.mktemp("models"), list(LABELS), texts)


@pytest.fixture(scope="session")
def models(models_toml: Path) -> ModelSettings:
    return load_models(str(models_toml))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Ten drawn scenes."""
    return write_world(tmp_path_factory.mktemp("world"), 10, seed=3)


@pytest.fixture(scope="session")
def shards(world: World, models_toml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exact regions and captions of the scenes, cut for the small CLIP."""
    from pad_pipeline.geometry import View
    from pad_pipeline.sources.coco import CocoSource
    from pad_pipeline.workflows.runs.build import import_coco
    from pad_pipeline.workflows.runs.options import RunOptions

    models = load_models(str(models_toml))
    out = tmp_path_factory.mktemp("shards") / "out"
    source = CocoSource(world.instances, world.images, world.llava)
    import_coco(source, out, models.llm, models.decode, View(size=112), RunOptions(shard_size=4))
    return out


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine, with empty caches of the hub and of pad, and without pauses between tries."""
    quick = SimpleNamespace(**vars(time) | {"sleep": lambda _: None})
    for module in (file_download, _http):
        monkeypatch.setattr(module, "time", quick)
    monkeypatch.setattr(retries, "PAUSE", 0.0)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("PAD_CACHE", str(tmp_path / "pad-cache"))
    with serve(tmp_path / "hub") as hub:
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {
            "HF_HUB_OFFLINE": False, "ENDPOINT": hub.url, "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_CACHE": str(tmp_path / "hf-cache"),
        }.items():  # fmt: skip
            monkeypatch.setattr(constants, name, value)
        yield hub


@pytest.fixture
def pad(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., SimpleNamespace]:
    """Run `pad` with arguments; gives `code`, `out` and `err`. A traceback would fail the test by itself."""

    def run(*arguments: object) -> SimpleNamespace:
        monkeypatch.setattr("sys.argv", ["pad", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        captured = capfd.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return run


def import_photographs(pad: Callable[..., SimpleNamespace], models_toml: Path, out: Path) -> Path:
    """Shards of photographs with human masks, for the small CLIP and a LLaMA that writes sentences; that LLaMA. A skip
    where they are absent."""
    llm, annotations = shared("stories260K"), shared("photos/instances.json")
    models = out.parent / "models.toml"
    models.write_text(models_toml.read_text().replace('llm = "llm"', f'llm = "{llm}"'))
    for name in ("tagger.safetensors", "tags.txt", "segmenter.safetensors", "detector"):
        (out.parent / name).symlink_to(models_toml.parent / name)
    photos = ["--images", annotations.parent / "images", "--captions", annotations.parent / "llava.json"]
    command = ["import", "coco", "--annotations", annotations, *photos, "--models", models, "--view-size", 112]
    assert pad(*command, "--out", out).code == 0
    return llm


def data(folder: Path) -> dict[str, str]:
    """Name -> sha256 of what a run must write the same every time."""
    names = sorted(path for path in folder.iterdir() if path.name != "metrics.jsonl")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in names}


def wait_for(happens: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Until something happens that a process does."""
    while not happens():
        assert process.poll() is None, f"it ended with {process.returncode} before that"
        time.sleep(0.01)


def record(path: Path, **more: object) -> ImageRecord:
    """A record of one image file, as decode leaves it."""
    from pad_pipeline.images import DecodeSettings, decode

    data = path.read_bytes()
    image, kind = decode(data, DecodeSettings())
    return ImageRecord(
        path.stem, path.name, key=path.stem, data=data, format=kind, width=image.width, height=image.height, **more
    )  # type: ignore[arg-type]
