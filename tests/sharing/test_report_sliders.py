"""The sliders of a report hide the regions below them, and count those that stay as `pad retarget` keeps them."""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pad_pipeline.report.index import LEVELS, level
from pad_pipeline.shards.reader import open_shards
from tests.sharing.browser import Page
from tests.sharing.conftest import Pad


def region_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the regions of all images, each with its image's id and the patches that it covers."""
    shards = open_shards(folder)
    found: list[dict[str, Any]] = []
    for name, row in shards.rows():
        if row["status"] != "failed":
            sample = shards.sample(name, row)
            for region, coverage in zip(sample.meta["regions"], sample.coverage, strict=True):
                found.append({**region, "id": row["id"], "patches": coverage.sum() / 255})
    return found


def move(page: Page, slider: str, position: int, release: bool = True) -> None:
    """Move a slider as a hand does: it may be held, or released."""
    page(
        "const s = document.getElementById(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('input'));"
        "if (arguments[2]) s.dispatchEvent(new Event('change'))",
        slider,
        position,
        release,
    )


def test_a_level_is_exact_at_each_threshold() -> None:
    """A score equal to a threshold stays, and the next lower float does not, as in `region.score >= threshold`. Catches
    a product such as 0.29 * 100, which is below 29."""
    for k in range(LEVELS + 1):
        assert level(k / LEVELS) == k
        assert level(math.nextafter(k / LEVELS, 2)) == k
        assert k == 0 or level(math.nextafter(k / LEVELS, 0)) == k - 1
    assert (level(-0.5), level(1.5)) == (0, LEVELS)


@pytest.mark.browser
def test_a_held_slider_hides_regions_and_counts_the_others(page: Page, mixed_run: Path) -> None:
    """While a slider is held, cards, patches, counts and the image that is enlarged show only the regions that stay.
    Catches regions below the score that are still drawn, which was so."""
    rows = region_rows(mixed_run)
    for slider, position, value in (
        ("score", 46, lambda row: row["score"] >= 0.46),
        ("label_score", 53, lambda row: row["label_score"] >= 0.53),
        ("iou", 80, lambda row: row["predicted_iou"] >= 0.8),
        ("patches", 4, lambda row: row["patches"] >= 1.5),
    ):
        stay = [row for row in rows if value(row)]
        assert 0 < len(stay) < len(rows)
        page.visit("#page=2&show=boxes,masks,patches")
        shown = page.ids()
        before = page.count(".cells rect")
        move(page, slider, position, release=False)
        expected = Counter(row["id"] for row in stay if row["id"] in shown)
        drawn = "return [...document.querySelectorAll('.card')].map(c => [c.querySelector('.id').textContent, "
        for part in (".masks path", ".boxes .casing"):
            counts = f"{drawn} c.querySelectorAll('{part}').length])"
            page.until(lambda counts=counts, expected=expected: Counter(dict(page(counts))) == expected)
        assert page.ids() == shown and (page.count(".cells rect") < before or slider == "patches")
        images, labels = {row["id"] for row in stay}, {row["label"] for row in stay}
        line = (
            rf"{len(stay)} of {len(rows)} regions \(\d+%\) kept, in {len(images)} of \d+ images, with {len(labels)} of"
        )
        page.until(lambda line=line: re.match(line, page.all("#kept")[0].text))
        move(page, slider, 0, release=False)
        page.until(lambda: page.all("#kept")[0].text == "" and not page.all("#command")[0].is_displayed())
        assert page.count(".cells rect") == before
    page.visit("#score=46&page=2")
    page.all(".enlarge")[0].click()
    page.until(lambda: page.count("dialog[open] .regions") == 1)
    of_image = [row for row in rows if row["id"] == page.ids()[0]]
    stay = [row for row in of_image if row["score"] >= 0.46]
    assert page.count("dialog .masks path") == len(stay)
    assert page.count("dialog .hides") == len(of_image) - len(stay)


