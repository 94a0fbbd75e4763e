"""The dataset card and the report tell how a run was made: by which models or people, and with which edits."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from pad_pipeline.miniature.files import World
from pad_pipeline.shards.run import Run
from pad_pipeline.storage import Folder
from tests.sharing.conftest import Pad
from tests.stages.test_own_models import write as own_toml

OWN = "tests.own_models:Grounder"
LLM = "word embeddings"
MODELS = "By models, as `pad build` runs them; no person"
FILE = "From an annotation file, which people made, or whatever wrote the file"

ODD = [
    {"merged": 3}, {"merged": [3, {"settings": 4}, {"settings": {"merged": [None]}}]}, {"edits": {"a": 1}},
    {"edits": [1, {"min_score": None}]}, {"tagger": {"class": [3]}, "detector": [], "segmenter": {"weights": {}}},
    {"redo_from": ["tag"], "earlier": {"settings": {}}}, {"redo_from": "segment", "earlier": {"settings": 1}},
    {"redo_from": "segment", "earlier": 1}, {"llm": []},
]  # fmt: skip


@pytest.fixture(scope="module")
def grounded(world: World, models_toml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scenes, annotated by a grounder of the user's own and the small segmenter."""
    from pad_pipeline.sources.open import open_source
    from pad_pipeline.workflows.models.settings import load_models
    from pad_pipeline.workflows.runs.build import build
    from pad_pipeline.workflows.runs.options import RunOptions

    folder = tmp_path_factory.mktemp("grounded")
    toml = own_toml(
        folder / "own.toml", models_toml, '[grounder]\nclass = "tests.own_models:Grounder"\n', ("tagger", "detector")
    )
    models = load_models(str(toml))
    view = models.view.model_copy(update={"size": 112})
    build(open_source(world.images), folder / "out", models, view, RunOptions(threads=1, limit=3))
    return folder / "out"


def card_of(run: Path, pad: Pad, out: Path) -> tuple[str, dict[str, list[str]]]:
    """How it was made, as the card says; and of its table of models the rows, by their first cell."""
    done = pad("export", "hub", run, "--out", out)
    assert done.code == 0, done.err
    text = (out / "README.md").read_text()
    assert 'load_dataset("OWNER/NAME", ' in text
    made = text[text.index("## How it was made") : text.index("## How it is read")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in made.splitlines() if line[:2] == "| "]
    return made.replace("\\", ""), {first: [cell.replace("\\", "") for cell in rest] for first, *rest in rows[2:]}


def reported(run: Path, pad: Pad, out: Path) -> dict[str, str]:
    """The table of models of `pad report`."""
    assert pad("report", run, "--out", out, "--limit", 1, "--edge", 32).code == 0
    page = (out / "index.html").read_text()
    table = page[page.index("<h3>Models</h3>") :]
    return dict(re.findall(r"<th>(.*?)</th><td>(.*?)</td>", table[: table.index("</table>")]))


def test_models_of_the_users_own_are_named(grounded: Path, pad: Pad, tmp_path: Path) -> None:
    """A class is named by `class`, and a grounder by no section of pad's own models: card and report left them out."""
    made, rows = card_of(grounded, pad, tmp_path / "hub")
    assert MODELS in made
    assert list(rows) == ["grounder", "segmenter", LLM]
    assert rows["grounder"][:2] == [OWN, "see the model's own page"] and "nms_iou 1.0" in rows["grounder"][-1]
    shown = reported(grounded, pad, tmp_path / "report")
    assert list(shown) == list(rows) and shown["grounder"] == OWN


def test_a_merge_says_what_each_part_was_made_with(
    built: Path, grounded: Path, shards: Path, pad: Pad, tmp_path: Path
) -> None:
    """Two builds by models, once merged, were published as the work of people, with the LLM as their only model."""
    assert pad("merge", built, grounded, built, "--out", tmp_path / "both").code == 0
    made, rows = card_of(tmp_path / "both", pad, tmp_path / "hub")
    assert "made in 2 ways" in made and made.count(MODELS) == 2 and "people" not in made
    assert list(rows) == ["1: tagger", "1: detector", "1: segmenter", "2: grounder", "2: segmenter", LLM]
    settings = Run.read(Folder(built)).settings
    assert rows["1: tagger"][0] == settings["tagger"]["weights"] and rows["2: grounder"][0] == OWN
    assert rows["1: tagger"][2] == Run.read(Folder(built)).fingerprints["tagger"][:16]
    assert "box_threshold 0.3, text_threshold 0.2" in rows["1: detector"][-1]
    assert list(reported(tmp_path / "both", pad, tmp_path / "report")) == list(rows)
    assert pad("merge", tmp_path / "both", shards, "--out", tmp_path / "all").code == 0
    made, rows = card_of(tmp_path / "all", pad, tmp_path / "hub")
    assert "made in 3 ways" in made and f"2. {MODELS}" in made and f"3. {FILE}" in made
    assert len(rows) == 6


def test_an_import_is_said_to_be_of_an_annotation_file(shards: Path, pad: Pad, tmp_path: Path) -> None:
    """Whoever made the file: what pad exported and models found comes back by `pad import` too, and was "by people"."""
    made, rows = card_of(shards, pad, tmp_path / "hub")
    assert FILE in made and "By models" not in made and list(rows) == [LLM]


