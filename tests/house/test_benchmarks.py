"""The benchmark runs and compares like with like; how fast anything is, no test says."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import annotate, flops, paper, photographs
from benchmarks.gpu import common, runner
from benchmarks.gpu.__main__ import PARTS
from benchmarks.gpu.runner import Job
from tests.conftest import ROOT


def test_the_papers_tables_hold_the_numbers_of_the_experiments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Means, deviations, differences and p values, each in its column; no path of the machine. Catches a table whose
    columns are exchanged."""
    settings = {
        "seeds": [0, 1], "stage1": {"steps": 1}, "stage2": {}, "shards": "/home/me/shards",
        "cells": {name: {"stage1": {}, "stage2": {}, "llm": "/home/me/llm"} for name in ("alone", "better")},
    }  # fmt: skip
    column = "boxes.accuracy"
    compared = {
        "experiment": settings,
        "cells": {"alone": {column: [0.1, 0.2]}, "better": {column: [0.3, 0.5]}},
        "differences": {"better": {column: [0.2, 0.3]}}, "p_values": {"better": {column: 0.25}},
    }  # fmt: skip
    (tmp_path / "compare").mkdir()
    (tmp_path / "compare/experiment.json").write_text(json.dumps(compared))
    monkeypatch.setattr("sys.argv", ["paper", str(tmp_path), "--results", str(tmp_path)])
    paper.main()
    row = "| referring expressions, IoU 0.5 or more | 0.150 ± 0.071 | 0.400 ± 0.141 | +0.250 ± 0.071 | 0.250 | +16% |"
    assert row in capsys.readouterr().out and row in (tmp_path / "paper-miniature.md").read_text()
    numbers = (tmp_path / "paper-miniature.json").read_text()
    assert json.loads(numbers)["compare"]["cells"] == compared["cells"] and "/home/me" not in numbers