@pytest.mark.browser
def test_the_counts_of_a_label_are_those_of_its_regions(page: Page, mixed_run: Path) -> None:
    """With a label, the second count is of its regions alone, and the histograms too. Catches a count of images that
    have the label but no region of it that stays."""
    rows = region_rows(mixed_run)
    label = Counter(row["label"] for row in rows).most_common(1)[0][0]
    of_label = [row for row in rows if row["label"] == label]
    scores = sorted(row["score"] for row in of_label)
    position = round(100 * scores[len(scores) // 2])
    stay = [row for row in of_label if row["score"] >= position / 100 - 1e-9]
    assert 0 < len(stay) < len(of_label)
    page.visit(f"#label={label}&score={position}")
    images = len({row["id"] for row in stay}), len({row["id"] for row in of_label})
    assert (
        f"“{label}”: {len(stay)} of {len(of_label)} regions, in {images[0]} of {images[1]} image"
        in page.all("#kept")[0].text
    )
    shown = page.ids()
    assert shown == list(dict.fromkeys(row["id"] for row in stay))[:3]
    name = page.all("#score-histogram")[0].get_attribute("aria-label")
    assert name == f"{label}: {len(of_label)} regions"
    titles = page("return [...document.querySelectorAll('#score-histogram title')].map(t => t.textContent)")
    assert sum(int(title.rpartition(": ")[2]) for title in titles) == len(of_label)
    assert page.count("#score-histogram .below") > 0
    page.visit()
    titles = page("return [...document.querySelectorAll('#iou-histogram title')].map(t => t.textContent)")
    assert sum(int(title.rpartition(": ")[2]) for title in titles) == len(rows)


@pytest.mark.browser
def test_the_printed_command_keeps_the_regions_that_were_counted(
    page: Page, pad: Pad, mixed_run: Path, tmp_path: Path
) -> None:
    """The command under the sliders is run, and its shards hold as many regions as the report has counted, at
    thresholds equal to scores. Catches a score that is rounded across a threshold, and an option that is not there."""
    folder, sure = shlex.quote(str(mixed_run)), shlex.quote(f"{mixed_run}-sure")
    for place, options in (
        ("#score=46&iou=80", "--min-score 0.46 --min-predicted-iou 0.80"),
        ("#label_score=42&patches=1.5", "--min-label-score 0.42 --min-patches 1.5"),
    ):
        page.visit(place)
        line = page.all("#retarget")[0].text
        assert line == f"pad retarget {folder} {options} --out {sure}"
        kept = int(page.all("#kept")[0].text.split()[0])
        out = tmp_path / options.split()[0]
        assert pad(*shlex.split(line)[1:-1], out, "--engine", "local").code == 0
        assert 0 < len(region_rows(out)) == kept < len(region_rows(mixed_run))


@pytest.mark.browser
def test_sliders_move_by_keyboard(page: Page) -> None:
    """One step for each press of an arrow key; the address keeps the position, and the page stays where it is. The back
    button undoes all steps at once. Catches arrows that turn the page while a slider has the focus."""
    from selenium.webdriver.common.keys import Keys

    page.visit()
    page("document.getElementById('patches').focus()")
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    page.until(lambda: "patches=1" in page("return location.hash"))
    assert page("return document.activeElement.id") == "patches"
    assert page.all("#patches")[0].get_attribute("aria-valuetext") == "1 patch"
    assert "page=" not in page("return location.hash")
    page.until(lambda: page.all("#kept")[0].text)
    page.driver.back()
    page.until(lambda: page.all("#kept")[0].text == "" and page.all("#patches")[0].get_attribute("value") == "0")
    page.driver.forward()
    page.until(lambda: page.all("#kept")[0].text)
    page.all("#clear")[0].click()
    page.until(lambda: page.all("#kept")[0].text == "")
    assert page.all("#patches")[0].get_attribute("value") == "0"