@pytest.mark.parametrize("stage", ["segment", "patchify"])
def test_what_a_build_kept_is_not_said_of_its_models(
    stage: str, shards: Path, models_toml: Path, pad: Pad, tmp_path: Path
) -> None:
    """`--redo-from` keeps what an import has: the card named a tagger and a detector that never ran, and said that no
    person had looked."""
    build = ["build", "--images", shards, "--models", models_toml, "--view-size", 112, "--engine", "local"]
    assert pad(*build, "--redo-from", stage, "--out", tmp_path / "again").code == 0
    made, rows = card_of(tmp_path / "again", pad, tmp_path / "hub")
    assert FILE in made and "no person" not in made
    assert list(rows) == (["segmenter", LLM] if stage == "segment" else [LLM])
    assert ("By models, as `pad build` runs them: masks." in made) == (stage == "segment")


def test_edits_and_what_was_left_out_are_told(built: Path, pad: Pad, tmp_path: Path) -> None:
    """Neither labels that were dropped or renamed since, nor other thresholds, nor images that were filtered out stood
    on the card."""
    (tmp_path / "drop.txt").write_text("house\ncar\n")
    (tmp_path / "map.json").write_text('{"sky": "the sky"}')
    edits = ["--min-score", 0.4, "--drop-labels", tmp_path / "drop.txt", "--label-map", tmp_path / "map.json"]
    assert pad("retarget", built, *edits, "--out", tmp_path / "edited").code == 0
    assert pad("retarget", tmp_path / "edited", "--nms-iou", 0.9, "--out", tmp_path / "twice").code == 0
    assert pad("filter", tmp_path / "twice", "--status", "ok", "--out", tmp_path / "few").code == 0
    made, _ = card_of(tmp_path / "few", pad, tmp_path / "hub")
    assert "regions: drop_labels of 2 labels, label_map of 1 label, min_score 0.4." in made
    assert "regions: nms_iou 0.9." in made
    left = Run.read(Folder(tmp_path / "few")).counts
    assert left == {"images left out": 1} and "left out of its source, or altered: images left out: 1." in made


def test_licenses_of_official_models_are_named(built: Path, pad: Pad, tmp_path: Path) -> None:
    """One sentence said that models have licenses. Known ones are known by name, and a file of one's own by its hash;
    of others nothing is claimed."""
    from pad_pipeline.workflows.models.catalog import OFFICIAL
    from pad_pipeline.workflows.models.settings import load_models

    run = Run.read(Folder(built))
    apache, llama, unknown = "Apache-2.0", "Llama 2 Community License", "see the model's own page"
    for preset, tagger in (("paper", "MIT"), ("plus", apache)):
        shutil.copytree(built, tmp_path / preset)
        run = run.model_copy(update={"settings": load_models(preset).as_sections()})
        run.write(Folder(tmp_path / preset))
        _, rows = card_of(tmp_path / preset, pad, tmp_path / f"hub-{preset}")
        assert [row[1] for row in rows.values()] == [tagger, apache, apache, llama]
    run.settings.update({"segmenter": {"weights": "/data/sam.pth"}, "detector": {"model": "/data/fine-tuned.pth"}})
    run.fingerprints["segmenter"] = OFFICIAL["sam_vit_b"].sha256
    run.write(Folder(tmp_path / "plus"))
    _, rows = card_of(tmp_path / "plus", pad, tmp_path / "hub-plus")
    assert [rows[part][1] for part in ("detector", "segmenter")] == [unknown, apache]


def test_a_hostile_label_stays_text_on_the_card(built: Path) -> None:
    """Cards are rendered as HTML in other people's browsers."""
    from pad_pipeline.exports.hub import card
    from pad_pipeline.shards.reader import open_shards
    from pad_pipeline.shards.stats import read_statistics

    stats = read_statistics(open_shards(built))
    stats.labels["<img src=x onerror=alert(1)>\n# [a](b) | c"] = 10**6
    hostile = "`<script>`\n# x"
    run = stats.shards.run
    run.settings["tagger"] |= {"weights": hostile, "thresholds": hostile, "threshold": None}
    run.settings.update({"detector": {"class": hostile, "settings": {hostile: 1}}, "edits": [{hostile: hostile}]})
    run.fingerprints.update({"tagger": hostile, "detector_<script>": hostile})
    run.counts[hostile] = 1
    text = card(stats, "a\n---\nb", "other", {})
    assert "<img" not in text.replace("\\<img", "") and "<script" not in text.replace("\\<script", "")
    assert text.count("\\<script") == 10 and "\n# x" not in text
    assert "\n# \\[a" not in text and "\n---\nb" not in text.replace("\\", "")


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_run_json_is_no_traceback(odd: dict[str, Any], built: Path, pad: Pad, tmp_path: Path) -> None:
    """run.json of a foreign run can hold anything under `settings`."""
    shutil.copytree(built, tmp_path / "run")
    run = Run.read(Folder(built))
    run.settings.update(odd)
    run.write(Folder(tmp_path / "run"))
    card_of(tmp_path / "run", pad, tmp_path / "hub")
    reported(tmp_path / "run", pad, tmp_path / "report")
