"""`pad models check --parity` compares with the code of the models' authors, and takes no unknown answer for "equal".

RAM and the official Grounding DINO need packages that don't go with pad's: their tests run where `UPSTREAM_RAM_PYTHON`
and `UPSTREAM_DINO_PYTHON` name a Python that has them.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pad_pipeline.errors import UserError
from pad_pipeline.stages.ram.network import Ram, RamSettings
from pad_pipeline.stages.sam.network import build_sam
from pad_pipeline.workflows.models.parity import check, run, script
from pad_pipeline.workflows.models.parity.base import Measure, NotCompared, Numbers, check_spread, input_levels
from pad_pipeline.workflows.models.parity.given import parse_given
from pad_pipeline.workflows.models.parity.run import run_example
from tests.commands.conftest import Pad
from tests.small_models import SAM_SHAPE
from tests.stages.test_detector_files import drawn_tensor
from tests.stages.test_ram import drawn_parameter

NO_PACKAGES = "#!/bin/sh\nexec " + sys.executable + ' -S "$@"\n'
"""A Python that has no packages at all."""


def write_sam(path: Path, seed: int) -> Path:
    """A small SAM in the official format, with relative positions that matter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sam = build_sam(SAM_SHAPE)
        for name, parameter in sam.named_parameters():
            if "rel_pos" in name or "pos_embed" in name:
                nn.init.normal_(parameter, std=0.5)
    torch.save(sam.state_dict(), path)
    return path


