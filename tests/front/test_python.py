"""`import pad_pipeline as pad`: the functions of the front door, and the notebook that shows them."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pad_pipeline as pad
from pad_pipeline.miniature.files import World
from pad_pipeline.shards.reader import open_shards
from tests.conftest import ROOT

Run = Callable[..., Any]


def test_the_import_loads_nothing_heavy() -> None:
    """Catches `import pad_pipeline` that takes seconds, and a name that can't be imported, or that types don't know."""
    code = "import sys, pad_pipeline as pad; print([m for m in ('torch', 'numpy', 'PIL', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert all(callable(getattr(pad, name)) for name in pad.__all__ if name != "__version__")
    assert set(pad.__all__) <= set(dir(pad))
    typed = ast.parse((ROOT / "pad_pipeline/__init__.pyi").read_text())
    names = {alias.name for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert names | {"__version__"} == set(pad.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pad.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_annotated_images_are_those_of_a_build(world: World, models_toml: Path, tmp_path: Path) -> None:
    """A path, an image and an array get what `build` writes for the files; a broken file fails alone. Catches colors in
    another order, results in another order, and models with other settings."""
    view = pad.View(size=112)
    files = sorted(world.images.iterdir())[:3]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    given = [files[0], Image.open(files[1]), np.asarray(Image.open(files[2]).convert("RGB")), broken]
    *found, failed = pad.Annotator(models_toml, view, threads=1)(given)
    totals = pad.build(world.images, tmp_path / "out", models_toml, view, limit=3, threads=1)
    assert totals["images"] == 3
    for mine, sample in zip(found, pad.samples(tmp_path / "out"), strict=True):
        assert [one["label"] for one in mine.regions] == [one["label"] for one in sample.regions]
        scores = [[one["score"] for one in each.regions] for each in (mine, sample)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)
        assert np.mean(mine.coverage != sample.coverage) < 1e-3
        assert mine.masks.shape == (len(mine.regions), *np.asarray(sample.open()).shape[:2])
    assert (failed.status, failed.regions, failed.masks.shape[0]) == ("failed", [], 0)
    assert "no readable image" in failed.reason and "no readable image" in repr(failed)
    with pytest.raises(pad.UserError, match=r"uint8 \[H, W, 3\]"):
        pad.Annotator(models_toml, view)(np.zeros((4, 4, 3)))
    annotator = pad.Annotator(models_toml, view, threads=1)
    for wrong in (b"bytes", None, 3, [[files[0]]], np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises((pad.UserError, TypeError)):
            annotator(wrong)  # type: ignore[arg-type]
    with pytest.raises(pad.UserError, match="No such file"):
        pad.Annotator(models_toml, view)(tmp_path / "nowhere.png")


def test_images_of_pillow_are_taken_as_files_are(world: World, models_toml: Path, tmp_path: Path) -> None:
    """Turned by EXIF, in CMYK, with transparency, as a generator, and from several threads at once. Catches an image
    that lies on its side, and results of another thread's images."""
    annotator = pad.Annotator(models_toml, pad.View(size=112), threads=1)
    scene = Image.open(sorted(world.images.iterdir())[0]).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    scene.save(tmp_path / "turned.jpg", exif=exif)
    turned, opened = annotator([tmp_path / "turned.jpg", Image.open(tmp_path / "turned.jpg")])
    assert turned.meta["width"] == opened.meta["width"] == scene.height != scene.width
    others = annotator(scene.convert(mode) for mode in ("CMYK", "RGBA", "LA", "F"))
    assert "failed" not in {one.status for one in others}
    alone = [annotator(path)[0].regions for path in sorted(world.images.iterdir())[:4]]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda path: annotator(path)[0].regions, sorted(world.images.iterdir())[:4]))
    assert [[one["label"] for one in its] for its in found] == [[one["label"] for one in its] for its in alone]


def test_wrong_settings_are_one_line() -> None:
    """`UserError`, as the docstrings say. Catches pydantic's pages of text."""
    for call in (
        lambda: pad.build("nowhere", "out", "miniature", shard_size=0),
        lambda: pad.build("nowhere", "out", "miniature", nonsense=1),
        lambda: pad.train("out", steps=-1, vision="miniature", llm="miniature"),
        lambda: pad.train("out"),
        lambda: pad.train("out", vision="miniature", llm="miniature", address="auto"),
        lambda: pad.train("out", vision="miniature", llm="miniature", workers="many"),
        lambda: pad.train("out", vision="miniature", llm="miniature", workers=2.5),  # type: ignore[arg-type]
        lambda: pad.train("out", vision="miniature", llm="miniature", workers=1, max_failures=-2),
        lambda: pad.train("out", vision="miniature", llm="miniature", fit="foo"),
        lambda: pad.train("out", vision="miniature", llm="miniature", wandb=5),
        lambda: pad.evaluate_labels("a", "b", categories="instances.json"),
        lambda: pad.evaluate_labels("a", "b", label_map={"hill": ["a"]}),  # type: ignore[dict-item]
    ):
        with pytest.raises(pad.UserError) as error:
            call()
        assert "\n" not in str(error.value)


def test_samples_show_themselves(shards: Path) -> None:
    """Short in a console; drawn in a notebook, with text from data as text. Catches a repr of 266,243 characters, and
    markup in a label."""
    sample = next(pad.samples(shards))
    assert len(repr(sample)) < 300 and sample.key in repr(sample) and "\n" not in repr(sample)
    assert repr(open_shards(shards).sample(*open_shards(shards).usable()[0])) == repr(sample)
    assert sample._repr_html_().count("<img ") == 1
    sample.meta["regions"][0]["label"] = "<script>alert(1)</script>"
    assert "<script>" not in sample._repr_html_()


def test_a_dataset_serves_any_loader(shards: Path) -> None:
    """Two workers, batches of images that differ in size and regions; `PatchLoss` takes them. Catches a file that
    workers share, and coverage in bytes."""
    dataset = pad.load(shards)
    loader = torch.utils.data.DataLoader(dataset, 4, num_workers=2, collate_fn=dataset.collate)
    batches = list(loader)
    assert [key for batch in batches for key in batch["key"]] == [item["key"] for item in dataset]
    batch = batches[0]
    grid, width = batch["coverage"][0].shape[-1], batch["embeds"][0].shape[-1]
    assert all(one.min() >= 0 and one.max() == 1 for one in batch["coverage"])
    loss = pad.PatchLoss()(torch.randn(4, grid * grid, width), batch["embeds"], batch["coverage"])
    assert torch.isfinite(loss) and loss > 0


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    """Every cell in order, as in a notebook; the last one is a drawing. Catches a notebook older than the code."""
    cells = json.loads((ROOT / "docs/notebook.ipynb").read_text())["cells"]
    assert not any(cell.get("outputs") for cell in cells)
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    drawn = "Image.open(next(Path('notebook/words').glob('words-*.png'))).verify()"
    script = f"{code}\n{drawn}\nprint(first._repr_html_()[:3])\n"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    right = dict(re.findall(r"(captions alone|patch loss) (0\.\d+) of all patches", done.stdout))
    assert float(right["patch loss"]) > float(right["captions alone"]) + 0.1
    assert done.stdout.endswith("<p>\n")
