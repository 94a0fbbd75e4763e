"""The command line: help that teaches, mistakes answered in one line, README commands that run."""

from __future__ import annotations

import ast
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from pad_pipeline.errors import UserError
from pad_pipeline.miniature.files import World
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.workflows.cli import app
from pad_pipeline.workflows.engine.chain import Link
from pad_pipeline.workflows.engine.placement import Placement, deal_out, parse_pools
from pad_pipeline.workflows.learning.launch import train_settings
from pad_pipeline.workflows.models.settings import PRESETS, load_models
from tests.conftest import wait_for

Pad = Callable[..., Any]
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def common(models_toml: Path) -> list[object]:
    return ["--models", models_toml, "--view-size", 112, "--engine", "local"]


def every_command(command: Any = None, name: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The names of all commands, and of the groups they are in."""
    command = command or typer.main.get_command(app)
    found = [name]
    for child in getattr(command, "commands", {}).values():
        found += every_command(child, (*name, child.name))
    return found


@pytest.mark.parametrize("command", every_command(), ids=" ".join)
def test_help_has_an_example_for_each_command(command: tuple[str, ...]) -> None:
    """Whoever asks for help gets a line to start from."""
    result = CliRunner().invoke(app, [*command, "--help"], prog_name="pad")
    assert result.exit_code == 0
    assert " ".join(("pad", *command)) in result.output
    if "COMMAND" not in result.output:
        assert "Example" in result.output


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
    variants = {
        "typo.toml": good.replace("threshold = 0.5", "treshold = 0.5"),
        "range.toml": good.replace("threshold = 0.5", "threshold = 1.5"),
        "swapped.toml": good.replace('"tagger.safetensors"', '"segmenter.safetensors"'),
        "cut.toml": good.replace('"tagger.safetensors"', '"cut.safetensors"'),
        "plus.toml": good.replace('family = "ram"', 'family = "ram_plus"'),
        "clip.toml": good.replace('model = "detector"', 'model = "clip"'),
        "nollm.toml": good.replace('llm = "llm"', 'llm = "clip"'),
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
        "wrong root": (["--images", world.llava, "--image-root", tmp / "texts", *out], "none of the 10 images"),
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
            "neither a preset (paper, plus, miniature) nor a file",
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
        "other hash": (models("hash.toml"), "its sha256 is"),
        "view and patch": ([*images, *out, "--view-size", 100], "must be a multiple of --patch"),
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
        assert done.err.startswith("error: "), (name, done.err)
        assert done.err.count("\n") == 1, (name, done.err)
        assert "; " in done.err, name  # the remedy
        assert not list((tmp_path / "out").glob("pad-*")), name
    assert (tmp_path / "used" / "thesis.doc").read_text() == "mine"


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


def test_presets_are_the_papers_models() -> None:
    paper, plus = load_models("paper"), load_models("plus")
    assert (paper.tagger.family, plus.tagger.family) == ("ram", "ram_plus")
    assert paper.tagger.model_dump(exclude={"family", "weights", "sha256"}) == plus.tagger.model_dump(
        exclude={"family", "weights", "sha256"}
    )
    for models in (paper, plus):
        assert (models.tagger.embed_dim, models.tagger.depths) == (192, [2, 2, 18, 2])
        assert models.detector.model == "IDEA-Research/grounding-dino-base"
        assert models.segmenter.weights.endswith("/sam_vit_h_4b8939.pth")
        assert models.llm.llm == "lmsys/vicuna-7b-v1.5"
        assert all(len(value) == 64 for value in (models.segmenter.sha256, models.tagger.tag_list_sha256))


def test_a_preset_can_be_changed_in_a_file(tmp_path: Path) -> None:
    """The documentation's example: sections change what they name and keep the rest of the preset."""
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/howto/models.md").read_text(), re.DOTALL)
    (tmp_path / "mine.toml").write_text(blocks[0])
    models = load_models(str(tmp_path / "mine.toml"))
    assert models.tagger == load_models("plus").tagger
    assert models.segmenter.weights.endswith("/sam_vit_b_01ec64.pth") and models.segmenter.sha256.startswith("ec2df627")
    assert (models.detector.box_threshold, models.compute.precision) == (0.3, "auto")


def test_a_pinned_hash_goes_with_its_file(tmp_path: Path) -> None:
    """A preset's hash was checked against the user's own file, which could then never be right."""
    (tmp_path / "mine.toml").write_text(
        'preset = "plus"\n[tagger]\nweights = "other.pth"\n[segmenter]\nweights = "facebook/sam2.1-hiera-large"\n'
        '[detector]\nmodel = "groundingdino_swint_ogc"\n'
    )
    models = load_models(str(tmp_path / "mine.toml"))
    assert (models.tagger.sha256, models.segmenter.sha256) == ("", "")
    assert models.detector.model.startswith("hf://ShilongLiu/GroundingDINO@")
    assert len(models.detector.sha256) == 64


def test_models_are_listed_checked_and_fetched(pad: Pad, models_toml: Path, tmp_path: Path) -> None:
    """What is right, what is missing and what is wrong, one line each; a script can tell by the exit code."""
    shown = pad("models", "list")
    assert shown.code == 0 and "sam_vit_l" in shown.out
    assert "ram_plus_swin_large_14m.pth" in shown.out and "sha256 497c178836ba" in shown.out
    missing = pad("models", "check", "plus")
    assert missing.code == 1
    assert "segmenter.weights = https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth" in missing.out
    assert "it is not on this machine; run pad models fetch" in missing.out
    unreachable = pad("models", "fetch", "plus")
    assert unreachable.code == 2 and "could not be fetched" in unreachable.err
    for command in ("check", "fetch"):
        right = pad("models", command, models_toml)
        assert right.code == 0, right.out
        assert right.out.count("right:") == 5 and "wrong:" not in right.out
    shutil.copytree(models_toml.parent, tmp_path / "mine")
    (tmp_path / "mine/segmenter.safetensors").write_bytes((models_toml.parent / "tagger.safetensors").read_bytes())
    (tmp_path / "mine/tags.txt").write_text("one\ntwo\n")
    wrong = pad("models", "check", tmp_path / "mine/models.toml")
    assert wrong.code == 1
    assert "its tensors look like RAM, and should be a SAM's" in wrong.out
    assert "labels, and the tag list has 2 lines" in wrong.out
    assert wrong.out.count("right:") == 3


def test_own_tag_list_and_thresholds(
    pad: Pad, common: list[object], world: World, models_toml: Path, tmp_path: Path
) -> None:
    """Another language, say: the list's words become tags and labels; thresholds of 0 and 1 turn each on or off."""
    tags = (models_toml.parent / "tags.txt").read_text().splitlines()
    (tmp_path / "tags.txt").write_text("".join(f"{tag}2\n" for tag in tags))
    (tmp_path / "thresholds.txt").write_text("0\n" + "1\n" * (len(tags) - 1))
    build = ["build", "--images", world.images, *common]
    own = ["--tag-list", tmp_path / "tags.txt", "--tag-thresholds", tmp_path / "thresholds.txt"]
    done = pad(*build, *own, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    shards = open_shards(tmp_path / "out")
    found = {tag["label"] for name, row in shards.rows() for tag in shards.sample(name, row).meta["tags"]}
    assert found == {f"{tags[0]}2"}
    (tmp_path / "short.txt").write_text("one\n")
    refused = pad(*build, "--tag-list", tmp_path / "short.txt", "--out", tmp_path / "out2")
    assert refused.code == 2 and "the tag list has 1 lines" in refused.err
    refused = pad(*build, "--tag-list", tmp_path / "none.txt", "--out", tmp_path / "out2")
    assert refused.code == 2 and "none.txt: there is no such file" in refused.err


def test_all_images_failing_is_a_failure(pad: Pad, common: list[object], tmp_path: Path) -> None:
    """Exit code 0 would let a script go on with an empty dataset; the rows still say why."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"no image")
    done = pad("build", "--images", tmp_path / "images", *common, "--out", tmp_path / "out")
    assert done.code == 2
    assert "every one of them failed" in done.err
    assert "no readable image" in pad("stats", tmp_path / "out").out


def test_odd_text_is_shown_as_it_is(pad: Pad, common: list[object], tmp_path: Path) -> None:
    """Labels and reasons come from outside: no markup, no escape sequences on the user's terminal."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    coco = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "\x1b[31m[bold]/../x.png"}],
        "categories": [{"id": 1, "name": "[red]\x1b[2Jlabel[/red]"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4]}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    command = ["import", "coco", "--annotations", tmp_path / "coco.json", "--images", tmp_path, *common]
    assert pad(*command, "--out", tmp_path / "out").code == 0
    shown = pad("stats", tmp_path / "out").out
    assert "[red]" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow)]
)
def test_a_signal_stops_in_good_order_and_the_rest_comes_later(
    number: signal.Signals, code: int, world: World, common: list[object], tmp_path: Path
) -> None:
    """Ctrl-C, and what a cluster sends before it takes a machine away: one line, the usual exit code, nothing half
    done; the same command finishes the run."""
    out = tmp_path / "out"
    command = [Path(sys.executable).parent / "pad", "build", "--images", world.images, *common, "--shard-size", 1,
               "--out", out]  # fmt: skip
    # A shell that runs the tests in the background makes its children deaf to SIGINT, and nohup to SIGHUP.
    hear = partial(signal.signal, number, signal.SIG_DFL)
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True, preexec_fn=hear) as process:
        wait_for(lambda: list(out.glob("*.parquet")) and (out / "pad-000000.parquet").exists(), process)
        process.send_signal(number)
        assert process.stderr
        rest = process.stderr.read()
    assert process.returncode == code, rest
    assert "Traceback" not in rest
    assert "continue" in rest
    assert not list(out.glob(".*"))
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"left as they are: [1-9] of 10 shards", done.stderr)
    assert "10 images" in done.stdout