def program(path: Path, text: str) -> Path:
    """A program that stands in for a Python."""
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def official(models_toml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The TOML of the small models, with a SAM in the official format."""
    folder = tmp_path_factory.mktemp("official")
    for name in ("tagger.safetensors", "tags.txt", "detector", "llm"):
        (folder / name).symlink_to(models_toml.parent / name)
    write_sam(folder / "sam.pth", 1)
    path = folder / "models.toml"
    path.write_text(models_toml.read_text().replace("segmenter.safetensors", "sam.pth"))
    return path


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run upstream's examples without a process of their own, which takes seconds to import everything. Examples whose
    names a test adds to the list still get their process."""
    apart: list[str] = []

    def started(words: list[str], **more: Any) -> Any:
        assert words[1] == str(run.SCRIPT)
        if json.loads((Path(words[2]) / "job.json").read_text())["example"] in apart:
            return subprocess.run(words, **more)
        script.main(Path(words[2]))
        return SimpleNamespace(returncode=0, stdout=b"")

    monkeypatch.setattr(run, "subprocess", SimpleNamespace(**vars(subprocess) | {"run": started}))
    return apart


def by_section(done: Any) -> dict[str, Any]:
    """The results of `--json` by section."""
    return {one["section"]: one for one in json.loads(done.out)["parity"]["models"]}


def test_sam_and_a_detector_of_the_hub_equal_upstream(pad: Pad, official: Path, in_this_process: list[str]) -> None:
    """By the real command, SAM in a process of its own. Catches another resize, other prompts for one side than for
    the other, and an exit code of 0 though the tagger, of a size that upstream never had, was not compared."""
    in_this_process.append("segment_anything")
    done = pad("models", "check", official, "--parity", "--json")
    found = by_section(done)
    assert {name: one["answer"] for name, one in found.items()} == {
        "tagger": "not compared", "detector": "equal", "segmenter": "equal",
    }, done.out  # fmt: skip
    assert (found["tagger"]["why"], done.code) == ("upstream has no RAM of this size", 3)
    assert found["segmenter"]["upstream"] == "segment_anything 1.0"
    assert found["detector"]["upstream"].startswith("transformers ")
    differences = {one["what"]: one["difference"] for one in found["detector"]["measures"]}
    assert differences["token logits"] < 1e-4 and differences["token ids"] == 0
    assert found["detector"]["facts"]["numbers"]["caption"].count(".") > 3
    assert len(found["segmenter"]["facts"]["numbers"]["boxes"]) > 3
    assert all(not one["wrong"] for one in json.loads(done.out)["files"])


@pytest.mark.usefixtures("in_this_process")
def test_other_weights_differ(pad: Pad, official: Path, tmp_path: Path) -> None:
    """Weights of another seed on upstream's side: a comparison that could not fail would call them equal, too."""
    write_sam(tmp_path / "other.pth", 2)
    shutil.copytree(official.parent / "detector", tmp_path / "detector")
    model = tmp_path / "detector/model.safetensors"
    tensors = run_seed(model)
    assert tensors
    weights = ["--upstream-weights", f"segmenter={tmp_path / 'other.pth'}"]
    weights += ["--upstream-weights", f"detector={tmp_path / 'detector'}"]
    done = pad("models", "check", official, "--parity", *weights)
    assert done.code == 1 and "differs" in done.out
    report = done.out.partition("For an issue, copy from here:")[2]
    assert "segmenter: differs; " in report and "detector: differs; " in report and "tagger: not compared; " in report
    assert '"segmenter": "' in report and "upstream has no RAM of this size" in report


def run_seed(model: Path) -> int:
    """Replace the weights of the last decoder layer by others; return how many tensors were replaced."""
    from safetensors.torch import load_file, save_file

    state = load_file(model)
    changed = [name for name in state if "decoder.layers.1.fc" in name]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        save_file(state | {name: torch.randn_like(state[name]) for name in changed}, model, {"format": "pt"})
    return len(changed)


def test_a_python_without_the_package_is_named_with_the_command_that_installs_it(
    pad: Pad, official: Path, tmp_path: Path
) -> None:
    """It ended with a traceback of ten lines in another environment; and nothing compared is not "all equal"."""
    python = program(tmp_path / "python", NO_PACKAGES)
    done = pad("models", "check", official, "--parity", "--upstream-python", python)
    assert done.code == 3, done.err
    (line,) = [line for line in done.out.splitlines() if line.startswith("segmenter was not compared")]
    assert "can't import upstream's code (No module named 'numpy')" in line
    assert "pip install segment-anything; then name its Python by --upstream-python" in line


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('echo "loading"; echo "RuntimeError: boom" >&2; exit 7', r"failed with exit code 7 \(RuntimeError: boom\)$"),
        ("echo hello", r"ran, and wrote no numbers \(hello\)$"),
        ("true", r"wrote no numbers \(it said nothing\)$"),
        ('echo garbage > "$2/result.json"', "wrote no numbers"),
        ('echo "[1]" > "$2/result.json"', "wrote no numbers"),
        ('echo "{}" > "$2/result.json"; echo no arrays', r"no numbers that can be read \(no arrays\)$"),
        ('echo "{}" > "$2/result.json"; cp "$PICKLED" "$2/arrays.npz"', "no numbers that can be read"),
        ("kill -9 $$", r"failed with exit code -9 \(it said nothing\)$"),
    ],
)
def test_an_example_that_fails_or_babbles_is_not_compared(
    text: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each gives one line with the last words of the program; and arrays from outside are not unpickled."""
    np.savez(tmp_path / "pickled.npz", logits=np.array([{"a": 1}], object))
    monkeypatch.setenv("PICKLED", str(tmp_path / "pickled.npz"))
    python = program(tmp_path / "python", f"#!/bin/sh\n{text}\n")
    (tmp_path / "work").mkdir()
    with pytest.raises(NotCompared) as caught:
        run_example(str(python), {}, "pip install it", tmp_path / "work").array("logits", 1)
    assert re.search(why, caught.value.why) and "\n" not in caught.value.why


def test_a_python_that_can_not_be_started_is_not_compared(tmp_path: Path) -> None:
    """A text file with the right to run."""
    python = program(tmp_path / "python", "\x7fELF")
    with pytest.raises(NotCompared, match="can't run upstream's example"):
        run_example(str(python), {}, "pip install it", tmp_path)


def test_unknown_is_never_equal() -> None:
    """NaN, nothing compared, numbers that are all alike, images of two sizes, and arrays of another form."""
    assert Measure("logits", 4, 1e-5, 5e-5).equal and not Measure("logits", 4, 1e-4, 5e-5).equal
    assert not Measure("logits", 4, math.nan, 5e-5).equal and not Measure("logits", 0, 0.0, 5e-5).equal
    with pytest.raises(NotCompared, match="the same logit everywhere"):
        check_spread("logit", np.full(9, 0.5))
    images, one = [np.zeros((3, 4, 5)), np.zeros((3, 5, 5))], np.ones(3)
    assert not input_levels(*images, one).equal and input_levels(images[0], images[0], one).equal
    assert not input_levels(images[0], images[0] + 2 / 255, one).equal
    arrays = {"flat": np.zeros(3), "text": np.array([["a"]]), "empty": np.zeros((0, 2))}
    for name in (*arrays, "missing"):
        with pytest.raises(NotCompared, match="no usable numbers"):
            Numbers(arrays, {}).array(name, 2)


def test_mistakes_are_one_line(pad: Pad, official: Path, tmp_path: Path) -> None:
    """Before anything is loaded: an image that is none, a Python or weights that are not there, and options that do
    nothing without --parity."""
    text = tmp_path / "text.png"
    text.write_text("no image")
    for words, said in (
        (["--image", text], "--image = "),
        (["--parity", "--image", text], "this is no readable image"),
        (["--parity", "--upstream-python", tmp_path / "none"], "there is no such program"),
        (["--parity", "--upstream-weights", text], "it has no section; write segmenter=FILE"),
        (["--parity", "--upstream-weights", f"segmenter={tmp_path / 'none'}"], "there is no such file or folder"),
    ):
        done = pad("models", "check", official, *words)
        assert done.code == 2 and said in done.err and "Traceback" not in done.err, done.err
    with pytest.raises(UserError, match="upstream_weights"):
        parse_given([], ["llm=a"])


def test_sections_have_pythons_of_their_own(tmp_path: Path) -> None:
    """A path with an equals sign is a path; what is named for one section is not used for another."""
    odd = program(tmp_path / "a=b", "")
    given = parse_given([str(odd), f"tagger={sys.executable}"], [f"segmenter={odd}"])
    assert (given.python("tagger"), given.python("detector")) == (sys.executable, str(odd))
    assert parse_given([], []).python("tagger") == sys.executable and given.weights == {"segmenter": odd}


def write_bert(folder: Path, words: list[str]) -> Path:
    """A tokenizer of BERT's form with the ids that are built into Grounding DINO."""
    vocabulary = ["[PAD]", *(f"[unused{number}]" for number in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary += [f"[unused{number}]" for number in range(99, 1007)] + [".", *words]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    return folder


RAM_PYTHON, DINO_PYTHON = (os.environ.get(f"UPSTREAM_{name}_PYTHON", "") for name in ("RAM", "DINO"))
WRITE_DINO = """
import sys
import torch
from groundingdino import config
from groundingdino.models import build_model
from groundingdino.util.slconfig import SLConfig
from transformers import BertConfig, BertModel

small = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 256}
BertModel(BertConfig(**small, vocab_size=1200)).save_pretrained(sys.argv[1])
settings = SLConfig.fromfile(next(iter(config.__path__)) + "/GroundingDINO_SwinT_OGC.py")
settings.device, settings.text_encoder_type, settings.num_queries = "cpu", sys.argv[1], 100
settings.enc_layers = settings.dec_layers = 2
state = build_model(settings).state_dict()
torch.save({"model": {"module." + name: tensor for name, tensor in state.items()}}, sys.argv[2])
"""
"""A program that writes a Grounding DINO with two layers, as upstream saves it."""


@pytest.mark.long
@pytest.mark.skipif(not RAM_PYTHON, reason="UPSTREAM_RAM_PYTHON names no Python with recognize-anything")
@pytest.mark.parametrize("family", ["ram", "ram_plus"])
def test_ram_of_full_size_equals_upstream(
    pad: Pad, family: Any, official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn weights in the form of the official file: the logits of all 4585 tags, and the tags that are on."""
    network = Ram(RamSettings(family=family), 4585)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(drawn_parameter(name, tuple(parameter.shape)))
    torch.save({"model": network.state_dict(), "epoch": 1}, tmp_path / "ram.pth")
    (tmp_path / "tags.txt").write_text("\n".join(f"tag {number}" for number in range(4585)))
    tokenizer = write_bert(tmp_path / "bert", ["a"])
    monkeypatch.setattr(check, "cached_path", lambda *_, **__: tokenizer)
    for name in ("detector", "llm", "sam.pth"):
        (tmp_path / name).symlink_to(official.parent / name)
    tagger = f'[tagger]\nfamily = "{family}"\nweights = "ram.pth"\ntag_list = "tags.txt"\nthreshold = 0.5\n'
    rest = official.read_text().partition("[detector]")[2]
    (tmp_path / "models.toml").write_text(f"{tagger}[detector]{rest}")
    stub = program(tmp_path / "python", NO_PACKAGES)
    pythons = ["--upstream-python", stub, "--upstream-python", f"tagger={RAM_PYTHON}"]
    found = by_section(pad("models", "check", tmp_path / "models.toml", "--parity", "--json", *pythons))["tagger"]
    assert found["answer"] == "equal", found
    assert {one["what"] for one in found["measures"]} >= {"resized, gray levels", "logits"}


@pytest.mark.long
@pytest.mark.skipif(not DINO_PYTHON, reason="UPSTREAM_DINO_PYTHON names no Python with groundingdino")
def test_an_official_grounding_dino_equals_upstream(pad: Pad, official: Path, tmp_path: Path) -> None:
    """Its own resize, tokenizer and custom sampling, for all queries of two layers with drawn weights."""
    shutil.copytree(write_bert(tmp_path / "bert", [*check.LABELS, "house", "tree"]), tmp_path / "shape")
    command = [DINO_PYTHON, "-c", WRITE_DINO, str(tmp_path / "shape"), str(tmp_path / "dino.pth")]
    subprocess.run(command, check=True, capture_output=True)
    state = torch.load(tmp_path / "dino.pth", weights_only=True)["model"]
    drawn = {
        name: drawn_tensor(name.removeprefix("module."), tuple(tensor.shape)) if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }
    for name in drawn:
        if "bbox_embed" in name:  # else boxes reach the image's edge, where transformers' logit is another (1e-5, 1e-3)
            drawn[name] = drawn[name] / 10
    torch.save({"model": drawn}, tmp_path / "dino.pth")
    Image.new("RGB", (320, 240), "red").save(tmp_path / "red.png")
    detector = f'[detector]\nmodel = "{tmp_path / "dino.pth"}"\ntokenizer = "{tmp_path / "bert"}"\n'
    text = official.read_text()
    start, end = text.index("[detector]"), text.index("[segmenter]")
    path = official.parent / "dino.toml"
    path.write_text(text[:start] + detector + text[end:])
    stub = program(tmp_path / "python", NO_PACKAGES)
    pythons = ["--upstream-python", stub, "--upstream-python", f"detector={DINO_PYTHON}"]
    done = pad("models", "check", path, "--parity", "--json", "--image", tmp_path / "red.png", *pythons)
    found = by_section(done)["detector"]
    assert found["answer"] == "equal", found
    assert found["upstream"].startswith("groundingdino ")
