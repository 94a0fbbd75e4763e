"""Models of the user's own: named in a TOML, run as pad's are, looked at closely, and known again by code and files."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pad_pipeline.errors import UserError
from pad_pipeline.images import DecodeSettings, decode
from pad_pipeline.miniature.files import World
from pad_pipeline.records import ImageRecord, Region, Shard, Tag
from pad_pipeline.shards.reader import ShardFolder
from pad_pipeline.shards.run import Run
from pad_pipeline.stages.compute import ComputeSettings
from pad_pipeline.stages.custom import load as plugin
from pad_pipeline.stages.custom.load import resolve_settings
from pad_pipeline.stages.custom.stages import (
    BoxesStage,
    CustomDetector,
    CustomGrounder,
    CustomSegmenter,
    CustomTagger,
    SegmentStage,
)
from pad_pipeline.storage import Folder
from pad_pipeline.workflows.models.settings import load_models
from tests.conftest import ROOT, data, record
from tests.own_models import part

DECODING = DecodeSettings()
TWO = ComputeSettings(threads=2)
OWN = "tests.own_models"
PadCommand = Callable[..., SimpleNamespace]


def detector(**settings: Any) -> BoxesStage:
    own = CustomDetector.model_validate({"class": f"{OWN}:Detector", "settings": settings, "batch_size": 4})
    stage = resolve_settings(own, Path.cwd(), "own.toml").make(DECODING, TWO)
    assert isinstance(stage, BoxesStage)
    return stage


def tagged(world: World, count: int, tags: tuple[str, ...] = ("house", "car")) -> list[ImageRecord]:
    paths = [world.images / f"scene-{index:05d}.png" for index in range(count)]
    return [record(path, tags=[Tag(tag, 0.9) for tag in tags]) for path in paths]


def first_pixel(row: ImageRecord) -> int:
    return int(np.asarray(decode(row.data, DECODING)[0])[0, 0, 0])


def write(path: Path, models_toml: Path, sections: str, without: tuple[str, ...] = ()) -> Path:
    """The small models' TOML with other sections."""
    kept, skip = [], False
    for line in models_toml.read_text().splitlines():
        if line.startswith("["):
            skip = line.strip("[]") in without
        kept += [] if skip else [line]
    for name in ("tagger.safetensors", "tags.txt", "segmenter.safetensors", "detector", "llm"):
        if not (path.parent / name).exists():
            (path.parent / name).symlink_to(models_toml.parent / name)
    path.write_text("\n".join(kept) + "\n" + sections)
    return path


def test_a_detector_is_asked_in_batches_for_what_can_be_boxed(world: World) -> None:
    """Its own buckets and batch size, no call for images without labels, boxes and scores as it gave them."""
    rows = tagged(world, 9, ("house", "Red", "car"))
    rows[4].tags = [Tag("red", 0.9)]
    stage = detector()
    stage(Shard(0, rows))
    assert sum(stage.model.calls) == 8 and max(stage.model.calls) <= 4
    assert stage.model.compute == TWO
    assert rows[4].status == "empty" and rows[4].tags
    for index, row in enumerate(rows):
        if index != 4:
            image = np.asarray(decode(row.data, DECODING)[0])
            assert {r.label: r.box for r in row.regions} == {"house": part(image, 0), "car": part(image, 1)}
            assert all(region.score == region.label_score == 0.75 for region in row.regions)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("raise", "RuntimeError: no such image in my training"),
        ("label", "BadAnswer: the detector gives the label 'unicorn', which was not asked for"),
        ("outside", "it should be x0 <= x1, y0 <= y1 in pixels of the"),
        ("nan", "it should be x0 <= x1, y0 <= y1 in pixels of the"),
        ("swapped", "it should be x0 <= x1, y0 <= y1 in pixels of the"),
        ("score", "gives 'house' the score 1.5; it should be a number from 0 to 1"),
        ("form", "it should be Detection(label, score, xyxy)"),
        ("fewer", "BadAnswer: the detector gives 0 answers for 1 images; it should be a list of as many"),
    ],
)
def test_what_a_detector_does_wrong_is_that_images_failure_alone(world: World, fault: str, said: str) -> None:
    """An exception, or an answer that the protocol forbids, once became a wrong shard or took its batch along."""
    rows = tagged(world, 6)
    stage = detector(fault=fault, odd=first_pixel(rows[2]))
    stage(Shard(0, rows))
    failed = [row for row in rows if row.status == "failed"]
    assert [row.key for row in failed] == [rows[2].key], [row.reason for row in failed]
    assert failed[0].stage == "ground" and said in failed[0].reason
    assert all(row.regions for row in rows if row.status == "ok")