@pytest.mark.slow
def test_the_waterfall_has_a_row_for_each_technique(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In float32 the stages find what the plain loop finds: a benchmark of something else would be worth nothing."""
    out = tmp_path / "table.md"
    rows = ["stages, float32, batch 1", "float32, batches, fused attention"]
    monkeypatch.setattr("sys.argv", ["annotate", "--images", "2", "--rows", *rows, "--out", str(out), "--threads", "2"])
    annotate.main()
    table = [line.split("|")[1:-1] for line in out.read_text().splitlines() if line.startswith("|")]
    names = [cell.strip() for cell in table[0]]
    found = {line[0].strip(): dict(zip(names, map(str.strip, line), strict=True)) for line in table[2:]}
    assert list(found) == ["reference loop", *rows]
    for row in found.values():
        assert (row["tags F1"], row["x reference"] > "0") == ("1.0000", True)
        assert float(row["boxes F1"]) > 0.97
        assert float(row["mask IoU"]) > 0.95
    assert found[rows[1]]["labels that are tags"] == "1.0000"


@pytest.mark.slow
def test_the_cost_of_sam3_stands_in_the_docs_as_its_configuration_gives_it() -> None:
    """Numbers that somebody estimated once would stay when transformers changes the network."""
    cost = flops.sam3()
    page = (ROOT / "docs/models/sam3.md").read_text()
    pair = f"An image costs {cost['image']:.1f} TFLOP, and each of its tags {cost['phrase'] + cost['masks']:.2f}"
    assert pair in " ".join(page.split())
    table = (ROOT / "benchmarks/results/flops.md").read_text()
    assert all(f"| SAM 3, {part} | {found:.3f} |" in table for part, found in cost.items())


def _good(job: Job) -> None:
    job.sheet.row("Numbers", what="good", rate=1.5)


def _raising(job: Job) -> None:
    _good(job)
    job.sheet.attempt("half", lambda: 1 / 0)
    job.sheet.attempt("long", lambda: job.sheet.row("Numbers", what="never"), needs=1e6)
    raise ValueError("no such kernel")


def _hanging(job: Job) -> None:
    _good(job)
    time.sleep(600)


def _dying(job: Job) -> None:
    _good(job)
    os._exit(7)


def test_a_part_of_the_gpu_benchmark_that_fails_hangs_or_dies_loses_nothing_and_the_others_run(tmp_path: Path) -> None:
    """Nine minutes of a lent GPU would be gone with one exception, one hanging kernel or one dead process."""
    ways = {"hanging": _hanging, "raising": _raising, "dying": _dying, "good": _good}
    parts = [runner.Part(name, f"The part {name}", 2 if name == "hanging" else 4, way) for name, way in ways.items()]
    out = tmp_path / "out"
    ends = runner.run_parts(parts, out, tmp_path / "work", time.time() + 14)
    assert ends["good"] == "finished"
    assert ends["raising"] == "failed with ValueError: no such kernel"
    assert ends["hanging"].startswith("cut at its limit")
    assert ends["dying"] == "its process died (exit code 7)"
    summary = (out / "summary.md").read_text()
    for name in ways:
        found = json.loads((out / f"{name}.json").read_text())
        assert found["tables"] == {"Numbers": [{"what": "good", "rate": 1.5}]}
        assert found["state"] == ends[name]
        assert "| good | 1.5 |" in (out / f"{name}.md").read_text()
        assert f"The part {name}" in summary
    left_out = json.loads((out / "raising.json").read_text())["failures"]
    assert [one["what"] for one in left_out] == ["half", "long"]
    assert "ZeroDivisionError" in left_out[0]["why"]
    assert not runner.all_well(out, ends)


@pytest.mark.slow
def test_the_gpu_benchmark_measures_every_part_in_its_smoke_run(tmp_path: Path) -> None:
    """What can't be run in CI for lack of a GPU must at least not fail in Python before it reaches the GPU."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--smoke", "--minutes", "10", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    summary = (tmp_path / "summary.md").read_text()
    parts = ("card", "correctness", "waterfall", "profile", "engine", "stage1", "compile", "analyses")
    for name in parts:
        found = json.loads((tmp_path / f"{name}.json").read_text())
        assert (found["state"], found["failures"]) == ("finished", []), name
        assert any(found["tables"].values()), name
        assert (tmp_path / f"{name}.md").read_text() in summary
    page = (ROOT / "docs/howto/gpu.md").read_text()
    assert all(f"| `{part.name}` | {part.seconds} |" in page for part in PARTS)
    assert [part.name for part in PARTS] == [*parts]
    waterfall = json.loads((tmp_path / "waterfall.json").read_text())["tables"]["Images of one size"]
    assert [row["what"] for row in waterfall[:2]] == ["reference loop", "+ fused attention"]
    compared = json.loads((tmp_path / "correctness.json").read_text())["tables"]["bfloat16 against float32"]
    assert [row["model"] for row in compared] == ["tagger", "detector", "segmenter"]
    assert all(row["spread"] > 0 for row in compared)  # not all alike, or nothing is compared
    assert compared[2]["mask IoU"] > 0.8


def test_drawn_photographs_have_the_sizes_that_were_asked_for_and_as_many_bytes_as_photographs() -> None:
    """Sizes decide how many images share a batch, and bytes how long decoding takes."""
    sizes = photographs.draw_sizes(200)
    assert sizes == photographs.draw_sizes(200)
    edges = [edge for size in sizes for edge in size]
    assert min(map(max, sizes)) >= 300
    assert max(edges) <= 1200
    assert 0.2 < sum(height > width for width, height in sizes) / len(sizes) < 0.4
    files = photographs.photographs(sizes[:6])
    assert [Image.open(io.BytesIO(data)).size for data in files] == sizes[:6]
    assert all(0.1 < len(data) / (w * h) < 0.6 for data, (w, h) in zip(files, sizes, strict=False))


def test_a_trace_gives_the_busy_time_of_a_gpu_and_the_pauses_between_its_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Kernels of several streams overlap, and their sum would be more than the time in which the GPU is busy."""
    monkeypatch.setattr(common, "on_gpu", lambda: True)
    spans = [("kernel", "gemm", 0, 10), ("kernel", "gemm", 30, 10), ("kernel", "norm", 35, 15)]
    spans += [("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 60, 5), ("cuda_runtime", "cudaLaunchKernel", 0, 100)]
    spans += [("cpu_op", "aten::_scaled_dot_product_flash_attention", 0, 100)]
    events = [{"cat": cat, "name": name, "ts": ts, "dur": dur} for cat, name, ts, dur in spans]
    seen = common.Traced(100e-6, events)
    busy, pauses = seen.gaps()
    assert busy == pytest.approx(35e-6)
    assert pauses == pytest.approx([20e-6, 10e-6])
    assert [(name, calls) for name, calls, _ in seen.largest(2)] == [("gemm", 2), ("norm", 1)]
    assert seen.operations("aten::_scaled") == {"aten::_scaled_dot_product_flash_attention": 1}
