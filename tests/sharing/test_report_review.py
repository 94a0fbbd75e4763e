"""The review in a report: regions of a random sample, one key for each verdict, verdicts out to a file and in again."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pad_pipeline.quality.verdicts import read_verdicts
from pad_pipeline.shards.reader import open_shards
from tests.sharing.browser import Page
from tests.sharing.mixed_run import HOSTILE

VERDICTS = ("right", "wrong label", "wrong mask", "unsure")


@pytest.fixture(autouse=True)
def empty_store(request: pytest.FixtureRequest) -> Iterator[None]:
    """Begin without verdicts of another test, which uses the same browser."""
    if "page" in request.fixturenames:
        page: Page = request.getfixturevalue("page")
        page.visit()
        page("localStorage.clear()")
    yield


def text(page: Page, name: str) -> str:
    return str(page.all(f"#{name}")[0].text)


def counts(page: Page) -> dict[str, int]:
    """The verdicts that the page has counted."""
    parts = [part.split(" ", 1) for part in text(page, "tallies").split(" · ")]
    return {name: int(count) for count, name in parts}


def saved(page: Page, folder: Path, button: str, name: str) -> Path:
    """Press a button that saves a file, and wait for the file."""
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    page.all(f"#{button}")[0].click()
    page.until(lambda: (folder / name).exists() and (folder / name).stat().st_size)
    return folder / name


def read(page: Page, path: Path) -> str:
    """Give a file to the page, and return its answer."""
    page("document.getElementById('read-result').textContent = ''")
    page.all("#read-verdicts")[0].send_keys(str(path))
    page.until(lambda: text(page, "read-result"))
    return text(page, "read-result")


@pytest.mark.browser
def test_fifty_regions_are_reviewed_by_keyboard(page: Page, mixed_run: Path, tmp_path: Path) -> None:
    """Fifty keys give fifty verdicts on fifty different regions, which the saved file names as the shards do. They are
    still there when the page is opened again, and come back from the file into an empty browser. Catches a key that
    counts for the next region, a score that is shown before the verdict, a verdict that is lost."""
    page.visit("#tab=review&seed=4")
    assert text(page, "progress") == "1 of 50" and "drawn at random from" in text(page, "population")
    assert page.count(".masks path") == page.count(".boxes .casing") == 1
    assert "0." not in page.all("#review")[0].text and page.count("#review .readout") == 0
    labels = []
    keys = [VERDICTS[number % 4 if number % 3 else 0] for number in range(50)]
    for number, verdict in enumerate(keys, 1):
        labels.append(page("return document.getElementById('review-label').textContent"))
        page.press(str(VERDICTS.index(verdict) + 1))
        page.until(lambda number=number: text(page, "progress") == f"{min(number + 1, 50)} of 50")
    assert "All regions of this sample have a verdict" in text(page, "review-label")
    assert counts(page) == Counter(keys) and page.count("[data-verdict]:disabled") == 4

    part, whole, z = keys.count("right"), 50 - keys.count("unsure"), 1.959964
    middle = (part + z * z / 2) / (whole + z * z)
    width = z * math.sqrt(part * (whole - part) / whole + z * z / 4) / (whole + z * z)
    interval = f"95% interval: {100 * (middle - width):.0f}% to {100 * (middle + width):.0f}%"
    assert f"{100 * part / whole:.0f}% right ({interval})" in text(page, "precision")

    path = saved(page, tmp_path, "save-verdicts", "verdicts.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    shards = open_shards(mixed_run)
    samples = {row["key"]: shards.sample(n, row) for n, row in shards.rows() if row["status"] != "failed"}
    assert [line["label"] for line in lines] == labels and HOSTILE in labels
    assert [line["verdict"] for line in lines] == keys
    assert len({(line["key"], line["region"]) for line in lines}) == 50
    for line in lines:
        region = samples[line["key"]].meta["regions"][line["region"]]
        known = {name: region[name] for name in ("label", "score", "label_score", "predicted_iou")}  # type: ignore[literal-required]
        covered = samples[line["key"]].coverage[line["region"]].sum() / 255
        facts = {"run": shards.run.identity, "key": line["key"], "region": line["region"], "seed": 4}
        assert line == facts | known | {"patches": covered, "verdict": line["verdict"]}

    read_back = read_verdicts(path, shards)  # as `pad evaluate labels --verdicts` does
    assert [one.verdict for one in read_back] == keys and [one.label for one in read_back] == labels

    page.visit("#tab=review&seed=4")
    assert counts(page) == Counter(keys)
    mark = f"pad-verdict {shards.run.identity}-{shards.run.fingerprints['inputs'][:16]} "
    assert page("return Object.keys(localStorage).every(key => key.startsWith(arguments[0]))", mark)
    page("localStorage.clear()")
    page.visit("#tab=review&seed=4")
    assert text(page, "progress") == "1 of 50" and sum(counts(page).values()) == 0
    assert read(page, path) == "50 verdicts read from verdicts.jsonl."
    assert counts(page) == Counter(keys) and page("return window.hacked") is None
    assert page.complaints() == []


@pytest.mark.browser
def test_a_verdict_can_be_taken_back(page: Page, tmp_path: Path) -> None:
    """With u, Backspace and the button: the region is shown again, and its verdict is forgotten. The last verdict on a
    region is the only one in the file. Catches a region that is counted twice."""
    from selenium.webdriver.common.keys import Keys

    page.visit("#tab=review&sample=5")
    first = page("return document.getElementById('review-label').textContent")
    for again in ("u", Keys.BACKSPACE):
        page.press("2")
        page.until(lambda: text(page, "progress") == "2 of 5")
        page.press(again)
        page.until(lambda: text(page, "progress") == "1 of 5" and sum(counts(page).values()) == 0)
        assert page("return document.getElementById('review-label').textContent") == first
    page.all('[data-verdict="unsure"]')[0].click()
    page.all("#undo")[0].click()
    page.all('[data-verdict="wrong mask"]')[0].click()
    assert counts(page) == {"right": 0, "wrong label": 0, "wrong mask": 1, "unsure": 0}
    (line,) = saved(page, tmp_path, "save-verdicts", "verdicts.jsonl").read_text().splitlines()
    assert json.loads(line)["verdict"] == "wrong mask"
    page.press("h")
    page.until(lambda: page.count("#review .masks") == 0)


@pytest.mark.browser
def test_an_address_means_one_sample(page: Page, mixed_run: Path) -> None:
    """The same seed gives the same regions in the same order, another seed others, and a larger sample begins with the
    smaller one. Filters and sliders restrict it. Catches a sample that depends on the browser."""

    def sample(place: str) -> list[list[int]]:
        page.visit(place)
        return list(page("return review.sample.map(([, image, region]) => [image, region])"))

    ten = sample("#tab=review&sample=10&seed=3")
    assert sample("#tab=review&sample=10&seed=3") == ten and sample("#tab=review&sample=20&seed=3")[:10] == ten
    assert sample("#tab=review&sample=10&seed=4") != ten
    shards = open_shards(mixed_run)
    regions = {
        (image, number): region
        for image, (name, row) in enumerate(shards.rows())
        if row["status"] != "failed"
        for number, region in enumerate(shards.sample(name, row).meta["regions"])
    }
    assert len(regions) > 50
    label = Counter(region["label"] for region in regions.values()).most_common(1)[0][0]
    wanted = {place for place, r in regions.items() if r["label"] == label and r["score"] >= 0.32 - 1e-9}
    assert {(image, number) for image, number in sample(f"#tab=review&label={label}&score=32")} == wanted
    assert sample("#tab=review&label=nothing") == []
    assert text(page, "review-label") == "No region passes the filter."


@pytest.mark.browser
def test_every_region_is_drawn_equally_often(page: Page) -> None:
    """Over 20,000 seeds, the first region of a sample is each of 100 regions about as often (chi-square, 99 degrees of
    freedom). Catches a hash that favors images with many regions, or the first ones."""
    page.visit()
    found = page("""
      const counts = new Array(100).fill(0);
      for (let seed = 0; seed < 20000; seed++) {
        const ranks = counts.map((_, n) => n < 60 ? mixed(seed, 0, n) : mixed(seed, n - 59, 0));
        counts[ranks.indexOf(Math.min(...ranks))]++;
      }
      return counts;
    """)
    assert sum((count - 200) ** 2 / 200 for count in found) < 150


@pytest.mark.browser
def test_bad_verdict_files_are_refused_or_named(page: Page, mixed_run: Path, tmp_path: Path) -> None:
    """A file of another run changes nothing, and the page says why in one sentence; broken lines are counted and named;
    hostile text stays text. Catches verdicts on regions that another run has at the same place."""
    identity = open_shards(mixed_run).run.identity
    page.visit("#tab=review&sample=5")
    first: dict[str, Any] = page(
        "const [, image, region] = review.sample[0]; return {key: review.cards.get(image).key, region}"
    )
    page.press("1")
    page.until(lambda: counts(page)["right"] == 1)
    numbers = {"score": 0.5, "label_score": 0.5, "predicted_iou": 0.5, "patches": 2}
    good = {"run": identity, **first, "label": HOSTILE, "verdict": "wrong label", **numbers}
    other = tmp_path / "<b>other.jsonl"
    other.write_text(json.dumps(good) + "\n" + json.dumps(good | {"run": HOSTILE}) + "\n")
    answer = read(page, other)
    assert answer.startswith("<b>other.jsonl was not read: line 2 is of run <img") and identity in answer
    assert counts(page)["right"] == 1 and text(page, "all-verdicts").startswith("1 verdict ")
    broken = tmp_path / "broken.jsonl"
    bad: list[Any] = [
        good | {"region": -1},
        good | {"verdict": "great"},
        good | {"key": 3},
        good | {"score": "x"},
        [],
        None,
        7,
    ]
    lines = [json.dumps(good), "{", *map(json.dumps, bad), "", json.dumps(good | {"label": "another label"})]
    broken.write_text("\n".join(lines))
    answer = read(page, broken)
    assert answer == "2 verdicts read from broken.jsonl. 8 lines could not be read: 2, 3, 4, 5, 6, 7, 8, 9."
    # The region now has a verdict on a label that is not its own: it is not counted, and the region is shown again.
    page.until(lambda: text(page, "progress") == "1 of 5" and sum(counts(page).values()) == 0)
    (tmp_path / "image.png").write_bytes(bytes(range(256)))
    assert "0 verdicts read" in read(page, tmp_path / "image.png")
    page(
        "for (const key of Object.keys(localStorage)) localStorage.setItem(key, '<img src=x onerror=window.hacked=1>')"
    )
    page.visit("#tab=review&sample=5")
    assert text(page, "all-verdicts").startswith("0 verdicts") and page("return window.hacked") is None
    assert page.complaints() == []