def test_arrows_point_downwards_only() -> None:
    """workflows -> stages -> pad_pipeline; and neither of the lower two knows of Ray."""
    allowed = {"pad_pipeline": {"pad_pipeline"}, "stages": {"stages", "pad_pipeline"}}
    for package, reachable in allowed.items():
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                for name in names:
                    top = name.partition(".")[0]
                    assert top != "ray", path
                    assert top not in {"pad_pipeline", "stages", "workflows"} - reachable, path


CHAIN = [
    Link("decode", []),
    *(Link(name, [], on_gpu=True) for name in ("tag", "ground", "segment")),
    Link("patchify", []),
]


@pytest.mark.parametrize("how", ["fused", "pools", "auto"])
def test_placement_fits_every_cluster(how: Placement) -> None:
    """Pools that did not all fit waited for ever, and GPU shares above 1 were refused (2 GPUs, 8 GPUs and 1 worker)."""
    for cpus, gpus, workers in (
        (1, 0, 0),
        (2, 0, 3),
        (0.5, 0, 1),
        (8, 1, 0),
        (16, 2, 1),
        (16, 4, 2),
        (100, 8, 1),
        (4, 2, 9),
    ):
        pools = deal_out(CHAIN, cpus, gpus, how=how, workers=workers)
        assert sum(pool.workers * pool.gpus for pool in pools) <= gpus
        assert sum(pool.workers * pool.cpus for pool in pools) <= max(cpus, 0.1)
        assert all(pool.workers >= 1 and pool.cpus > 0 for pool in pools)
        assert all((pool.gpus > 0) == (pool.link.on_gpu and gpus > 0) for pool in pools)


