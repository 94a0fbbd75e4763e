"""The benchmark runs and compares like with like; how fast anything is, no test says."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import annotate, flops
from tests.conftest import ROOT


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
    page = (ROOT / "docs/howto/models.md").read_text()
    pair = f"{cost['image']:.1f} TFLOP an image and {cost['phrase'] + cost['masks']:.2f} a tag"
    assert pair in " ".join(page.split())
    table = (ROOT / "benchmarks/results/flops.md").read_text()
    assert all(f"| SAM 3, {part} | {found:.3f} |" in table for part, found in cost.items())