def test_memory_that_runs_out_in_onnx_runtime_makes_smaller_batches(world: World) -> None:
    """Its arena raises a plain RuntimeError, which failed images that would have fitted by halves."""
    rows = tagged(world, 4)
    stage = detector(fault="memory", odd=first_pixel(rows[1]))
    stage.shape = lambda row: ()  # type: ignore[method-assign]
    stage(Shard(0, rows))
    assert [row.status for row in rows] == ["ok"] * 4
    assert stage._fits, "the half should be remembered"


def test_a_segmenters_answers_are_looked_at(world: World) -> None:
    """Masks of the wrong size or type would be packed without a word, and found by `pad verify` a week later."""
    for fault, said in (("dtype", "gives masks uint8"), ("shape", "it should be bool")):
        rows = tagged(world, 4)
        for row in rows:
            row.regions = [Region("house", (3.0, 4.0, 30.0, 40.0)), Region("car", (0.0, 0.0, 9.0, 9.0))]
        own = CustomSegmenter.model_validate(
            {"class": f"{OWN}:Segmenter", "settings": {"fault": fault, "odd": first_pixel(rows[1])}}
        )
        stage = own.make(DECODING, TWO)
        assert isinstance(stage, SegmentStage)
        stage(Shard(0, rows))
        assert [row.status for row in rows] == ["ok", "failed", "ok", "ok"]
        assert said in rows[1].reason
        assert rows[0].regions[0].rle["size"] == [rows[0].height, rows[0].width]
        assert rows[0].regions[0].predicted_iou == 0.75


def test_a_taggers_names_are_looked_at(world: World) -> None:
    """A name twice, empty, or with a line break ends in labels that nothing can be matched with."""
    for words in (["car", "car"], [""], ["two\nlines"]):
        own = CustomTagger.model_validate({"class": f"{OWN}:Tagger", "settings": {"words": words}})
        (row,) = own.make(DECODING, TWO)(Shard(0, tagged(world, 1))).rows
        assert row.status == "failed" and row.reason.startswith("BadAnswer: the tagger gives")
    empty = CustomTagger.model_validate({"class": f"{OWN}:Tagger", "settings": {"words": []}})
    (row,) = empty.make(DECODING, TWO)(Shard(0, tagged(world, 1))).rows
    assert row.status == "empty"


