"""The gallery of a report as a tool: label colors, orders, links, names that can be read, flags, zoom."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageColor

from pad_pipeline.report import overlay
from pad_pipeline.report.colors import COLORS, color_of, label_hash
from pad_pipeline.shards.reader import open_shards
from tests.sharing.browser import Page
from tests.sharing.conftest import Pad
from tests.sharing.mixed_run import HOSTILE
from tests.sharing.test_report_review import saved

LINEAR_TO_LMS = [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]]
LMS_TO_LAB = [[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]
SIGHTS = {
    "normal": np.eye(3),
    "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritanopia": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}
"""What eyes make of linear RGB (Machado, Oliveira and Fernandes 2009, severity 1)."""


def test_any_two_colors_can_be_distinguished() -> None:
    """In OKLab, as seen with each kind of color blindness. Catches a color that is added by taste."""
    rgb = np.array([ImageColor.getrgb(color) for color in COLORS]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    assert len(COLORS) >= 16
    for sight, seen in SIGHTS.items():
        lab = np.cbrt((linear @ np.transpose(seen)).clip(0, 1) @ np.transpose(LINEAR_TO_LMS)) @ np.transpose(LMS_TO_LAB)
        nearest = min(float(np.linalg.norm(one - other)) for one, other in combinations(lab, 2))
        assert nearest > 0.075, (sight, nearest)


@pytest.mark.browser
def test_a_label_has_one_color_everywhere(page: Page) -> None:
    """The same in every image, in the report and in Python's drawings. Catches a color that follows the position in the
    list of regions, which was so."""
    labels = ["dog", "", "Straße", HOSTILE, "\N{DOG FACE} 犬", "a" * 300]
    page.visit()
    assert page("return COLORS") == list(COLORS)
    assert page("return arguments[0].map(labelHash)", labels) == [label_hash(label) for label in labels]
    colors = defaultdict(set)
    for number in range(2, 6):
        page.visit(f"#page={number}")
        strokes = """return [...document.querySelectorAll('.card')].flatMap(card =>
          [...card.querySelectorAll('.names text')].map(text => [text.textContent,
            card.querySelector(`.masks [data-region="${text.dataset.region}"]`).getAttribute('fill')]))"""
        for label, color in page(strokes):
            colors[label].add(ImageColor.getrgb(color))
    assert len(colors) > 10 and all(found == {color_of(label)} for label, found in colors.items())


@pytest.mark.browser
def test_images_come_in_the_chosen_order(page: Page, mixed_run: Path, ids: list[str]) -> None:
    """By the highest and by the lowest score, of the label if one is chosen, and at random by the seed. Catches an
    order within pages only, and hidden regions that decide the order."""
    shards = open_shards(mixed_run)
    scores: dict[str, list[float]] = {one: [] for one in ids}
    of_label: dict[str, list[float]] = defaultdict(list)
    for name, row in shards.rows():
        if row["status"] != "failed":
            for region in shards.sample(name, row).meta["regions"]:
                scores[row["id"]].append(region["score"])
                if region["label"] == "wall":
                    of_label[row["id"]].append(region["score"])

    def order(place: str) -> list[str]:
        page.visit(place)
        found = [ids[number] for number in page("return results.found")]
        assert page.ids() == found[:3]
        return found

    highest = sorted(ids, key=lambda one: -max(scores[one], default=-1))
    assert order("#sort=highest") == highest
    lowest = sorted(ids, key=lambda one: min(scores[one], default=2))
    assert order("#sort=lowest") == lowest
    least = sorted((one for one in ids if max(scores[one], default=0) > 0.46), key=lambda one: ids.index(one))
    above = {one: min(score for score in scores[one] if score >= 0.46 - 1e-9) for one in least}
    assert order("#sort=lowest&score=46") == sorted(least, key=lambda one: above[one])
    assert order("#sort=highest&label=wall") == sorted(of_label, key=lambda one: (-max(of_label[one]), ids.index(one)))
    shuffled = order("#sort=random")
    assert sorted(shuffled) == sorted(ids) and shuffled != ids
    assert order("#sort=random") == shuffled and order("#sort=random&seed=2") != shuffled
    page.visit()
    page("const s = document.getElementById('sort'); s.value = 'lowest'; s.dispatchEvent(new Event('change'))")
    page.until(lambda: page.ids() == lowest[:3])


@pytest.mark.browser
def test_tags_and_labels_lead_to_their_images(page: Page) -> None:
    """A tag on a card, and a region in the enlarged image, by mouse and by keyboard; the way back is the browser's.
    Catches a link that stays behind the enlarged image."""
    from selenium.webdriver.common.keys import Keys

    page.visit()
    tag = page.all(".card:first-child .tags a")[-1]
    label = tag.text
    tag.click()
    page.until(
        lambda: page.all("#label")[0].get_attribute("value") == label and "1 match" in page.all("#found")[0].text
    )
    page.driver.back()
    page.until(lambda: page.all("#label")[0].get_attribute("value") == "" and len(page.ids()) == 3)
    page.all(".enlarge")[0].click()
    page.until(lambda: page.count("dialog[open] .regions a") == 2)
    page("document.querySelector('.regions a').focus()")
    name = page("return document.querySelector('.regions bdi').textContent")
    page.press(Keys.ENTER)
    page.until(lambda: page.count("dialog[open]") == 0 and page.all("#label")[0].get_attribute("value") == name)
    page.until(lambda: "regions in" in page.all("#kept")[0].text or "region in" in page.all("#kept")[0].text)
    assert page("return window.hacked") is None


@pytest.mark.browser
def test_names_do_not_lie_on_one_another(page: Page) -> None:
    """On the screen, no name that is shown overlaps another one of its image or leaves it, in cards and enlarged.
    Catches names that pile up."""
    measure = """return [...document.querySelectorAll(arguments[0] + ' .frame svg')].map(svg => {
      const rect = (e) => { const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]; };
      const image = rect(svg.querySelector('image'));
      const names = [...svg.querySelectorAll('.names text:not(.waits)')].map(rect);
      return [image, names, svg.querySelectorAll('text').length];
    })"""
    names = 0
    for place in ("#page=2", "#page=3"):
        page.visit(place)
        page.all(".enlarge")[0].click()
        page.until(lambda: page.count("dialog[open] .regions") == 1)
        for where in ("#cards", "dialog"):
            for image, rects, of_image in page(measure, where):
                assert len(rects) >= of_image / 3
                names += len(rects)
                for one, other in combinations(np.array(rects), 2):
                    shared = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
                    assert shared.min() < 1, (place, where, one, other)
                for left, top, right, bottom in rects:
                    assert left > image[0] - 2 and right < image[2] + 4 and top > image[1] - 3 and bottom < image[3] + 4
    assert names > 40


def test_names_in_drawings_do_not_pile_up() -> None:
    """In `pad show`: of ten boxes at one place, those names are drawn that have a place of their own. Catches black
    blocks that hide the image."""
    image = Image.new("RGB", (200, 200), "white")
    regions: list[Any] = [{"label": "elephant", "score": 0.5, "box": [60, 60, 90 + n, 90 + n]} for n in range(10)]
    drawn = np.asarray(overlay._boxes(image, regions, 1.0))
    dark = (drawn == overlay.INK).all(-1).sum()
    assert 0 < dark < 0.2 * 200 * 200


@pytest.mark.browser
def test_flags_become_a_list_of_keys(page: Page, pad: Pad, mixed_run: Path, tmp_path: Path) -> None:
    """Images are flagged by mouse and by key, on cards and enlarged; the flags outlive the page, filter the gallery,
    and are saved as a file for `pad filter --keys`. Catches ids in place of keys, and a flag of another run."""
    shards = open_shards(mixed_run)
    rows = [row for _, row in shards.rows()]
    page.visit()
    page("localStorage.clear(); localStorage.setItem('pad-flag another ' + arguments[0], '1')", rows[2]["key"])
    page.visit()
    assert not page.all("#flags")[0].is_displayed()
    page.all(".card:first-child .flag")[0].click()
    page("document.querySelectorAll('.enlarge')[1].focus()")
    page.press("f")
    page.until(lambda: page.all("#flagged")[0].text == "2 images flagged")
    page.press("f")
    page.until(lambda: page.all("#flagged")[0].text == "1 image flagged")
    page.visit("#page=3")
    page.all(".enlarge")[1].click()
    page.until(lambda: page.count("dialog[open] .flag") == 1)
    page.press("f")
    page.until(
        lambda: page.count("dialog .flag[aria-pressed=true]") == page.count(".card .flag[aria-pressed=true]") == 1
    )
    page.visit("#status=flagged")
    assert page.ids() == [rows[0]["id"], rows[7]["id"]]
    path = saved(page, tmp_path, "save-flags", "keys.txt")
    assert path.read_text().split() == sorted([rows[0]["key"], rows[7]["key"]])
    assert pad("filter", mixed_run, "--keys", path, "--out", tmp_path / "flagged", "--engine", "local").code == 0
    assert [row["key"] for _, row in open_shards(tmp_path / "flagged").rows()] == [rows[0]["key"], rows[7]["key"]]


@pytest.mark.browser
def test_failures_and_their_keys_are_files(page: Page, report: Path) -> None:
    """The statistics name each reason, and link to the keys and to the reasons. Catches a link to nothing."""
    page.visit("#tab=statistics")
    links = [link.get_attribute("href") for link in page.all("#failures ~ p a, .panel a[download]")]
    files = [report / link.rpartition("/")[2] for link in links if "#" not in link]
    assert [path.name for path in files] == ["failed-keys.txt", "failed.jsonl"]
    (line,) = files[1].read_text().splitlines()
    assert files[0].read_text() == json.loads(line)["key"] + "\n" and json.loads(line)["reason"]


@pytest.mark.browser
def test_an_enlarged_image_zooms_and_pans(page: Page) -> None:
    """By key, button, wheel and drag: what is under the pointer stays there, the view stays within the image, and names
    keep their size. Catches a drag that loses the image, and arrows that go to the next image instead."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    page.visit("#page=2")
    page.all(".enlarge")[0].click()
    page.until(lambda: page.count("dialog[open] .zoom") == 1)
    view = "return document.querySelector('dialog svg').getAttribute('viewBox').split(' ').map(Number)"
    font = "return parseFloat(getComputedStyle(document.querySelector('dialog text')).fontSize) / openedFrame().view[2]"
    whole, size = page(view), page(font)
    page.press("+")
    page.until(lambda: page(view)[2] == pytest.approx(whole[2] / 1.5))
    assert page(font) == pytest.approx(size, rel=0.01) and page.all("dialog .level")[0].text == "150%"
    ActionChains(page.driver).key_down(Keys.SHIFT).send_keys(Keys.ARROW_LEFT).key_up(Keys.SHIFT).perform()
    page.until(lambda: page(view)[0] < whole[2] / 6 - 1)
    page.press("0")
    page.until(lambda: page(view) == whole)
    page("""const s = document.querySelector('dialog image').getBoundingClientRect();
      document.querySelector('dialog svg').dispatchEvent(new WheelEvent('wheel',
        {deltaY: -240, clientX: s.left + 1, clientY: s.top + 1, cancelable: true}))""")
    zoomed = page(view)
    assert zoomed[2] < whole[2] and zoomed[0] < 1 and zoomed[1] < 1
    svg = page.all("dialog svg")[0]
    ActionChains(page.driver).move_to_element(svg).click_and_hold().move_by_offset(-60, -40).release().perform()
    moved = page(view)
    assert moved[0] > zoomed[0] + 1 and moved[1] > zoomed[1] + 1
    ActionChains(page.driver).move_to_element(svg).click_and_hold().move_by_offset(300, 300).release().perform()
    assert page(view)[:2] == [0, 0]
    page.all("dialog [aria-label='Show the whole image']")[0].click()
    assert page(view) == whole
    page.press(Keys.ARROW_RIGHT)
    page.until(lambda: page.all("dialog h2")[0].text == page.ids()[1])