def test_placement_puts_models_together_or_apart() -> None:
    """Fused: one worker a GPU holds all models. Apart: whole GPUs by cost where there are enough, else parts of one;
    and what the user asks for goes before either, unless the cluster can't give it."""

    def dealt(gpus: int, **how: object) -> dict[str, tuple[int, float]]:
        return {pool.link.name: (pool.workers, pool.gpus) for pool in deal_out(CHAIN, 64, gpus, **how)}  # type: ignore[arg-type]

    assert dealt(8) == {"decode": (8, 0), "tag+ground+segment": (8, 1), "patchify": (8, 0)}
    assert list(dealt(0, workers=2)) == ["decode+tag+ground+segment+patchify"]
    assert dealt(8, gpu_bytes=8 << 30) == dealt(8, how="pools")
    assert dealt(8, gpu_bytes=80 << 30) == dealt(8, how="fused")
    pools = dealt(9, how="pools")
    assert [pools[name] for name in ("tag", "ground", "segment")] == [(1, 1), (2, 1), (6, 1)]
    assert dealt(1, how="pools")["ground"] == (1, 0.333)
    asked = dealt(1, sizes=parse_pools(["tag=2x0.1", "segment=1x0.5", "decode=5", "ground=1x0.3"]))
    assert asked == {"decode": (5, 0), "tag": (2, 0.1), "ground": (1, 0.3), "segment": (1, 0.5), "patchify": (1, 0)}
    for sizes, gpus in ((["tag=3x0.5"], 1), (["nothing=1"], 1)):
        with pytest.raises(UserError, match="--pool"):
            dealt(gpus, sizes=parse_pools(sizes))
    for wrong in ("tag", "tag=0", "tag=-1", "tag=1x0", "tag=1x", "tag=two"):
        with pytest.raises(UserError, match=r"STAGE=WORKERS"):
            parse_pools([wrong])


