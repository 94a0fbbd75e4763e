"""The example, from its ONNX file to shards: through pad's command line, against the truth of drawn scenes."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pad_pipeline.miniature.files import write_world
from pad_pipeline.miniature.shipped import checked_folder
from pad_pipeline.miniature.world import draw_scene
from pad_pipeline.workflows import cli

HERE = Path(__file__).parents[1]
SIZE = 112
COLOURS = {"sky": (153, 199, 241), "night": (22, 25, 54), "grass": (90, 159, 73), "sea": (37, 92, 146)}
"""What the drawn world's grounds look like, on average."""
NEAR = 34 / 255
"""By how much a channel may differ."""


def write_model(path: Path) -> None:
    """A detector without weights: for each color the box around all patches that have it, and how full the box is."""
    graph: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def fixed(name: str, value: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(value, name))
        return name

    def node(kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        graph.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    colors = np.array(list(COLOURS.values()), np.float32)[None, :, :, None, None] / 255
    axis = {number: fixed(f"axis{number}", np.array([number], np.int64)) for number in (1, 2, 3)}
    one, edge = fixed("one", np.float32([1])), fixed("edge", np.float32([SIZE]))
    away = node(
        "Abs", [node("Sub", [node("Unsqueeze", ["pixels", axis[1]], "apart"), fixed("c", colors)], "d")], "away"
    )
    worst = node("ReduceMax", [away, axis[2]], "worst", keepdims=0)
    near = node("Cast", [node("Less", [worst, fixed("near", np.float32([NEAR]))], "is")], "is_f", to=TensorProto.FLOAT)
    mean = node("AveragePool", [near], "mean", kernel_shape=[5, 5], pads=[2, 2, 2, 2], count_include_pad=1)
    mask = node("Cast", [node("Greater", [mean, fixed("most", np.float32([0.7]))], "m")], "mask", to=TensorProto.FLOAT)
    edges = {}
    for name, gone, ends in (("x", 2, ("x0", "x1")), ("y", 3, ("y0", "y1"))):
        line = node("ReduceMax", [mask, axis[gone]], f"line_{name}", keepdims=0)
        for last, end in enumerate(ends):
            found = node("ArgMax", [line], f"at_{end}", axis=2, keepdims=0, select_last_index=last)
            edges[end] = node("Cast", [found], f"f_{end}", to=TensorProto.FLOAT)
        edges[ends[1]] = node("Add", [edges[ends[1]], one], f"past_{ends[1]}")
    parts = []
    for name in ("x", "y"):
        both = node("Add", [edges[f"{name}0"], edges[f"{name}1"]], f"both_{name}")
        parts.append(node("Div", [both, fixed(f"twice_{name}", np.float32([2 * SIZE]))], f"c_{name}"))
    for name in ("x", "y"):
        long = node("Sub", [edges[f"{name}1"], edges[f"{name}0"]], f"long_{name}")
        parts.append(node("Div", [long, edge], f"s_{name}"))
    node("Concat", [node("Unsqueeze", [part, axis[2]], f"u_{part}") for part in parts], "boxes", axis=2)
    covered = node("ReduceSum", [mask, fixed("both", np.array([2, 3], np.int64))], "covered", keepdims=0)
    room = node("Mul", ["long_x", "long_y"], "room")
    full = node("Unsqueeze", [node("Div", [covered, room], "full"), axis[2]], "column")
    node("Mul", [full, fixed("own", np.eye(len(COLOURS), dtype=np.float32)[None])], "scores")

    made = helper.make_graph(
        graph,
        "colors",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["n", len(COLOURS), 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", len(COLOURS), len(COLOURS)]),
        ],
        constants,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)


@pytest.fixture
def pad(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run `pad` with arguments: its exit code, and what it said."""
    monkeypatch.syspath_prepend(str(HERE))

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["pad", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        capfd.readouterr()
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0), "".join(capfd.readouterr())
        return 0, "".join(capfd.readouterr())

    return run


def overlap(one: list[float], other: list[float]) -> float:
    """Intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    both = max(width, 0) * max(height, 0)
    return both / (sum((b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)) - both)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature, with this detector for its own; by its entry point where the package is installed."""
    folder = tmp_path_factory.mktemp("models")
    write_model(folder / "colors.onnx")
    (folder / "labels.txt").write_text("\n".join(COLOURS) + "\n")
    installed = any(point.name == "onnx" for point in entry_points(group="pad.detectors"))
    name = 'entry_point = "onnx"' if installed else 'class = "pad_onnx_detector:OnnxDetector"'
    kept, skip = [], False
    for line in (checked_folder() / "models.toml").read_text().splitlines():
        skip = line == "[detector]" if line.startswith("[") else skip
        for file in ("tagger.safetensors", "tags.txt", "thresholds.txt", "segmenter.safetensors", "llm"):
            line = line.replace(f'"{file}"', f'"{checked_folder() / file}"')
        kept += [] if skip else [line]
    settings = '[detector.settings]\nmodel = "colors.onnx"\nlabels = "labels.txt"\nscore_threshold = 0.4\n'
    (folder / "models.toml").write_text("\n".join([*kept, "[detector]", name, "batch_size = 4", settings]))
    return folder / "models.toml"


def test_boxes_of_grounds_in_drawn_scenes(pad: Callable[..., tuple[int, str]], models: Path, tmp_path: Path) -> None:
    """Boxes in the square's pixels, x and y swapped, a label off by one, or an image with another's boxes would show:
    they overlap the truth by more than 0.8, and each carries a label that the tagger gave."""
    world, out = write_world(tmp_path / "world", 12, seed=5), tmp_path / "shards"
    code, said = pad("build", "--images", world.images, "--models", models, "--engine", "local", "--out", out)
    assert code == 0, said
    assert pad("verify", out, "--deep")[0] == 0
    run = json.loads((out / "run.json").read_text())
    assert run["settings"]["detector"]["class"] == "pad_onnx_detector:OnnxDetector"
    assert {"detector_model", "detector_labels"} <= run["fingerprints"].keys()
    assert "pad_onnx_detector:OnnxDetector@" in run["fingerprints"]["code"]

    overlaps: list[float] = []
    with tarfile.open(out / "pad-000000.tar") as tar:
        for member in tar.getmembers():
            if member.name.endswith(".json"):
                meta = json.load(tar.extractfile(member))  # type: ignore[arg-type]
                index = int(Path(meta["source"]).stem.removeprefix("scene-"))
                truth = {region.label: region.box for region in draw_scene(5, index).regions}
                for region in meta["regions"]:
                    assert region["label"] in COLOURS
                    assert region["label"] in {tag["label"] for tag in meta["tags"]}
                    assert region["rle"]["size"] == [meta["height"], meta["width"]]
                    overlaps.append(overlap(region["box"], truth.get(region["label"], (0, 0, 0, 0))))
    assert len(overlaps) >= 8
    assert min(overlaps) > 0.8


def test_the_check_asks_it_and_labels_of_another_model_are_named(
    pad: Callable[..., tuple[int, str]], models: Path
) -> None:
    """A list that is too short would end in an index error for every image."""
    code, said = pad("models", "check", models)
    assert code == 0 and "pad_onnx_detector:OnnxDetector@" in said, said
    (models.parent / "short.txt").write_text("sky\n")
    other = models.with_name("other.toml")
    other.write_text(models.read_text().replace("labels.txt", "short.txt"))
    code, said = pad("models", "check", other)
    assert code == 1
    assert "it has 1 labels, and the model gives 4 scores" in said