@pytest.mark.browser
def test_every_other_control_does_what_it_says(page: Page) -> None:
    """The copy button, the zoom buttons, the menus, sample and seed. Catches a control that does nothing."""
    choose = (
        "const s = document.getElementById(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('change'))"
    )
    page.visit("#score=46")
    page.all("#copy")[0].click()
    page.until(lambda: page.all("#copied")[0].text)
    page(choose, "sort", "random")
    page.until(lambda: "sort=random" in page("return location.hash") and page.all("#shuffle")[0].is_displayed())
    page.all("#shuffle")[0].click()
    page.until(lambda: "seed=" in page("return location.hash"))
    page("localStorage.clear()")
    page(choose, "status", "flagged")
    page.until(lambda: page.all("#found")[0].text == "0 matches in 13 images")
    page.visit("#page=2")
    page.all(".enlarge")[0].click()
    page.until(lambda: page.count("dialog[open] .zoom") == 1)
    for name, level in (("Zoom in", "150%"), ("Zoom in", "225%"), ("Zoom out", "150%")):
        page.all(f"dialog [aria-label='{name}']")[0].click()
        assert page.all("dialog .level")[0].text == level
    page.visit("#tab=review")
    page(choose, "sample", "7")
    page.until(lambda: page.all("#progress")[0].text == "1 of 7")
    page(choose, "seed", "9")
    page.until(lambda: "seed=9" in page("return location.hash") and page("return state.seed") == 9)
    page.until(lambda: page.all("#progress")[0].text == "1 of 7")
    page.all("#review [aria-label='Zoom in']")[0].click()
    assert page.all("#review .level")[0].text == "150%"
    assert page.complaints() == []


