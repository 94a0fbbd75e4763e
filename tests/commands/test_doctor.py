"""pad doctor: what is wrong with a machine is told in lines with remedies, whatever is wrong with it."""

from __future__ import annotations

import json
import shutil
import socket
import tomllib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest

from pad_pipeline.workflows.checks import machine, network
from tests.conftest import ROOT

Pad = Callable[..., Any]
STATES = ("ok", "warning", "problem")


@pytest.fixture
def doctor(pad: Pad, models_toml: Path, tmp_path: Path) -> Pad:
    """Run it over small models that are here; gives the findings by name, and `code`."""

    def run(*arguments: object) -> SimpleNamespace:
        given = ["--out", tmp_path, "--models", models_toml, *arguments]
        done = pad("doctor", *given, "--json")
        answer = json.loads(done.out)
        found = {finding["check"]: finding for finding in answer["checks"]}
        assert len(found) == len(answer["checks"])
        wrong = [finding for finding in answer["checks"] if finding["state"] == "problem"]
        assert answer["problems"] == len(wrong) and done.code == bool(wrong)
        for finding in answer["checks"]:
            assert finding["state"] in STATES and finding["found"].isprintable() and finding["remedy"].isprintable()
            assert finding["state"] == "ok" or finding["remedy"], finding
        return SimpleNamespace(found=found, wrong=[finding["check"] for finding in wrong], err=done.err)

    return run


def test_a_machine_that_is_well_has_no_problem_and_json_says_the_same(
    pad: Pad, doctor: Pad, models_toml: Path, tmp_path: Path
) -> None:
    """A check that fails where nothing is wrong; a check that programs never hear of."""
    told = doctor()
    assert not told.wrong, told.found
    expected = {"python", "packages", "cpu", "ray", "shared memory", "open files", "out", "hub", "models", "java"}
    assert expected <= told.found.keys()
    assert "ray 2." in told.found["packages"]["found"] and told.found["ray"]["found"][0].isdecimal()
    done = pad("doctor", "--out", tmp_path, "--models", models_toml)
    assert done.code == 0 and not done.err
    lines = [line for line in done.out.splitlines() if line.startswith(STATES)]
    assert [line[:8].strip() for line in lines] == [finding["state"] for finding in told.found.values()]
    assert all(name in line for name, line in zip(told.found, lines, strict=True))
    assert not any(tmp_path.iterdir()), "it wrote something"


