"""Trainings that are killed, resumed, spread over processes: the same losses as an unbroken one in a single process."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from pad_pipeline.miniature.files import World
from pad_pipeline.shards.lock import locked
from pad_pipeline.storage import Folder
from pad_pipeline.training.checkpoint import Checkpoints
from tests.cluster import nodes
from tests.conftest import wait_for
from tests.runs.processes import LOOPBACK, descendants, listening

Pad = Callable[..., Any]
BIN = Path(sys.executable).parent
LOSSES = ("caption_loss", "patch_loss", "grad_norm", "patch_cosine", "patch_gradient_share")


@pytest.fixture
def command(world: World, models_toml: Path, shards: Path) -> Callable[..., list[str]]:
    """Return the command of a training stage, without its --out."""
    clip, llm = models_toml.parent / "clip", models_toml.parent / "llm"
    chat = world.llava.with_name("llava_chat.json")

    def made(stage: int, *more: object) -> list[str]:
        data = ["--shards", shards] if stage == 1 else ["--data", chat, "--image-root", world.images]
        parts = ["train", "--stage", stage, *data, "--vision", clip, "--llm", llm, "--batch-size", 5,
                 "--micro-batch", 2, *more]  # fmt: skip
        return list(map(str, parts))

    return made


def log_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def losses(out: Path) -> np.ndarray:
    """Return `[steps, len(LOSSES)]` losses of a log, NaN where there is none."""
    return np.array([[np.nan if e[name] is None else e[name] for name in LOSSES] for e in log_of(out)], float)


def settings_file(path: Path, **settings: object) -> list[object]:
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items()))
    return ["--settings", path]


@pytest.mark.parametrize(
    ("stage", "llm"),
    [(1, "frozen"), pytest.param(2, "full", marks=pytest.mark.slow), pytest.param(2, "lora", marks=pytest.mark.long)],
)
def test_a_killed_training_goes_on_as_if_it_had_not_been(
    pad: Pad, stage: int, llm: str, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """kill -9 between checkpoints. Bitwise: order, rates, beta, optimizer and dropout must all come back. Catches a
    resume that repeats or skips a batch, forgets Adam's moments, or draws other dropout."""
    file = settings_file(tmp_path / "s.toml", llm=llm, checkpoint_every=3, held_out=2)
    arguments = command(stage, "--steps", 30, *file)
    assert pad(*arguments, "--out", tmp_path / "whole").code == 0
    started = [str(BIN / "pad"), *arguments]
    broken = tmp_path / "broken"
    with subprocess.Popen([*started, "--out", str(broken)], stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: (broken / "checkpoints/step-00000006/facts.json").exists(), process)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (broken / "mm_projector.bin").exists()
    again = pad(*arguments, "--out", broken)
    assert again.code == 0, again.err
    assert "Going on from step" in again.err
    assert np.array_equal(losses(broken), losses(tmp_path / "whole"), equal_nan=True)
    assert [entry["step"] for entry in log_of(broken)] == list(range(30))
    same = [(folder / "mm_projector.bin").read_bytes() for folder in (broken, tmp_path / "whole")]
    assert same[0] == same[1]
    names = sorted(path.name for path in (broken / "checkpoints").iterdir())
    assert "step-00000030" in names
    assert len(names) <= 3, "the latest two and the best are kept"


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_two_processes_give_the_losses_of_one(
    pad: Pad, stage: int, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """torchrun with gloo: replicas in stage 1, FSDP2 in stage 2; a batch of 5 that two ranks can't share evenly. To
    1e-5, gradients included. Catches losses that are means of means, labels that one rank alone knows, and gradients
    that are summed or averaged twice. Then one process goes on where two were stopped."""
    file = settings_file(tmp_path / "s.toml", checkpoint_every=4, held_out=3)
    with (tmp_path / "s.toml").open("a") as stream:
        stream.write('[patch_loss]\nkind = "contrastive"\naverage = "label"\n')
    arguments = command(stage, "--steps", 8, *file)
    assert pad(*arguments, "--out", tmp_path / "one").code == 0
    torchrun = [BIN / "torchrun", "--nproc-per-node", "2", "--master-port", "0", "--rdzv-backend", "c10d",
                "--rdzv-endpoint", "localhost:0"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    both = subprocess.run(
        [*torchrun, BIN / "pad", *arguments, "--out", tmp_path / "two"], capture_output=True, text=True, env=environment
    )
    assert both.returncode == 0, both.stderr
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert np.allclose(one, two, rtol=1e-5, atol=1e-6, equal_nan=True), np.nanmax(np.abs(one - two))
    held = [[e["held_out_loss"] for e in log_of(tmp_path / name) if "held_out_loss" in e] for name in ("one", "two")]
    assert len(held[0]) == 2
    assert np.allclose(*held, atol=1e-5)

    shutil.rmtree(tmp_path / "two/checkpoints/step-00000008")
    on = pad(*arguments, "--out", tmp_path / "two")
    assert on.code == 0, on.err
    assert "Going on from step 4 of 8" in on.err
    assert np.allclose(one, losses(tmp_path / "two"), rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.long
def test_a_training_on_ray_listens_on_loopback_alone(command: Callable[..., list[str]], tmp_path: Path) -> None:
    """Two workers, whose ranks take pickled objects from each other. Catches torch's store, which by itself listens on
    every address, and gloo, which listens on the address of the machine's name."""
    out = tmp_path / "run"
    with subprocess.Popen(
        [str(BIN / "pad"), *command(1, "--steps", 2000), "--workers", "2", "--out", str(out)]
    ) as driver:
        wait_for((out / "log.jsonl").exists, driver)
        assert json.loads((out / "training.json").read_text())["ranks"] == 2
        addresses = listening(descendants(driver.pid))
        driver.send_signal(signal.SIGTERM)
    assert addresses and set(addresses) <= LOOPBACK


@pytest.mark.long
def test_a_worker_of_ray_train_that_is_killed_costs_nothing(
    pad: Pad, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """kill -9 of one of two workers. Both are started anew, from the last checkpoint; the losses are those of a single
    unbroken process, to 1e-5. Catches a worker that waits for a dead one for ever."""
    file = settings_file(tmp_path / "s.toml", checkpoint_every=3)
    arguments = command(1, "--steps", 40, *file)
    assert pad(*arguments, "--out", tmp_path / "one").code == 0
    started = [str(BIN / "pad"), *arguments]
    out = tmp_path / "ray"
    with subprocess.Popen(
        [*started, "--workers", "2", "--out", str(out)], stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for(lambda: (out / "checkpoints/step-00000006/facts.json").exists(), process)
        below = psutil.Process(process.pid).children(recursive=True)
        next(child for child in below if "RayTrainWorker" in child.name() + " ".join(child.cmdline())).kill()
        assert process.stderr
        said = process.stderr.read()
    assert process.returncode == 0, said
    assert "Going on from step" in said
    assert np.allclose(losses(tmp_path / "one"), losses(out), rtol=1e-5, atol=1e-6, equal_nan=True)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.long
def test_a_training_goes_on_with_fewer_workers_when_a_node_is_lost(
    pad: Pad, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """`--workers 1-2` on two nodes, one of which goes: the other finishes alone, and the losses stay those of a single
    unbroken process, to 1e-5. Catches a trainer that waits for the node's return."""
    file = settings_file(tmp_path / "s.toml", checkpoint_every=3)
    arguments = command(1, "--steps", 40, *file)
    assert pad(*arguments, "--out", tmp_path / "one").code == 0
    out = tmp_path / "ray"
    with nodes(2) as (made, workers):
        started = [str(BIN / "pad"), *arguments, "--workers", "1-2", "--gpus", "0", "--address", made.address]
        with subprocess.Popen([*started, "--out", str(out)], stderr=subprocess.PIPE, text=True) as process:
            wait_for(lambda: (out / "checkpoints/step-00000006/facts.json").exists(), process)
            assert json.loads((out / "training.json").read_text())["ranks"] == 2
            made.remove_node(workers[0], allow_graceful=False)
            assert process.stderr
            said = process.stderr.read()
    assert process.returncode == 0, said
    assert "Going on from step" in said
    assert json.loads((out / "training.json").read_text())["ranks"] == 1
    assert np.allclose(losses(tmp_path / "one"), losses(out), rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.long
def test_a_users_mistake_is_one_line_on_ray_train_too(
    pad: Pad, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """The learning rate makes the loss infinite. Catches a training that is tried again, and pages of Ray's output."""
    refused = pad(*command(1, "--steps", 5, "--learning-rate", 1e30), "--workers", 1, "--out", tmp_path / "run")
    assert refused.code == 2
    assert "is not finite" in refused.err
    assert "Traceback" not in refused.err


def test_a_training_is_continued_as_it_was_begun(pad: Pad, command: Callable[..., list[str]], tmp_path: Path) -> None:
    """Catches the same command with another rate, which would be half a training of each. Settings that change no
    result may differ, and those that are newer than the training have their defaults."""
    out = ["--out", tmp_path / "run"]
    assert pad(*command(1, "--steps", 2), *out).code == 0
    before = (tmp_path / "run/log.jsonl").read_text()
    other = pad(*command(1, "--steps", 2, "--learning-rate", 0.5), *out)
    assert other.code == 2
    assert "settings.learning_rate: 0.001 -> 0.5" in other.err
    assert (tmp_path / "run/log.jsonl").read_text() == before
    facts = json.loads((tmp_path / "run/training.json").read_text())
    for new in ("true_labels", "label_tokens", "largest", "without"):  # the version that began it did not have these
        del facts["job"]["settings"]["patch_loss"][new]
    (tmp_path / "run/training.json").write_text(json.dumps(facts))
    again = pad(*command(1, "--steps", 2, "--micro-batch", 1), *out)
    assert again.code == 0, again.err
    assert len(log_of(tmp_path / "run")) == 2
    facts = json.loads((tmp_path / "run/training.json").read_text())
    (tmp_path / "run/training.json").write_text(json.dumps(facts | {"samples": {"count": 9}}))
    fewer = pad(*command(1, "--steps", 2), *out)
    assert fewer.code == 2
    assert "have changed since the training began" in fewer.err
    (tmp_path / "run/training.json").write_text(json.dumps(facts))
    damaged = next((tmp_path / "run/checkpoints").glob("step-*")) / "state.pt"
    damaged.write_bytes(damaged.read_bytes()[:100])
    refused = pad(*command(1, "--steps", 2), *out)
    assert refused.code == 2
    assert "all of its checkpoints are damaged" in refused.err


def test_samples_that_teach_nothing_are_named_and_too_many_are_an_error(
    pad: Pad, world: World, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Several images, a missing file, an empty answer. LLaVA prints a line about such a sample and goes on with a loss
    of 0."""
    records = json.loads(world.llava.with_name("llava_chat.json").read_text())
    records[0]["conversations"][1]["value"] = " "
    records[1]["image"] = [records[1]["image"]] * 2
    records[2]["image"] = "missing.png"
    records[3].pop("image")
    records[3]["conversations"] = [{"from": "human", "value": "Say a word."}, {"from": "gpt", "value": "tree"}]
    (tmp_path / "mixed.json").write_text(json.dumps(records))
    arguments = command(2, "--epochs", 1)
    arguments[arguments.index("--data") + 1] = str(tmp_path / "mixed.json")
    refused = pad(*arguments, "--out", tmp_path / "strict")
    assert refused.code == 2
    assert "max_dropped" in refused.err
    allowed = settings_file(tmp_path / "s.toml", max_dropped=0.5)
    done = pad(*arguments, *allowed, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    named = {e["key"]: e["reason"] for e in map(json.loads, (tmp_path / "run/dropped.jsonl").read_text().splitlines())}
    assert set(named) == {records[n]["id"] for n in (0, 1, 2)}
    assert "is empty" in named[records[0]["id"]]
    assert "2 images" in named[records[1]["id"]]
    assert "there is no such file" in named[records[2]["id"]]
    assert "Nothing could be learned from 3 samples" in done.out
    before = (tmp_path / "run/dropped.jsonl").read_text()
    assert pad(*arguments, *allowed, "--out", tmp_path / "run").code == 0
    assert (tmp_path / "run/dropped.jsonl").read_text() == before, "a training that goes on names them once"


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    pad: Pad, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """One byte of any file, a file that is cut, a file that is gone. Catches a training that goes on from weights with
    a flipped bit, and one that ends although an older checkpoint is whole."""
    out = tmp_path / "run"
    file = settings_file(tmp_path / "s.toml", checkpoint_every=2)
    made = command(1, "--steps", 4, *file)
    assert pad(*made, "--out", out).code == 0
    before, checkpoints = losses(out), Checkpoints(out / "checkpoints", 2)
    older, newer = checkpoints.saved()
    draw, seen = random.Random(0), []
    for name in ("state.pt", "facts.json"):
        path = newer.path / name
        whole = path.read_bytes()
        for number in range(100):
            content = bytearray(whole)
            content[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            path.write_bytes(content if number else whole[: len(whole) // 2])
            said: list[str] = []
            assert checkpoints.latest(said.append) == older and len(said) == 1
            seen += said
        path.write_bytes(whole)
    assert len(seen) == 200 and checkpoints.latest(seen.append) == newer
    (newer.path / "state.pt").unlink()
    done = pad(*made, "--out", out)
    assert done.code == 0, done.err
    assert "step-00000004 is left out: its state.pt can't be read" in done.err.replace("\n", " ")
    assert "Going on from step 2 of 4" in done.err and np.array_equal(losses(out), before)


def test_two_trainings_do_not_write_into_one_folder(
    pad: Pad, command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Catches checkpoints and logs of two processes that overwrite each other."""
    out = tmp_path / "run"
    assert pad(*command(1, "--steps", 1), "--out", out).code == 0
    assert sorted(path.name for path in out.iterdir() if path.name.startswith(".")) == []
    with locked(Folder(out)):
        refused = pad(*command(1, "--steps", 1), "--out", out)
    assert refused.code == 2 and "another run is writing into it" in refused.err