@pytest.mark.long
def test_all_three_of_the_users_own_through_both_engines(
    pad: PadCommand, world: World, models_toml: Path, tmp_path: Path
) -> None:
    """The class is found in Ray's workers too, and both engines write the same bytes; run.json says whose code."""
    sections = (
        f'[tagger]\nclass = "{OWN}:Tagger"\nsettings = {{ weights = "weights.bin" }}\n'
        f'[detector]\nclass = "{OWN}:Detector"\nbatch_size = 3\n[detector.settings]\nscore = 0.5\n'
        f'[segmenter]\nclass = "{OWN}:Segmenter"\n'
    )
    (tmp_path / "weights.bin").write_bytes(b"weights")
    toml = write(tmp_path / "own.toml", models_toml, sections, ("tagger", "detector", "segmenter"))
    build = ["build", "--images", world.images, "--models", toml, "--shard-size", 4, "--threads", 2]
    first = pad(*build, "--engine", "local", "--out", tmp_path / "one")
    assert first.code == 0, first.err
    assert pad(*build, "--engine", "ray", "--out", tmp_path / "two").code == 0
    assert data(tmp_path / "one") == data(tmp_path / "two")
    assert pad("verify", tmp_path / "one", "--deep").code == 0
    run = Run.read(Folder(tmp_path / "one"))
    assert run.settings["detector"]["class"] == f"{OWN}:Detector"
    assert run.settings["detector"]["settings"]["words"] == ["house", "car", "red"], "defaults are settings too"
    assert run.fingerprints["code"].count(f"{OWN}:") == 3
    assert {"tagger_weights", "detector_words", "unboxable"} <= run.fingerprints.keys()
    shards = ShardFolder(Folder(tmp_path / "one"))
    sample = shards.sample("pad-000000", shards.index("pad-000000")[0])
    assert [region["label"] for region in sample.meta["regions"]] == ["house", "car"]
    assert sample.meta["regions"][0]["score"] == 0.5

    (tmp_path / "weights.bin").write_bytes(b"others!")
    again = pad(*build, "--engine", "local", "--out", tmp_path / "one")
    assert again.code == 2 and "fingerprints.tagger_weights" in again.err


def test_a_grounder_stands_for_tagger_and_detector(
    pad: PadCommand, world: World, models_toml: Path, tmp_path: Path
) -> None:
    """Tags come from its boxes; segmenting again keeps them; and it can't be asked for boxes of tags that are there."""
    toml = write(tmp_path / "own.toml", models_toml, f'[grounder]\nclass = "{OWN}:Grounder"\n', ("tagger", "detector"))
    build = ["build", "--images", world.images, "--models", toml, "--engine", "local", "--limit", 3]
    done = pad(*build, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    shards = ShardFolder(Folder(tmp_path / "out"))
    for row in shards.index("pad-000000"):
        meta = shards.sample("pad-000000", row).meta
        sources = {"sources": ["grounder"]}
        assert meta["tags"] == [{"label": "house", "score": 0.9} | sources, {"label": "car", "score": 0.5} | sources]
        assert [region["label"] for region in meta["regions"]] == ["house", "car"]
    again = ["build", "--images", tmp_path / "out", "--models", toml, "--engine", "local", "--out", tmp_path / "again"]
    refused = pad(*again, "--redo-from", "ground")
    assert refused.code == 2 and "a grounder does tag, captions, ground in one" in refused.err
    assert pad(*again, "--redo-from", "segment").code == 0
    both = write(tmp_path / "both.toml", models_toml, f'[grounder]\nclass = "{OWN}:Grounder"\n')
    with pytest.raises(
        UserError, match=r"both.toml: sections = .*grounder.* both do the step .*; leave one of them out"
    ):
        load_models(str(both))
    preset = tmp_path / "preset.toml"
    preset.write_text(f'preset = "plus"\n[grounder]\nclass = "{OWN}:Grounder"\n')
    assert [one.section for one in load_models(str(preset)).annotators] == ["grounder", "segmenter"]


def test_the_check_makes_it_and_asks_it(pad: PadCommand, models_toml: Path, tmp_path: Path) -> None:
    """`pad models check` finds what would fail every image; `pad models list` names module and files."""
    good = f'[detector]\nclass = "{OWN}:Detector"\nsettings = {{ weights = "w.bin" }}\n'
    (tmp_path / "w.bin").write_bytes(b"1")
    toml = write(tmp_path / "own.toml", models_toml, good, ("detector",))
    checked = pad("models", "check", toml)
    assert checked.code == 0, checked.out + checked.err
    assert f"{OWN}:Detector@" in checked.out and "detector_weights" in checked.out
    listed = pad("models", "list", toml)
    assert "own_models.py" in listed.out and str(tmp_path / "w.bin") in listed.out
    odd = 'settings = { fault = "score", odd = 128 }\n'
    wrong = pad(
        "models", "check", write(toml, models_toml, f'[detector]\nclass = "{OWN}:Detector"\n{odd}', ("detector",))
    )
    assert wrong.code == 1
    assert "it fails on a gray image (BadAnswer" in wrong.out


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ('class = "tests.own_models"', "it should be package.module:Class"),
        ('class = "no_such_package:Detector"', "no_such_package can't be imported (ModuleNotFoundError"),
        ('class = "tests.own_models:Detectr"', "there is no class Detectr in tests.own_models"),
        ('class = "tests.own_models:number"', "there is no class number in tests.own_models"),
        ('class = "tests.own_models:NoMethod"', "has no method detect, which a detector should have"),
        ('class = "tests.own_models:Detector"\nclas = 1', "clas = 1: there is no such setting"),
        ('class = "tests.own_models:Detector"\nentry_point = "x"', "either class or entry_point should name the class"),
        (
            'class = "tests.own_models:Detector"\nsettings = { scor = 1 }',
            "detector.settings.scor = 1: there is no such",
        ),
        (
            'class = "tests.own_models:Detector"\nsettings = { score = 2 }',
            "detector.settings.score = 2: Input should be",
        ),
        ('entry_point = "nobody"', "no installed package has an entry point of that name in pad.detectors"),
    ],
)
def test_what_is_wrong_in_the_toml_is_one_line(
    pad: PadCommand, world: World, models_toml: Path, tmp_path: Path, section: str, said: str
) -> None:
    """Field, value, rule, remedy; a traceback of importlib or pydantic tells nobody what to mend."""
    toml = write(tmp_path / "own.toml", models_toml, f"[detector]\n{section}\n", ("detector",))
    done = pad("build", "--images", world.images, "--models", toml, "--engine", "local", "--out", tmp_path / "out")
    assert done.code == 2
    assert said in done.err and f"{toml}: detector" in done.err
    assert len(done.err.strip().splitlines()) == 1, done.err
    assert not (tmp_path / "out").exists()