def test_versions_below_pyprojects_are_problems(doctor: Pad, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old torch on a GPU box, found after the models are fetched."""
    monkeypatch.setattr(machine, "_requirements", lambda: (">=3.99", ["torch>=99", "no-such-thing>=1", "numpy>=1"]))
    told = doctor()
    assert told.wrong == ["python", "torch", "no-such-thing"]
    assert "99 is needed" in told.found["torch"]["found"]
    assert told.found["torch"]["remedy"] == "pip install --upgrade 'torch>=99'"
    assert "not installed" in told.found["no-such-thing"]["found"]
    assert told.found["packages"]["found"].startswith("numpy ")


def test_the_requirements_are_pyprojects_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list that was copied, and grows old; beside an installed package, which has no pyproject.toml, none at all."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert machine._requirements() == (project["requires-python"], project["dependencies"])
    monkeypatch.setattr(Path, "is_file", lambda _: False)
    python, wanted = machine._requirements()
    assert python == project["requires-python"]
    assert {"torch>=2.9", "ray>=2.55"} <= set(wanted) and not any("moto" in text for text in wanted)


def test_missing_models_are_named_with_their_size_and_the_command(
    doctor: Pad, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A build on a node without network that finds out after it was planned."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("PAD_CACHE", str(tmp_path / "pad"))
    monkeypatch.setattr(machine, "RUN_FREE", 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**12, free=10**12))
    told = doctor("--models", "paper")
    assert told.wrong == ["models"]
    assert told.found["models"]["remedy"].startswith("pad models fetch paper")
    for part in ("6 of 6", "9.39 GB in all", "tagger.weights (5.63 GB)", "segmenter.weights", "llm.llm"):
        assert part in told.found["models"]["found"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**12, free=9 * 10**9))
    told = doctor("--models", "paper")
    assert told.wrong == ["models", "hub's cache", "pad's cache"]
    assert "9.39 GB are needed" in told.found["hub's cache"]["found"]


def test_a_model_that_no_download_mends_is_told_apart(doctor: Pad, models_toml: Path, tmp_path: Path) -> None:
    """`pad models fetch` as the remedy for a misspelt path; a traceback for a misspelt setting."""
    wrong = tmp_path / "wrong.toml"
    text = models_toml.read_text().replace('"tagger.safetensors"', '"lost/tagger.safetensors"')
    wrong.write_text(text)
    told = doctor("--models", wrong)
    assert "tagger.weights" in told.wrong and "models" not in told.found
    assert "fetch" not in told.found["tagger.weights"]["remedy"]
    wrong.write_text(text.replace("threshold", "treshold"))
    told = doctor("--models", wrong)
    assert told.wrong == ["models"] and "treshold" in told.found["models"]["found"]


def test_a_full_disk_and_a_small_dev_shm_have_remedies(doctor: Pad, monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker's 64 MB of shared memory; a folder in which the first shard does not fit."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=64 << 20, free=1000))
    told = doctor()
    assert told.wrong == ["out", "hub's cache", "pad's cache"]
    assert "make room" in told.found["out"]["remedy"]
    if Path("/dev/shm").is_dir():
        assert told.found["shared memory"]["state"] == "warning"
        assert "--shm-size" in told.found["shared memory"]["remedy"]


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("s3://bucket/shards", "s3fs is not installed"),
        ("ftp://host/shards", "begins with 'ftp'"),
        ("file", "no folder"),
    ],
)
def test_an_out_that_can_not_be_written(
    doctor: Pad, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, out: str, said: str
) -> None:
    """A store whose package is missing; a file where a folder should be."""
    monkeypatch.setattr(machine, "installed", lambda _: False)
    (tmp_path / "file").write_text("")
    told = doctor("--out", out if "://" in out else tmp_path / out)
    assert told.wrong == ["out"] and said in told.found["out"]["found"]


def test_a_cluster_that_is_not_there_is_one_line(doctor: Pad, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own minutes of waiting, and its traceback."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(network, "RAY_TIMEOUT", 0.5)
        told = doctor("--address", address)
        assert told.wrong == ["cluster"] and "does not answer" in told.found["cluster"]["found"]
    told = doctor("--address", address)
    assert told.wrong == ["cluster"] and not told.err
    assert f"{address} can't be reached" in told.found["cluster"]["found"]
    assert "ray start --head" in told.found["cluster"]["remedy"]


def test_ray_that_is_not_installed_is_a_problem_with_a_way_round_it(
    doctor: Pad, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU box without Ray, which needs none for --engine local."""
    monkeypatch.setattr(network, "find_spec", lambda _: None)
    told = doctor("--address", "auto")
    assert told.wrong == ["ray"] and "--engine local" in told.found["ray"]["remedy"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """A hub on this machine, which knows nothing."""

    class Nothing(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Nothing)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("no_proxy", "*")
    yield server
    server.shutdown()
    server.server_close()


def test_the_hub_is_asked_unless_it_must_not_be(
    doctor: Pad, hub: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Any answer is one; missing models are a warning then, for a build fetches them; a dead hub is no traceback."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("PAD_CACHE", str(tmp_path / "pad"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**12, free=10**12))
    told = doctor("--models", "paper")
    assert told.found["hub"]["state"] == "ok" and "answers" in told.found["hub"]["found"]
    assert told.found["models"]["state"] == "warning" and not told.wrong
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")
    told = doctor()
    assert told.found["hub"]["state"] == "warning" and not told.wrong
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "not asked" in doctor().found["hub"]["found"]


def test_gpus_are_told_with_what_they_lack(doctor: Pad, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU without bfloat16, or too small, that looks as good as any."""
    import torch

    devices = [("H", 9, 80 << 30), ("T", 7, 16 << 30), ("A", 8, 4 << 30)]
    made = [SimpleNamespace(name=name, major=major, minor=0, total_memory=size) for name, major, size in devices]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(made))
    monkeypatch.setattr(torch.cuda, "get_device_properties", made.__getitem__)
    told = doctor()
    assert [told.found[f"gpu {index}"]["state"] for index in range(3)] == ["ok", "warning", "warning"]
    assert "no bfloat16" in told.found["gpu 1"]["found"] and "smaller models" in told.found["gpu 2"]["remedy"]


def test_a_check_that_breaks_does_not_take_the_others_along(doctor: Pad, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback from a broken package, in place of the line that would explain it."""

    def broken() -> None:
        raise RuntimeError("\x1b[31mtwo\nlines")

    monkeypatch.setattr(machine, "gpu", broken)
    told = doctor()
    assert told.wrong == ["gpu"] and "two lines" in told.found["gpu"]["found"]
    assert "models" in told.found
