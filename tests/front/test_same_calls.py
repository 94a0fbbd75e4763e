"""The command line is a thin layer: a command and the function of the same name make one call, with the same values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pad_pipeline
from pad_pipeline.miniature.files import World
from pad_pipeline.workflows import api
from pad_pipeline.workflows.engine.ray_session import Cluster
from pad_pipeline.workflows.learning import analyze, ask, launch
from pad_pipeline.workflows.runs import build

Pad = Callable[..., SimpleNamespace]


class Called(BaseException):
    """Ends a command or a function at the call that does the work, and keeps its arguments."""

    def __init__(self, *values: Any, **named: Any) -> None:
        super().__init__()
        self.values, self.named = values, named


def stop(*values: Any, **named: Any) -> None:
    """Stand in the place of the work."""
    raise Called(*values, **named)


def arguments(call: Callable[[], object]) -> Called:
    """The arguments with which `call` reached the work."""
    with pytest.raises(Called) as caught:
        call()
    return caught.value


def test_build(world: World, models_toml: Path, pad: Pad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a default, a view or a model that one of them has and the other has not. Two things differ by intent:
    the command computes on Ray by default, and otherwise in a child process."""
    monkeypatch.setattr(build, "build", stop)
    monkeypatch.setattr(api, "_build", stop)
    words = ["build", "--images", world.llava, "--image-root", world.images, "--models", models_toml]
    by_command = arguments(
        lambda: pad(*words, "--limit", 5, "--sample-seed", 3, "--engine", "local", "--out", tmp_path)
    )
    by_call = arguments(
        lambda: pad_pipeline.build(
            world.llava, tmp_path, models_toml, image_root=str(world.images), limit=5, sample_seed=3
        )
    )
    (source, *rest), (other, *others) = by_command.values, by_call.values
    assert rest == others
    assert (type(source), source.origin, source.root) == (type(other), other.origin, other.root)


def test_train(pad: Pad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both stages. Catches settings that only one of them checks or fills in."""
    monkeypatch.setattr(launch, "train", stop)
    shards, out = tmp_path / "shards", tmp_path / "one"
    parts = ["--vision", "miniature", "--llm", "miniature"]
    by_command = arguments(lambda: pad("train", "--shards", shards, *parts, "--steps", 7, "--out", out))
    named: dict[str, Any] = {"vision": "miniature", "llm": "miniature"}
    by_call = arguments(lambda: pad_pipeline.train(out, shards=str(shards), steps=7, **named))
    assert by_command.values == by_call.values
    cluster = ["--workers", "2-4", "--address", "ray://host:1", "--max-failures", -1]
    second = ["--stage", 2, "--data", tmp_path / "mix.json", "--image-root", tmp_path, "--fit", "crop"]
    by_command = arguments(lambda: pad("train", *second, *parts, *cluster, "--out", out))
    by_call = arguments(
        lambda: pad_pipeline.train(
            out, 2, data=str(tmp_path / "mix.json"), image_root=str(tmp_path), fit="crop", workers="2-4",
            address="ray://host:1", max_failures=-1, **named,
        )
    )  # fmt: skip
    assert by_command.values == by_call.values
    assert by_call.values[1:] == ((2, 4), Cluster("ray://host:1"), -1)


def test_what_contradicts_itself_is_refused_by_both(pad: Pad, tmp_path: Path) -> None:
    """Catches a call from Python that takes what the command refuses: it trained on the shards, and not on the data."""
    parts = {"vision": "miniature", "llm": "miniature"}
    words = [word for name, value in parts.items() for word in (f"--{name}", value)]
    for given, field in (
        ({"shards": "a", "data": "b"}, "shards"),
        ({}, "shards"),
        ({"shards": "a", "image_root": "c"}, "image_root"),
        ({"shards": "a", "address": "ray://host:1"}, "address"),
    ):
        options = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]
        done = pad("train", *words, *options, "--out", tmp_path / "out")
        assert done.code == 2 and done.err.startswith(f"error: --{field.replace('_', '-')} = "), done.err
        with pytest.raises(pad_pipeline.UserError, match=f"^{field} = "):
            pad_pipeline.train(tmp_path / "out", **given, **parts)


def test_analyze_and_evaluate(pad: Pad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a number of images, a prompt or a batch with another default. The model itself is not loaded."""
    monkeypatch.setattr(analyze, "analyze", stop)
    monkeypatch.setattr("pad_pipeline.analysis.model.Subject", lambda path, *_: path)
    words = ["--model", tmp_path, "--shards", "heldout/", "--limit", 9, "--out", tmp_path / "found"]
    by_command = arguments(lambda: pad("analyze", "align", *words))
    by_call = arguments(lambda: pad_pipeline.analyze("align", tmp_path, "heldout/", tmp_path / "found", limit=9))
    names = ("names", "subject", "shards", "settings", "out", "limit", "batch", "drawings", "beside")
    defaults = {"batch": 32, "beside": []}
    wanted = dict(zip(names, by_command.values, strict=False))
    assert wanted == defaults | dict(zip(names, by_call.values, strict=False)) | by_call.named

    data = tmp_path / "refer.json"
    data.write_text("[]")
    for what in ("rec", "captions", "vqa"):
        monkeypatch.setitem(ask.EVALUATIONS, what, stop)
        words = ["--model", tmp_path, "--data", data, "--images", tmp_path, "--out", tmp_path / what]
        by_command = arguments(lambda: pad("evaluate", what, *words))  # noqa: B023
        by_call = arguments(lambda: pad_pipeline.evaluate(what, tmp_path, data, tmp_path, tmp_path / what))  # noqa: B023
        assert {"limit": None} | by_command.named == by_call.named
