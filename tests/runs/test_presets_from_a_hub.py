"""The presets from a hub and from the web: all files of their official names and forms, but small."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file

from examples.miniature.members import as_toml
from pad_pipeline.miniature.files import World
from pad_pipeline.pins import PINS, Pin
from pad_pipeline.pretrained import quiet
from pad_pipeline.shards.run import Run
from pad_pipeline.storage import Folder
from pad_pipeline.weights import fetch_model, file_sha256
from pad_pipeline.workflows.models.catalog import OFFICIAL
from pad_pipeline.workflows.models.settings import PRESETS, load_models
from tests.conftest import ROOT
from tests.hub import COMMIT, Hub
from tests.hub_models import write_dino, write_sam
from tests.runs.conftest import Pad
from tests.runs.processes import PAD
from tests.runs.test_fetching import in_processes, write_weights
from tests.small_models import RAM_SHAPE, write_small_models

DETECTOR, LLM, TOWER = "IDEA-Research/grounding-dino-base", "lmsys/vicuna-7b-v1.5", "openai/clip-vit-large-patch14-336"


@pytest.fixture(scope="session")
def small(models_toml: Path, world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small models with a RAM and with a RAM++, by the name of their preset."""
    plus = write_small_models(tmp_path_factory.mktemp("plus"), ["house", "grass"], ["a house"], family="ram_plus")
    best = tmp_path_factory.mktemp("best") / "small"
    shutil.copytree(plus.parent, best)
    with quiet():
        levels = {"num_feature_levels": 5, "decoder_bbox_embed_share": False, "decoder_cls_embed_share": False}
        write_dino(best / "detector", ["house", "grass"], "mm-grounding-dino", **levels)
    write_sam(best / "segmenter", "sam2_video")
    return {"paper": models_toml.parent, "plus": plus.parent, "best": best}


