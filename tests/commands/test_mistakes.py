"""Each mistake of a user is answered in one line that says what is wrong and what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pad_pipeline.miniature.files import World
from pad_pipeline.workflows.models.settings import PRESETS
from tests.commands.conftest import Pad


def mistakes(tmp: Path, world: World, models_toml: Path) -> dict[str, tuple[list[object], str]]:
    """Name -> arguments of `pad build` that a user might get wrong, and what the answer must say."""
    (tmp / "nothing").mkdir()
    (tmp / "texts").mkdir()
    (tmp / "texts" / "a.txt").write_text("a")
    (tmp / "used").mkdir()
    (tmp / "used" / "thesis.doc").write_text("mine")
    (tmp / "object.json").write_text("{}")
    (tmp / "broken.json").write_text("[{")
    (tmp / "deep.json").write_text("[" * 100000)
    (tmp / "empty.json").write_text("[]")
    (tmp / "file").write_text("x")
    (tmp / "bad.toml").write_text("[tagger")
    good = models_toml.read_text()
    for name in ("tagger.safetensors", "tags.txt", "segmenter.safetensors", "detector", "llm", "clip"):
        (tmp / name).symlink_to(models_toml.parent / name)
    (tmp / "cut.safetensors").write_bytes((models_toml.parent / "tagger.safetensors").read_bytes()[:5000])
    (tmp / "short.txt").write_text("one\ntwo\n")
    tags = (models_toml.parent / "tags.txt").read_text().splitlines()
    (tmp / "special.txt").write_text("\n".join(["the end </s>", *tags[1:]]) + "\n")
    variants = {
        "typo.toml": good.replace("threshold = 0.5", "treshold = 0.5"),
        "range.toml": good.replace("threshold = 0.5", "threshold = 1.5"),
        "swapped.toml": good.replace('"tagger.safetensors"', '"segmenter.safetensors"'),
        "cut.toml": good.replace('"tagger.safetensors"', '"cut.safetensors"'),
        "plus.toml": good.replace('family = "ram"', 'family = "ram_plus"'),
        "clip.toml": good.replace('model = "detector"', 'model = "clip"'),
        "nollm.toml": good.replace('llm = "llm"', 'llm = "clip"'),
        "special.toml": good.replace('"tags.txt"', '"special.txt"'),
        "short.toml": good.replace('"tags.txt"', '"short.txt"'),
        "hash.toml": good.replace("[segmenter]", f'[segmenter]\nsha256 = "{"0" * 64}"'),
    }
    for name, text in variants.items():
        (tmp / name).write_text(text)
    images: list[object] = ["--images", world.images]
    out: list[object] = ["--out", tmp / "out"]

    def models(name: str) -> list[object]:
        return [*images, *out, "--models", tmp / name]

    return {
        "missing folder": (["--images", tmp / "nowhere", *out], "there is no such folder"),
        "empty folder": (["--images", tmp / "nothing", *out], "there is no image in it"),
        "no images": (["--images", tmp / "texts", *out], "1 files that are no images"),
        "wrong root": (["--images", world.llava, "--image-root", tmp / "texts", *out], "lists (10 in all)"),
        "not a list": (["--images", tmp / "object.json", *out], "should hold a list"),
        "broken JSON": (["--images", tmp / "broken.json", *out], "not valid JSON"),
        "deep JSON": (["--images", tmp / "deep.json", *out], "not valid JSON"),
        "no records": (["--images", tmp / "empty.json", *out], "there is no image in it"),
        "missing JSON": (["--images", tmp / "nowhere.json", *out], "there is no such file"),
        "a text file": (["--images", tmp / "file", *out], "this file is no folder"),
        "root of a folder": ([*images, "--image-root", tmp, *out], "--image-root"),
        "no such root": (["--images", world.llava, "--image-root", tmp / "x", *out], "--image-root"),
        "out in use": ([*images, "--out", tmp / "used"], "holds something else (thesis.doc)"),
        "out is a file": ([*images, "--out", tmp / "file"], "this is a file"),
        "out below a file": ([*images, "--out", tmp / "file" / "x"], "can't be written"),
        "out unwritable": ([*images, "--out", "/proc/pad-out"], "can't be written"),
        "unknown models": (
            [*images, *out, "--models", "large"],
            "neither a preset (paper, plus, best, miniature) nor a file",
        ),
        "bad TOML": (models("bad.toml"), "not valid TOML"),
        "unknown setting": (models("typo.toml"), "tagger.treshold"),
        "setting out of range": (models("range.toml"), "less than or equal to 1"),
        "SAM as tagger": (models("swapped.toml"), "look like SAM"),
        "truncated weights": (models("cut.toml"), "can't be read as a checkpoint"),
        "RAM as RAM++": (models("plus.toml"), "checkpoint of ram, and tagger.family is ram_plus"),
        "CLIP as detector": (models("clip.toml"), "model_type is 'clip_vision_model'"),
        "CLIP as LLM": (models("nollm.toml"), "its tokenizer can't be loaded"),
        "other tag list": (models("short.toml"), "the tag list has 2 lines"),
        "a special token in a tag": (models("special.toml"), "'the end </s>' holds '</s>', a special token of the LLM"),
        "other hash": (models("hash.toml"), "its sha256 is"),
        "view and patch": ([*images, *out, "--view-size", 10], "is smaller than patch 14"),
        "no cluster there": ([*images, *out, "--engine", "ray", "--address", "127.0.0.1:9"], "Ray can't be joined"),
        "workers on local": ([*images, *out, "--workers", 2], "--engine ray"),
    }


def test_every_mistake_is_answered_in_one_line(
    pad: Pad, world: World, models_toml: Path, common: list[object], tmp_path: Path
) -> None:
    """Field, value, rule and remedy, exit code 2, nothing written; never a traceback."""
    for name, (arguments, message) in mistakes(tmp_path, world, models_toml).items():
        done = pad("build", *common, *arguments)
        assert done.code == 2, (name, done.out, done.err)
        assert message in done.err, (name, done.err)
        *before, last = done.err.splitlines()
        assert last.startswith("error: "), (name, done.err)
        assert not before or before[0].startswith("10 images are planned"), (name, done.err)
        assert len(before) < 2, (name, done.err)
        assert "; " in done.err, name  # the remedy
        assert not list((tmp_path / "out").glob("pad-*")), name
    assert (tmp_path / "used" / "thesis.doc").read_text() == "mine"


def test_names_of_nobody_and_of_nothing_are_one_line(
    pad: Pad, common: list[object], world: World, tmp_path: Path
) -> None:
    """`~nouser/x` and a malformed hf:// name were tracebacks."""
    build = ["build", "--images", world.images, *common, "--out", tmp_path / "out"]
    refused = pad(*build, "--tag-list", "~nobodyhere/tags.txt")
    assert refused.code == 2 and "~nobodyhere/tags.txt: there is no such file" in refused.err
    (tmp_path / "odd.toml").write_text('preset = "paper"\n[segmenter]\nweights = "hf://a b/c--d..e/x.pth"\n')
    assert pad("models", "list", tmp_path / "odd.toml").code == 0
    assert pad("models", "check", tmp_path / "odd.toml").code == 1


