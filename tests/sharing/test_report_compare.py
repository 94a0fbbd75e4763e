"""A report of two runs: the same images side by side, and the regions that only one run has."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pad_pipeline.report import pages
from pad_pipeline.report.compare import SecondRun, alone
from pad_pipeline.report.settings import ReportSettings
from pad_pipeline.report.site import write_report
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.sources.stored import StoredSource
from pad_pipeline.stages.edit_settings import EditSettings
from pad_pipeline.workflows.runs.options import RunOptions
from pad_pipeline.workflows.runs.rewrite import rewrite
from tests.sharing.browser import Page
from tests.sharing.conftest import Pad
from tests.sharing.mixed_run import HOSTILE
from tests.sharing.report_files import cards_of, content
from tests.sharing.test_report_sliders import move, region_rows

RENAMED = {"wall": "fence", "sky": HOSTILE + "2"}


@pytest.fixture(scope="module")
def changed(mixed_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mixed run with two labels renamed, and without regions of a score below 0.4."""
    out = tmp_path_factory.mktemp("changed") / "new"
    edits = EditSettings(min_score=0.4, label_map=RENAMED)
    rewrite(StoredSource([str(mixed_run)]), out, RunOptions(shard_size=5), edits=edits)
    return out


def test_a_region_is_the_same_if_label_and_box_agree() -> None:
    """With an IoU of one half, and not below; another label is another region. Catches a comparison of boxes alone."""
    box = {"label": "dog", "box": [0, 0, 10, 10]}
    half = {"label": "dog", "box": [0, 0, 10, 5]}
    less = {"label": "dog", "box": [0, 0, 10, 4.9]}
    cat = {"label": "cat", "box": [0, 0, 10, 10]}
    assert alone([box, cat], [half]) == [False, True]
    assert alone([box, cat], [less]) == [True, True] and alone([], [box]) == []


def test_images_are_found_by_key_or_by_id(pad: Pad, mixed_run: Path, tmp_path: Path) -> None:
    """In a run with other shards too. An image that the second run lacks, or that failed, is not compared, and its
    regions do not count as different. Catches images that are compared by their position."""
    rows = [row for _, row in open_shards(mixed_run).rows()]
    (tmp_path / "keys.txt").write_text("\n".join(row["key"] for row in rows[6:9]))
    command = ["filter", mixed_run, "--keys", tmp_path / "keys.txt", "--out", tmp_path / "few", "--engine", "local"]
    assert pad(*command).code == 0
    second = SecondRun(open_shards(tmp_path / "few"))
    found = second.find("pad-000001", [rows[7], rows[8] | {"key": "another"}, rows[0], {"key": "no", "id": "no"}])
    assert [place and place[1]["key"] for place in found] == [rows[7]["key"], rows[8]["key"], None, None]
    assert pad("report", mixed_run, tmp_path / "few", "--out", tmp_path / "r").code == 0
    missing = [card["second"].get("missing") for card in cards_of(tmp_path / "r")]
    expected: list[Any] = ["not in the second run"] * 13
    expected[6:9] = [None] * 3
    assert missing == expected
    facts = content(tmp_path / "r", "facts")["second"]
    assert (facts["compared"], facts["first"], facts["second"], facts["images"]) == (3, 0, 0, 0)


def test_mistakes_with_two_runs_are_one_line(pad: Pad, mixed_run: Path, changed: Path, tmp_path: Path) -> None:
    """Three runs, a second one that is no run, a second one that is damaged. Catches a traceback."""
    torn = tmp_path / "torn"
    shutil.copytree(changed, torn)
    (torn / "pad-000001.tar").write_bytes((torn / "pad-000001.tar").read_bytes()[:3000])
    for runs, said in (
        ([mixed_run, changed, changed], "a report compares two runs; name one or two"),
        ([mixed_run, tmp_path], "there is no run.json"),
        ([mixed_run, torn], "pad-000001.tar: it is damaged"),
    ):
        done = pad("report", *runs, "--out", tmp_path / "r")
        assert done.code == 2 and said in done.err, done.err
        assert done.err.splitlines()[-1].startswith("error: ")


@pytest.mark.browser
def test_two_runs_stand_side_by_side(chromium: Any, mixed_run: Path, changed: Path, tmp_path: Path) -> None:
    """Each card shows the regions of both; the page counts and filters those that only one run has, and sliders and the
    label restrict the counts. Catches a region of the first run that is counted for the second."""
    first, second = region_rows(mixed_run), region_rows(changed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "BLOCK", 4)
        settings = ReportSettings(page_size=3)
        list(write_report(open_shards(mixed_run), tmp_path / "r", settings, second=open_shards(changed)))
    page = Page(chromium, tmp_path / "r")
    page.visit("#page=2")
    boxes = (
        "return [...document.querySelectorAll('.card')].map(c => [c.querySelector('.id').textContent, "
        "...[...c.querySelectorAll('.run')].map(r => r.querySelectorAll('.masks path').length)])"
    )
    for name, *counts in page(boxes):
        assert counts == [sum(row["id"] == name for row in rows) for rows in (first, second)]

    def only(least: float, label: str | None = None) -> tuple[Counter[str], Counter[str]]:
        found = []
        for rows, others in ((first, second), (second, first)):
            wanted = Counter[str]()
            for row in rows:
                marks = alone([row], [other for other in others if other["id"] == row["id"]])
                if marks[0] and row["score"] >= least - 1e-9 and label in (None, row["label"]):
                    wanted[row["id"]] += 1
            found.append(wanted)
        return found[0], found[1]

    def line(one: Counter[str], other: Counter[str]) -> str:
        new = f"only in new: {other.total()} region{'s' * (other.total() != 1)}"
        images = f"in {len(one | other)} image{'s' * (len(one | other) != 1)} (1 image not compared)"
        return f"Only in run: {one.total()} region{'s' * (one.total() != 1)}, {new}, {images}"

    assert page.all("#kept")[0].text == line(*only(0))
    assert 0 < only(0)[1].total() < only(0)[0].total()
    move(page, "score", 46)
    page.until(lambda: page.all("#kept")[0].text.endswith(line(*only(0.46))))
    for which, expected in (("first", only(0.46)[0]), ("second", only(0.46)[1])):
        page.visit(f"#score=46&only={which}")
        assert page.all("#kept")[0].text.endswith(line(*only(0.46)))
        order = [row["id"] for row in first if row["id"] in expected]
        assert page.ids() == list(dict.fromkeys(order))[:3]
        for name, *counts in page(boxes):
            assert counts == [only(0.46)[0][name], only(0.46)[1][name]]
    page.visit("#label=fence")
    assert page.all("#kept")[0].text.endswith(line(*only(0, "fence")))
    page.visit("#only=second")
    page.all(".enlarge")[0].click()
    page.until(lambda: page.count("dialog[open] .regions") == 2)
    assert [title.text for title in page.all("dialog h3")][:2] == ["Regions of run", "Regions of new"]
    page.press("+")
    views = "return [...document.querySelectorAll('dialog svg[viewBox][role=img]')].map(s => s.getAttribute('viewBox'))"
    page.until(lambda: "150%" in page.all("dialog .level")[0].text)
    one, other = page(views)
    assert one == other and page("return window.hacked") is None and page.complaints() == []
    sideways = "return document.documentElement.scrollWidth > innerWidth || document.body.scrollWidth > innerWidth"
    page.visit("", 360, 740)
    assert not page(sideways)