@pytest.mark.browser
def test_an_odd_address_is_no_error(page: Page, ids: list[str]) -> None:
    """Numbers that are none, negative, endless or too large, and names that do not exist. Catches a page that stays
    empty because of a link that somebody has changed."""
    for place in (
        "#score=x&patches=-1&page=-3&sort=up&seed=-5&show=masks,x",
        "#page=1e99&seed=99999999999&only=first&tab=z",
    ):
        page.visit(place)
        assert set(page.ids()) <= set(ids) and page.ids()
    page.visit("#score=1e999&patches=1e999&iou=100.4&label_score=-Infinity")
    assert page.ids() == [] and page.all("#score")[0].get_attribute("value") == "100"
    page.visit("#tab=review&sample=1e9&seed=x")
    assert page.all("#progress")[0].text == "1 of 1"
    assert page.complaints() == []


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True])
def test_texts_can_be_read(page: Page, dark: bool) -> None:
    """A contrast of 4.5 (WCAG AA) of the texts of all new parts, light and dark. Catches a color that is set for one of
    the two only."""
    features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    measure = """return [...document.querySelectorAll(arguments[0])].filter(e => e.offsetParent).map(e => {
      const behind = (e) => { const c = getComputedStyle(e).backgroundColor;
        return /, 0\\)/.test(c) && e.parentElement ? behind(e.parentElement) : c; };
      return [e.textContent.trim().slice(0, 20), getComputedStyle(e).color, behind(e)]; })"""
    parts = (
        "#kept, #retarget, #copy, #found, .slider label, .slider output, .tags a, .flag, #review-label, #population, "
    )
    parts += ".choices button:enabled, .judge .quiet, .judge .button, #precision, .level"
    seen = 0
    for place in ("#score=46&label=wall", "#tab=review"):
        page.visit(place)
        for text, *colors in page(measure, parts):
            lights = []
            for color in colors:
                rgb = np.array(color[color.index("(") + 1 : -1].split(",")[:3], float) / 255
                linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
                lights.append(float(linear @ [0.2126, 0.7152, 0.0722]))
            contrast = (max(lights) + 0.05) / (min(lights) + 0.05)
            assert contrast >= 4.5, (place, text, colors, contrast)
            assert (lights[1] < 0.2) == dark
            seen += 1
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert seen > 20