def test_official_models_without_network_say_what_to_do(
    pad: Pad, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, the default models can't be had: the answer names the file and three ways on, at once."""
    monkeypatch.setenv("PAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pad_pipeline.weights.hf_hub_download", offline)
    monkeypatch.setattr("pad_pipeline.weights.snapshot_download", offline)
    for preset in PRESETS:
        done = pad("build", "--images", world.images, "--out", tmp_path / "out", "--models", preset)
        assert done.code == 2
        assert re.search(r"error: [\w.]+ = \S+: it is not in the cache and could not be fetched", done.err), done.err
        assert "PAD_CACHE" in done.err
        assert not (tmp_path / "out").exists()


def offline(*_: object, **__: object) -> str:
    raise ConnectionError("no network")


def test_all_images_failing_is_a_failure(pad: Pad, common: list[object], tmp_path: Path) -> None:
    """Exit code 0 would let a script go on with an empty dataset; the rows still say why."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"no image")
    done = pad("build", "--images", tmp_path / "images", *common, "--out", tmp_path / "out")
    assert done.code == 2
    assert "every one of them failed" in done.err
    assert "no readable image" in pad("stats", tmp_path / "out").out


@pytest.mark.slow
def test_a_machine_without_a_compiler_is_no_images_fault(
    pad: Pad, world: World, models_toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every image went to quarantine, and a rerun with a compiler left them there."""
    own = models_toml.with_name("compiled.toml")
    own.write_text(models_toml.read_text() + "\n[compute]\ncompile = true\n")
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("/bin/false",))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    out = tmp_path / "out"
    done = pad("build", "--images", world.images, "--models", own, "--engine", "local", "--out", out)
    assert done.code == 2
    assert "compute.compile = True" in done.err and "set compile = false" in done.err
    assert not list(out.glob("pad-*"))


def test_all_missing_options_are_named_at_once(pad: Pad) -> None:
    """Catches a command that has to be called once for each option that it needs."""
    for command, missing in (
        ("build", "--images, --out"),
        ("merge", "SHARDS, --out"),
        ("train", "--vision, --llm, --out"),
    ):
        done = pad(command)
        assert done.code == 2 and f"Missing: {missing}." in done.err