def test_a_class_that_cant_be_made_is_one_line(
    pad: PadCommand, world: World, models_toml: Path, tmp_path: Path
) -> None:
    """Whatever its constructor raises."""
    toml = write(tmp_path / "own.toml", models_toml, f'[detector]\nclass = "{OWN}:Unmakeable"\n', ("detector",))
    done = pad("build", "--images", world.images, "--models", toml, "--engine", "local", "--out", tmp_path / "out")
    assert done.code == 2
    assert "it can't be made (RuntimeError: no room for my weights)" in done.err
    assert "Traceback" not in done.err


def test_settings_that_are_no_model_or_not_wanted_or_no_json(tmp_path: Path) -> None:
    """A secret is written as asterisks: the workers would log in with those."""
    for name, settings, said in (
        ("BadSettings", {}, "is not a pydantic model"),
        ("Grounder", {"score": 1}, "takes no settings"),
        ("Secretive", {"key": "abc"}, "reading them again changes them"),
    ):
        own = CustomGrounder.model_validate({"class": f"{OWN}:{name}", "settings": settings})
        with pytest.raises(UserError, match=said):
            resolve_settings(own, tmp_path, "own.toml")


def test_an_entry_point_means_its_class(monkeypatch: pytest.MonkeyPatch, models_toml: Path, tmp_path: Path) -> None:
    """Both ways to name a class are one run: run.json holds the class, paths are relative to the TOML."""
    point = EntryPoint("mine", f"{OWN}:Detector", "pad.detectors")
    monkeypatch.setattr(plugin, "entry_points", lambda group: [point] if group == "pad.detectors" else [])
    settings = '\n[detector.settings]\nweights = "w.bin"\n'
    (tmp_path / "w.bin").write_bytes(b"1")
    ways = ['entry_point = "mine"', f'class = "{OWN}:Detector"']
    one, two = (
        load_models(str(write(tmp_path / "own.toml", models_toml, f"[detector]\n{way}{settings}", ("detector",))))
        for way in ways
    )
    assert one.annotator(CustomDetector) == two.annotator(CustomDetector)
    assert one.annotator(CustomDetector).settings["weights"] == str(tmp_path / "w.bin")


