"""A report works in a real browser: by mouse, by keyboard, on a narrow screen, and with hostile text in it."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pad_pipeline.shards.reader import open_shards
from tests.sharing.browser import Page
from tests.sharing.mixed_run import HOSTILE


@pytest.mark.browser
def test_each_toggle_shows_and_hides_one_layer(page: Page) -> None:
    """Each of tags, boxes, masks, patches by itself, by mouse and by key; the address keeps them. Catches a toggle that
    does nothing, and one that takes another along."""
    layers = {"tags": ".card .tags", "boxes": ".boxes", "masks": ".masks", "patches": ".patches"}
    page.visit()
    assert [page.count(css) > 0 for css in layers.values()] == [True, True, True, False]
    for name, css in layers.items():
        before = {other: page.count(other) > 0 for other in layers.values()}
        page.all(f'[data-show="{name}"]')[0].click()
        page.until(lambda css=css, before=before: (page.count(css) > 0) != before[css])
        page.driver.execute_script("document.activeElement.blur()")
        assert {o: page.count(o) > 0 for o in layers.values()} == before | {css: not before[css]}
        page.press(name[0])
        page.until(lambda css=css, before=before: (page.count(css) > 0) == before[css])
    page.visit("#show=patches")
    assert [page.count(css) > 0 for css in layers.values()] == [False, False, False, True]
    assert page.complaints() == []


@pytest.mark.browser
def test_overlays_lie_on_the_image(page: Page) -> None:
    """On the screen: the box, the mask and the patches of the teal square on one another, at its place in the image,
    for a view that is cut. Catches an overlay that is scaled otherwise than the image."""
    page.visit("#show=boxes,masks,patches")
    places = page("""
      const rect = (e) => { const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
      const card = document.querySelector(".card"), texts = [...card.querySelectorAll("text")];
      const number = texts.find((t) => t.textContent === "teal square").dataset.region;
      const of = (layer) => [...card.querySelectorAll(`.${layer} [data-region="${number}"]`)].map(rect);
      return {image: rect(card.querySelector("image")), box: of("boxes")[0], mask: of("masks")[0], cells: of("cells")};
    """)
    cells = np.array(places["cells"])
    places["patches"] = [*cells.min(0)[:2], *cells.max(0)[2:]]
    left, top, right, bottom = places["image"]
    expected = [left + (right - left) / 4, top, left + (right - left) / 2, top + (bottom - top) / 2]
    assert right - left > 200 and abs((right - left) / (bottom - top) - 2) < 0.01
    for what in ("box", "mask", "patches"):
        assert np.allclose(places[what], expected, atol=1.5), (what, places)
    assert len(cells) == 16


@pytest.mark.browser
def test_a_region_that_is_pointed_at_shows_its_score(page: Page) -> None:
    """What is pointed at says its label and score, and the rest steps back; in the patch grid, the patch's coverage."""
    page.visit("#show=boxes")
    card = page.all(".card")[0]
    names = page(
        "return [...document.querySelectorAll('.card:first-child text')].map(t => [t.textContent, t.dataset.region])"
    )
    number = dict(names)["teal square"]
    square = card.find_element("css selector", f'.boxes [data-region="{number}"]')
    page.point(square)
    page.until(lambda: "teal square · score 0." in card.find_element("css selector", ".readout").text)
    assert page.count(".card:first-child .pointed .hot") >= 2
    page.visit("#show=patches")
    page.point(page.all(".card:first-child .cells rect")[0])
    page.until(lambda: "patch 1.00" in page.all(".card:first-child .readout")[0].text)


@pytest.mark.browser
def test_filters_and_search_find_what_the_shards_hold(page: Page, mixed_run: Path, ids: list[str]) -> None:
    """By label, score, status and words, over blocks of the index and pages: what remains is what a loop over the
    shards says, in order. Catches a block that is left out, a score of another label, a stale result."""
    shards = open_shards(mixed_run)
    rows = [(row, shards.sample(n, row).meta if row["status"] != "failed" else None) for n, row in shards.rows()]
    label = Counter(
        label for _, meta in rows if meta for label in {region["label"] for region in meta["regions"]}
    ).most_common(1)[0][0]

    def having(label: str | None, score: float) -> list[str]:
        return [
            row["id"]
            for row, meta in rows
            if meta and any(label in (None, r["label"]) and r["score"] >= score - 1e-6 for r in meta["regions"])
        ]

    page.visit()
    field = page.all("#label")[0]
    field.send_keys(label)
    page.until(lambda: page.ids() == having(label, 0)[:3])
    assert f"of {len(having(label, 0))} match" in page.all("#found")[0].text and len(having(label, 0)) > 3
    page.all("#next")[0].click()
    page.until(lambda: page.ids() == having(label, 0)[3:6])
    page("const s = document.getElementById('score'); s.value = 46; s.dispatchEvent(new Event('change'))")
    assert having(label, 0.46) != having(label, 0)
    page.until(lambda: page.ids() == having(label, 0.46)[:3])
    page.all("#clear")[0].click()
    page.until(lambda: page.ids() == ids[:3])
    for status, expected in (("failed", [ids[2]]), ("empty", [ids[1]])):
        page(f"const s = document.getElementById('status'); s.value = '{status}'; s.dispatchEvent(new Event('change'))")
        page.until(lambda expected=expected: page.ids() == expected)
        page.until(lambda: "1 match in 13" in page.all("#found")[0].text)
    assert page.count(".card .frame svg") == 1
    page.all("#clear")[0].click()
    page.until(lambda: page.ids() == ids[:3])
    words = rows[7][1]["caption"].upper()  # type: ignore[index]
    page.all("#q")[0].send_keys(words)
    page.until(
        lambda: page.ids() == [row["id"] for row, meta in rows if meta and words.lower() in meta["caption"].lower()]
    )
    page.visit("#q=teal+squ")
    assert page.ids() == [ids[0]]
    page.visit("#label=no+such+label")
    assert page.ids() == [] and "0 matches" in page.all("#found")[0].text
    page.visit("#tab=statistics")
    page.all(f'[data-table="count"] a[href="#label={label}"]')[0].click()
    page.until(lambda: page.ids() == having(label, 0)[:3])


@pytest.mark.browser
def test_paging_loads_what_it_shows(page: Page, ids: list[str]) -> None:
    """Forward, back, by number, with the browser's back button, to the last page; and of the data only the pages that
    were looked at are loaded. Catches a gallery that holds everything."""
    from selenium.webdriver.common.keys import Keys

    page.asked()
    page.visit()
    shown: list[str] = []
    for number in range(5):
        page.until(lambda number=number: page.ids() == ids[3 * number : 3 * number + 3])
        shown += page.ids()
        loaded = [url.rpartition("/")[2] for url in page.asked() if "/data/page-" in url]
        assert loaded == [f"page-{number:06d}.js"]
        assert page.count("#previous:disabled") == (number == 0) and page.count("#next:disabled") == (number == 4)
        if number < 4:
            page.all("#next")[0].click()
    assert shown == ids
    page.driver.back()
    page.until(lambda: page.ids() == ids[9:12])
    page.all("#page")[0].send_keys(Keys.CONTROL, "a", Keys.NULL, "1", Keys.ENTER)
    page.until(lambda: page.ids() == ids[:3])
    page.visit("#page=99")
    assert page.ids() == ids[12:]


@pytest.mark.browser
def test_the_report_works_by_keyboard(page: Page, ids: list[str]) -> None:
    """Arrows turn pages, / goes to the search, Enter enlarges, arrows go on to the next image, Escape comes back to
    where one was. Catches keys that act while somebody types."""
    from selenium.webdriver.common.keys import Keys

    page.visit()
    page.press(Keys.ARROW_RIGHT)
    page.until(lambda: page.ids() == ids[3:6])
    page.press(Keys.ARROW_LEFT)
    page.until(lambda: page.ids() == ids[:3])
    page("document.querySelectorAll('.enlarge')[0].focus()")
    page.press(Keys.ENTER)
    page.until(lambda: page.all("dialog h2") and page.all("dialog h2")[0].text == ids[0])
    page("document.querySelector('.regions a').focus()")
    page.until(lambda: "score" in page.all("dialog .readout")[0].text)
    page.press(Keys.ARROW_RIGHT)
    page.until(lambda: page.all("dialog h2")[0].text == ids[1])
    page.press(Keys.ESCAPE)
    page.until(lambda: page.count("dialog[open]") == 0)
    page.until(lambda: page("return [...document.querySelectorAll('.enlarge')].indexOf(document.activeElement)") == 1)
    page.press("/")
    assert page("return document.activeElement.id") == "q"
    page.press("bmt")
    page.until(lambda: page.ids() == [])
    assert page("return document.getElementById('q').value") == "bmt" and page.count('[data-show="boxes"]:checked') == 1


@pytest.mark.browser
def test_a_narrow_screen_shows_everything(page: Page) -> None:
    """360 pixels wide, and 1200 by 900 at a zoom of 200%, nothing sticks out to the side, on any part and with an image
    enlarged; in the review, the first button is on the screen together with the image."""
    sideways = "return document.documentElement.scrollWidth > innerWidth || document.body.scrollWidth > innerWidth"
    for size in ((360, 740), (600, 450)):
        for place in ("", "#show=patches", "#score=46&label=wall", "#tab=review", "#tab=statistics", "#tab=run"):
            page.visit(place, *size)
            assert not page(sideways), (place, size)
        page.visit("#tab=review", *size)
        bottom = "return document.querySelector('[data-verdict]').getBoundingClientRect().bottom"
        assert page(bottom) < size[1] + 1
    page.visit("", 360, 740)
    page.all(".enlarge")[0].click()
    page.until(lambda: page.count("dialog[open] .regions") == 1)
    assert not page(sideways)
    assert not page("const d = document.querySelector('.side'); return d.scrollWidth > d.clientWidth")


@pytest.mark.browser
def test_a_hostile_label_is_only_text(page: Page) -> None:
    """As label, caption and file name, on every part of the report: it is read and never run, and nothing is asked of
    the network. The page's own rule would stop it too. Catches innerHTML."""
    for place in (
        "",
        "#show=tags,boxes,masks,patches",
        f"#label={HOSTILE}",
        "#status=failed",
        "#tab=statistics",
        "#tab=run",
    ):
        page.visit(place)
        assert page("return window.hacked") is None
        assert page.count("main img, main b, main script") == 0
        asked = page.asked()
        assert len(asked) > 3 and all(url.startswith("file:") or url == "about:blank" for url in asked)
        assert page.complaints() == []
    page.visit()
    page.all(".enlarge")[0].click()
    page.until(lambda: page.count("dialog[open] .regions") == 1)
    assert HOSTILE in page("return [...document.querySelectorAll('.regions bdi')].map(e => e.textContent)")
    assert "<img" in page.all("dialog .caption")[0].text
    page("const s = document.createElement('script'); s.textContent = 'window.hacked = 2'; document.body.append(s)")
    assert page("return window.hacked") is None


@pytest.mark.browser
def test_a_report_with_a_part_missing_says_so(page: Page, report: Path, chromium: Any, tmp_path: Path) -> None:
    """Somebody copied index.html without its folders, or lost a file. Catches an empty page without a word."""
    half = tmp_path / "half"
    shutil.copytree(report, half)
    (half / "data/page-000001.js").unlink()
    torn = Page(chromium, half)
    torn.visit()
    torn.all("#next")[0].click()
    torn.until(lambda: "data/page-000001.js can't be read" in torn.all("#found")[0].text)