def test_a_full_disk_stops_the_build_and_the_rest_comes_later(
    world: World, common: list[object], tmp_path: Path
) -> None:
    """A limit on file sizes fails writes as a full disk does: one line, no half shard under a final name, and the same
    command goes on when there is room."""
    out = tmp_path / "out"
    command = [Path(sys.executable).parent / "pad", "build", "--images", world.images, *common, "--shard-size", 5]
    line = " ".join(map(str, [*command, "--out", out]))
    full = subprocess.run(["bash", "-c", f"ulimit -f 100; {line}"], capture_output=True, text=True)
    assert full.returncode == 2, full.stderr
    assert "Traceback" not in full.stderr
    assert "can't be written (File too large)" in full.stderr
    assert sorted(path.name for path in out.iterdir()) == ["metrics.jsonl", "plan.parquet", "run.json"]
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "10 images" in done.stdout


def test_training_settings_come_from_a_file_and_options_win(tmp_path: Path) -> None:
    (tmp_path / "train.toml").write_text('steps = 7\nbatch_size = 3\n[patch_loss]\naverage = "region"\n')
    settings = train_settings(tmp_path / "train.toml", {"batch_size": 5})
    assert (settings.steps, settings.batch_size, settings.patch_loss.average) == (7, 5, "region")
    assert (settings.learning_rate, settings.warmup, settings.beta_end) == (1e-3, 0.03, 5.0)
    (tmp_path / "train.toml").write_text("stepps = 7")
    with pytest.raises(UserError, match="stepps = 7: there is no such setting"):
        train_settings(tmp_path / "train.toml", {})


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


def test_tables_come_as_json_too(pad: Pad, shards: Path, tmp_path: Path) -> None:
    """For scripts: what is printed with --json is JSON and nothing else, whatever is said besides."""
    for words in (
        ["verify", shards, "--json"],
        ["stats", shards, "--json"],
        ["models", "list", "miniature", "--json"],
        ["models", "check", "miniature", "--json"],
        ["models", "fetch", "miniature", "--json"],
        ["doctor", "--models", "miniature", "--out", tmp_path, "--json"],
        ["filter", shards, "--min-regions", 1, "--out", tmp_path / "filtered", "--json"],
        ["miniature", "evaluate", "--scenes", 2, "--seeds", 1, "--steps", 1, "--out", tmp_path / "eval", "--json"],
    ):
        done = pad(*words)
        assert done.code in (0, 1 if words[0] == "doctor" else 0), done.err
        assert json.loads(done.out), words
    listed = json.loads(pad("models", "list", "--json").out)
    assert {"megabytes", "path", "sha256"} <= set(listed["models"]["paper"][0]) and listed["official"]


def test_quiet_and_verbose(pad: Pad, shards: Path, tmp_path: Path) -> None:
    """--quiet keeps the error that ends a command, and no more; --verbose adds where it comes from; neither stays for
    the next command of the process."""
    quiet = pad("--quiet", "filter", shards, "--min-regions", 1, "--out", tmp_path / "out")
    assert quiet.code == 0 and quiet.err == ""
    refused = pad("--quiet", "verify", tmp_path / "nothing")
    assert refused.code == 2 and refused.err.startswith("error: ")
    refused = pad("--verbose", "verify", tmp_path / "nothing")
    assert "Traceback" in refused.err and "run.json" in refused.err
    assert "Traceback" not in pad("verify", tmp_path / "nothing").err