def publish(hub: Hub, preset: str, small: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put small checkpoints at the official addresses of a preset, with their hashes in pad's catalog; return the
    models file that names the preset and the size of its small tagger."""
    tagger, detector = PRESETS[preset]["tagger"], PRESETS[preset]["detector"]["model"]
    for name in (tagger["weights"], "ram_tag_list", "ram_tag_list_threshold", "sam_vit_h"):
        where = OFFICIAL[name].reference
        if where.startswith("hf://"):
            repository, _, rest = where.removeprefix("hf://").partition("@")
            hub.commits[repository], _, file = rest.partition("/")
            path = hub.repository(repository) / file
        else:
            path = hub.folder / "web" / where.rsplit("/", 1)[-1]
            path.parent.mkdir(exist_ok=True)
            where = f"{hub.url}/web/{path.name}"
        tags = (small / "tags.txt").read_text()
        if name == tagger["weights"]:  # a training checkpoint
            network = load_file(small / "tagger.safetensors")
            torch.save({"model": network, "optimizer": {"state": {}}, "config": {"a": [1]}, "epoch": 9}, path)
        elif name == "sam_vit_h":
            torch.save(load_file(small / "segmenter.safetensors"), path)
        else:
            path.write_text(tags if name == "ram_tag_list" else "0.5\n" * len(tags.split("\n")[:-1]))
        entry = OFFICIAL[name]._replace(reference=where, sha256=file_sha256(path))
        monkeypatch.setitem(OFFICIAL, name, entry)
    members = {detector: "detector", LLM: "llm", TOWER: "clip"}
    if (segmenter := PRESETS[preset]["segmenter"]["weights"]) not in OFFICIAL:
        members[segmenter] = "segmenter"
    for name, member in members.items():
        pin = PINS.get(name, Pin(COMMIT))
        hub.commits[name] = pin.revision
        folder, weights = hub.repository(name), small / member / "model.safetensors"
        for path in (small / member).glob("*.json"):
            (folder / path.name).write_bytes(path.read_bytes())
        if member in ("detector", "segmenter"):
            (folder / weights.name).write_bytes(weights.read_bytes())
        else:
            write_weights(folder, load_file(weights), "sharded bin" if name == LLM else "bin")
        hashes = {file: file_sha256(folder / file) for file in pin.sha256}
        monkeypatch.setitem(PINS, name, pin._replace(sha256=hashes))
    shape = RAM_SHAPE.model_dump(exclude={"family"})
    path = hub.folder / f"{preset}.toml"
    path.write_text(f'preset = "{preset}"\n[tagger]\n' + "".join(f"{key} = {value}\n" for key, value in shape.items()))
    return path


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_fetched_and_built_from_empty_caches_and_then_offline(
    online: Hub, small: dict[str, Path], world: World, preset: str, pad: Pad, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The first use with official weights, which nobody can try where pad is developed. Catches a file that is asked
    for by a wrong name or revision, fetched twice, or not found again; and a model that is fetched whole for a part."""
    models = publish(online, preset, small[preset], monkeypatch)
    listed = json.loads(pad("models", "list", models, "--json").out)["models"][str(models)]
    assert [file["path"] for file in listed] == [None] * 6
    assert all(file["revision"] or file["sha256"] for file in listed)
    options = ["--view-size", 112, "--threads", 1, "--engine", "local"]
    command = ["build", "--images", world.images, "--models", models, *options]
    if preset == "paper":
        fetched = pad("models", "fetch", models)
        assert (fetched.code, fetched.out.count("right:")) == (0, 4), fetched.out + fetched.err
    else:
        built = pad(*command, "--out", tmp_path / "first")
        assert built.code == 0, built.err
    tagger, segmenter = PRESETS[preset]["tagger"]["weights"], PRESETS[preset]["segmenter"]["weights"]
    for name in (tagger, "ram_tag_list", *({segmenter} & OFFICIAL.keys())):
        file = Path(OFFICIAL[name].reference).name
        assert online.sent[file] == next(online.folder.rglob(file)).stat().st_size
    embedding = next((tmp_path / "pad-cache/embeddings").rglob("model.safetensors")).stat().st_size
    assert online.sent["pytorch_model-00001-of-00002.bin"] < embedding + 140_000
    assert online.sent["pytorch_model-00002-of-00002.bin"] == 0
    asked = len(online.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    listed = json.loads(pad("models", "list", models, "--json").out)["models"][str(models)]
    assert None not in [file["path"] for file in listed]
    out = tmp_path / "out"
    built = pad(*command, "--out", out)
    assert built.code == 0, built.err
    assert pad("verify", out).code == 0
    run = Run.read(Folder(out))
    assert run.fingerprints["tagger"] == OFFICIAL[tagger].sha256
    assert len(online.asked) == asked


def test_workers_that_start_together_fetch_each_file_of_a_preset_once(
    online: Hub, small: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches eight workers of a node that fetch 9 GB each, and one that reads what another is still writing."""
    models = load_models(str(publish(online, "paper", small["paper"], monkeypatch)))

    def fetch() -> None:
        from pad_pipeline.labels import LabelEmbedder

        models.fingerprints()
        LabelEmbedder(models.llm)

    in_processes(3, fetch)
    for path in online.folder.rglob("*"):
        if path.is_file() and path.suffix != ".toml" and "00001" not in path.name and path.name != "config.json":
            assert online.sent[path.name] <= path.stat().st_size * (3 if path.name.startswith("tokenizer") else 1), path


def test_the_vision_tower_of_a_training_is_pinned(
    online: Hub, small: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CLIP-L/336 has no safetensors on the hub."""
    publish(online, "paper", small["paper"], monkeypatch)
    folder = fetch_model("vision", TOWER)
    assert folder.name == PINS[TOWER].revision
    assert (folder / "pytorch_model.bin").is_file()


@pytest.mark.long
def test_a_hub_is_named_by_the_environment(
    online: Hub, small: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A whole process, and nothing but its environment. The catalog's own hashes hold there, so that a hub with
    other files is refused in one line."""
    publish(online, "paper", small["paper"], monkeypatch)
    models, urls = tmp_path / "own.toml", {name: file.reference for name, file in OFFICIAL.items()}
    files = {"weights": urls["ram_swin_large_14m"], "tag_list": urls["ram_tag_list"]}
    sections = {
        "tagger": RAM_SHAPE.model_dump() | files | {"threshold": 0.5},
        "detector": {"model": DETECTOR, "revision": "main"},
        "segmenter": {"weights": urls["sam_vit_h"]},
        "llm": {"llm": LLM},
    }
    models.write_text(as_toml(sections))
    environment = os.environ | {"HF_ENDPOINT": online.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    command = [PAD, "models", "fetch", models]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("right:") == 4
    models.write_text(as_toml(sections | {"detector": {"model": DETECTOR}}))
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if "sha256" in line]
    assert "model.safetensors: its sha256 is" in line and "should be 5548f844c928" in line


def test_every_file_of_a_preset_is_pinned_and_has_its_license_and_size_listed(pad: Pad) -> None:
    """Catches a file without a pin, the moving space instead of the repository of RAM, and all of Vicuna in a total."""
    listed = json.loads(pad("models", "list", "--json").out)["models"]
    for name in PRESETS:
        no_pin = [file["reference"] for file in listed[name] if not (file["revision"] or file["sha256"])]
        assert no_pin == ([PRESETS["best"]["detector"]["model"]] if name == "best" else [])
        assert all(len(sha256) == 64 for file in listed[name] for sha256 in file["sha256"].values())
        assert all(file["license"] and file["gated"] is False for file in listed[name])
    tagger, *_ = listed["paper"]
    assert (tagger["license"], tagger["revision"][:8]) == ("MIT", "a4f945fe")
    assert tagger["reference"].startswith("hf://xinyu1205/recognize_anything_model@")
    vicuna = next(file for file in listed["paper"] if file["reference"] == LLM)
    assert (vicuna["megabytes"], vicuna["whole_megabytes"], vicuna["sha256"]) == (263, 9977, {})
    said = " ".join(pad("models", "list", "paper").out.split())
    assert "download 9.39 GB; 19.10 GB from a server that sends whole files only" in said
    assert (
        "revision 3321f76e, Llama 2 Community License, not gated, not on this machine from lmsys/vicuna-7b-v1.5" in said
    )
    assert "comes with pad" in pad("models", "list", "miniature").out