def package(folder: Path, body: str = "") -> Path:
    """A package of somebody's, with one detector and a helper."""
    (folder / "somebodys").mkdir(parents=True, exist_ok=True)
    (folder / "somebodys/__init__.py").write_text("")
    (folder / "somebodys/helper.py").write_text(f"EDGE = 9.0\n{body}")
    (folder / "somebodys/detect.py").write_text(
        "from pad_pipeline.stages.custom.protocol import Detection\nfrom somebodys.helper import EDGE\n\n\n"
        "class Detector:\n"
        "    def detect(self, images, labels):\n"
        "        return [[Detection(label, 0.5, (0, 0, EDGE, EDGE)) for label in its] for its in labels]\n"
    )
    return folder


def test_other_code_refuses_a_resume_and_a_foreign_run_imports_nothing(
    pad: PadCommand, world: World, models_toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A helper that changed would leave shards of two kinds in one folder. What a run.json names is never imported:
    verify, stats and a resume with other models work where the class is gone."""
    code = package(tmp_path / "code")
    monkeypatch.syspath_prepend(str(code))
    toml = write(tmp_path / "own.toml", models_toml, '[detector]\nclass = "somebodys.detect:Detector"\n', ("detector",))
    out = tmp_path / "out"
    build = ["build", "--images", world.images, "--models", toml, "--engine", "local", "--limit", 2, "--out", out]
    assert pad(*build).code == 0
    with (out / "pad-000000.parquet").open("rb") as stream:
        assert set(pq.read_table(stream)["status"].to_pylist()) <= {"ok", "empty"}
    monkeypatch.delitem(__import__("sys").modules, "somebodys.helper")
    package(code, "# another version\n")
    refused = pad(*build)
    assert refused.code == 2 and "somebodys.detect:Detector@" in refused.err and "fingerprints.code" in refused.err
    assert pad(*build, "--accept-changed-code").code == 0

    for name in [name for name in __import__("sys").modules if name.startswith("somebodys")]:
        monkeypatch.delitem(__import__("sys").modules, name)
    (code / "somebodys/__init__.py").write_text("raise SystemExit('this must not be imported')")
    assert pad("verify", out).code == 0
    assert pad("stats", out).code == 0
    other = pad("build", "--images", world.images, "--models", models_toml, "--engine", "local", "--out", out)
    assert other.code == 2 and "made with something else" in other.err
    gone = pad(*build)
    assert gone.code == 2 and "can't be imported (SystemExit: this must not be imported)" in gone.err
    shutil.rmtree(code)


def test_the_readmes_class_works(
    models_toml: Path, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader's first try is to copy both blocks."""
    text = (ROOT / "docs/howto/own-models.md").read_text()
    (code,), toml = (
        re.findall(r"```python\n(.*?)```", text.partition("\n## ")[0], re.DOTALL),
        text.split("```toml\n")[1],
    )
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package/detect.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    models = load_models(str(write(tmp_path / "own.toml", models_toml, toml.partition("```")[0], ("detector",))))
    (row,) = models.annotator(CustomDetector).make(DECODING, TWO)(Shard(0, tagged(world, 1))).rows
    assert [region.box for region in row.regions] == [(0, 0, 20, 10)] * 2, row.reason


def test_a_worker_with_other_code_refuses(tmp_path: Path) -> None:
    """A node with another version of the package would write other shards into the same run."""
    own = resolve_settings(CustomDetector.model_validate({"class": f"{OWN}:Detector"}), tmp_path, "own.toml")
    with pytest.raises(UserError, match="install the same version on every node"):
        own.model_copy(update={"code": "tests.own_models:Detector@1+0"}).make(DECODING, TWO)
