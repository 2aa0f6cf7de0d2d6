"""The comparison viewer in a browser: both sides move together, and without scripts a filmstrip."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Browser, Locator, Page
from support import made_up_run

from book import looking
from gleak_core import figures
from gleak_core.files import ROOT

pytestmark = pytest.mark.browser

SIZE = 6
NAMES = ["cat", '<b>"dog"']
PRIVATE = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
BROKEN = made_up_run(PRIVATE, far=0.4, seed=4)
BROKEN.history.frames[6:, 1] = math.nan
RUNS = {
    ("CPL", "level-2"): made_up_run(PRIVATE, attack="CPL", seed=1),
    ("CPL", "uniform"): made_up_run(PRIVATE, attack="CPL", far=0.1, seed=2),
    ("DLG", "uniform"): made_up_run(PRIVATE, far=0.7, steps=50, seed=3),
    ("DLG", "N(0, 1)"): BROKEN,
}
REEL = figures.reel(RUNS, PRIVATE)
KEYS = list(RUNS)
LAST = len(REEL.steps) - 1

PAGE = """<!doctype html><html lang="en" data-theme="light"><title>x</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
  html {{ --pst-color-text-base: #222; --pst-color-text-muted: #48566b;
    --pst-color-background: #fff; }}
  body {{ color: var(--pst-color-text-base); background: var(--pst-color-background); }}
  html[data-theme="dark"] {{ --pst-color-text-base: #ced6dd; --pst-color-text-muted: #9ca4af;
    --pst-color-background: #14181e; }}
</style>
<link rel="stylesheet" href="{assets}/custom.css">
<link rel="stylesheet" href="{assets}/scrubber.css">
<script defer src="{assets}/scrubber.js"></script>
<article class="bd-article"><div class="cell_output"><div class="text_html">{one}</div></div>
<div class="cell_output"><div class="text_html">{two}</div></div></article></html>"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with two viewers, as the book loads them."""
    path = tmp_path_factory.mktemp("scrubber") / "page.html"
    one = figures.scrubber(RUNS, PRIVATE, names=NAMES, alt="Noise clears up.", caption="One.")
    two = figures.scrubber({"DLG": BROKEN, "again": BROKEN}, PRIVATE, alt="Twice the same.")
    assets = (ROOT / "book" / "_static").as_uri()
    path.write_text(PAGE.format(assets=assets, one=one.html, two=two.html), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def opened(written: Path, browser: Browser) -> Iterator[looking.Visit]:
    with looking.visit(browser, written) as seen:
        seen.page.set_default_timeout(5000)
        yield seen


@pytest.fixture
def page(opened: looking.Visit) -> Iterator[Page]:
    """The page as it is when it has just been opened; whatever a test does must not trouble it."""
    opened.page.set_viewport_size(looking.DESK)  # type: ignore[arg-type]
    opened.page.emulate_media(media="screen", reduced_motion="reduce")
    opened.page.reload()
    opened.page.wait_for_function("document.querySelectorAll('.gs-built').length === 2")
    yield opened.page
    assert opened.troubles == []


def figure(page: Page, which: int = 0) -> Locator:
    return page.locator(".gleak-scrubber").nth(which)


def choose(page: Page, what: str, value: str, which: int = 0) -> None:
    figure(page, which).get_by_role("combobox", name=what, exact=True).select_option(value)


def slider(page: Page, which: int = 0) -> Locator:
    return figure(page, which).get_by_role("slider", name="Step")


def at(page: Page, which: int = 0) -> int:
    return int(slider(page, which).input_value())


def shown(page: Page, which: int = 0) -> list[list[int]]:
    """Return the pixels of the left, the private and the right picture."""
    return figure(page, which).evaluate(
        """figure => ["left", "middle", "right"].map(side => {
             const picture = figure.querySelector(`.gs-picture.gs-${side} canvas`);
             const copy = new OffscreenCanvas(picture.width, picture.height);
             const pen = copy.getContext("2d", {willReadFrequently: true});
             pen.drawImage(picture, 0, 0);
             return [...pen.getImageData(0, 0, copy.width, copy.height).data]
               .filter((_, i) => i % 4 !== 3);
           })"""
    )


def expected(left: tuple[str, str], right: tuple[str, str], step: int, image: int) -> list:
    sides = [REEL.films[KEYS.index(key)].tiles[step, image] for key in (left, right)]
    return [tile.flatten().tolist() for tile in (sides[0], REEL.private[image], sides[1])]


def test_the_first_two_attacks_stand_beside_the_private_image(page: Page) -> None:
    assert shown(page) == expected(KEYS[0], KEYS[2], 0, 0)
    assert figure(page).locator(".gs-view").get_attribute("aria-label") == "Noise clears up."
    assert not figure(page).locator("img").is_visible()
    assert figure(page).get_by_text("One.").is_visible()


def test_one_key_moves_both_sides_and_the_marker(page: Page) -> None:
    slider(page).focus()
    marker = figure(page).locator("circle.gs-marker")
    before = float(marker.get_attribute("cx") or 0)
    for key, now in (
        *(("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("ArrowUp", 2), ("End", LAST)),
        *(("Home", 0), ("PageUp", 1), ("PageDown", 0), ("ArrowLeft", 0), ("ArrowRight", 1)),
    ):
        page.keyboard.press(key)
        assert at(page) == now, key
        assert shown(page) == expected(KEYS[0], KEYS[2], now, 0)
    assert float(marker.get_attribute("cx") or 0) > before


def test_the_words_follow(page: Page) -> None:
    live = figure(page).locator("[aria-live=polite]")
    slider(page).press("End")
    psnr = REEL.films[2].measures["psnr"][-1, 0]
    assert (live.text_content() or "").startswith("Step 100 of 100. Left, CPL, level-2: PSNR 100.0")
    assert f"Right, DLG, uniform: PSNR {psnr:.1f} dB" in (live.text_content() or "")
    assert "(ended at 50: failed)" in (live.text_content() or "")
    assert slider(page).get_attribute("aria-valuetext") == "step 100 of 100"
    assert figure(page).get_by_text("Step 100 of 100", exact=True).is_visible()


def test_the_slider_is_dragged(page: Page) -> None:
    box = slider(page).bounding_box()
    assert box
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 10, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    assert at(page) == LAST // 2
    assert shown(page) == expected(KEYS[0], KEYS[2], LAST // 2, 0)
    page.mouse.move(box["x"] + box["width"] + 50, middle)
    page.mouse.up()
    assert at(page) == LAST


def test_the_curve_is_dragged_and_its_marker_stands_above_the_thumb(page: Page) -> None:
    plot = figure(page).locator(".gs-plot")
    plot.scroll_into_view_if_needed()
    box, below = plot.bounding_box(), slider(page).bounding_box()
    assert box and below
    for share, now in ((0.3, 3), (0.9, 9), (2, LAST), (-1, 0), (0.5, 5)):
        x = below["x"] + 10 + (below["width"] - 20) * share  # the thumb is 20 pixels wide
        page.mouse.move(x, box["y"] + 40)
        page.mouse.down() if share == 0.3 else None
        assert at(page) == now
        assert shown(page) == expected(KEYS[0], KEYS[2], now, 0)
    here = figure(page).locator(".gs-now").bounding_box()
    assert here and abs(here["x"] - x) < 1.5
    page.mouse.up()
    page.mouse.move(box["x"] + 100, box["y"] + 40)
    assert at(page) == 5  # let go
    page.keyboard.press("ArrowRight")
    assert at(page) == 6


def test_another_run_or_image_is_chosen(page: Page) -> None:
    slider(page).press("End")
    choose(page, "Left start", "uniform")
    assert shown(page) == expected(KEYS[1], KEYS[2], LAST, 0)
    choose(page, "Left attack", "DLG")  # and the start is kept
    assert shown(page) == expected(KEYS[2], KEYS[2], LAST, 0)
    choose(page, "Right start", "N(0, 1)")
    choose(page, "Right attack", "CPL")  # which has no such start
    assert shown(page) == expected(KEYS[2], KEYS[0], LAST, 0)
    starts = figure(page).get_by_role("combobox", name="Right start").locator("option")
    assert starts.all_inner_texts() == ["level-2", "uniform"]
    choose(page, "Image", NAMES[1])
    assert shown(page) == expected(KEYS[2], KEYS[0], LAST, 1)
    assert page.locator("b").count() == 0


def test_another_curve_is_chosen(page: Page) -> None:
    for measure in ("MSE", "gradient distance", "PSNR"):
        before = figure(page).locator("path.gs-left").get_attribute("d")
        choose(page, "Curve", measure)
        assert figure(page).locator("path.gs-left").get_attribute("d") != before
        assert measure in (figure(page).locator(".gs-plot").get_attribute("aria-label") or "")


def test_a_run_that_diverged_says_so(page: Page) -> None:
    badge = figure(page).locator(".gs-picture.gs-right").get_by_text("diverged")
    choose(page, "Right start", "N(0, 1)")
    choose(page, "Image", NAMES[1])
    slider(page).press("End")
    assert badge.is_visible()
    assert "Right, DLG, N(0, 1): diverged" in (
        figure(page).locator(".gs-live").text_content() or ""
    )
    slider(page).press("Home")
    assert not badge.is_visible()


def test_two_viewers_do_not_know_of_each_other(page: Page) -> None:
    first = shown(page)
    slider(page, 1).press("End")
    choose(page, "Image", "image 2", 1)
    assert (at(page), at(page, 1)) == (0, LAST)
    assert shown(page) == first
    starts = figure(page, 1).get_by_role("combobox", name="Left start")
    assert starts.count() == 0  # these runs have names alone


def test_it_plays_to_the_end_unless_less_motion_is_asked_for(page: Page) -> None:
    play, pause = (figure(page).get_by_role("button", name=name) for name in ("Play", "Pause"))
    assert not play.is_visible()
    page.emulate_media(reduced_motion="no-preference")
    slider(page).press("End")
    play.click()
    page.wait_for_function("document.querySelector('.gs-bar input').value >= 2")
    assert figure(page).locator(".gs-live").get_attribute("aria-live") == "off"
    pause.click()
    now = at(page)
    page.wait_for_timeout(400)
    assert at(page) == now
    play.click()
    play.wait_for(timeout=5000)
    assert at(page) == LAST
    assert figure(page).locator(".gs-live").get_attribute("aria-live") == "polite"


def test_the_keyboard_reaches_every_control_and_one_sees_where_one_is(page: Page) -> None:
    page.emulate_media(reduced_motion="no-preference")
    [problem] = looking.keyboard(page, steps=16)
    assert "not a link to the main text" in problem  # this page has none, and no other fault
    assert figure(page).locator("select, input, button").count() == 8


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390, 320])
def test_it_fits_and_can_be_read(page: Page, scheme: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.evaluate("theme => document.documentElement.dataset.theme = theme", scheme)
    slider(page).press("End")
    page.wait_for_timeout(50)
    assert looking.sideways(page) == []
    assert looking.faint_text(page) == []
    outside = (
        figure(page)
        .locator(".gs-view *:not(.gs-live)")
        .evaluate_all(
            """all => { const box = all[0].closest(".gs-view").getBoundingClientRect();
             return all.filter(e => e.getBoundingClientRect().right > box.right + 1)
               .map(e => e.outerHTML.slice(0, 80)); }"""
        )
    )
    assert outside == []


def test_on_paper_there_is_the_filmstrip(page: Page) -> None:
    page.emulate_media(media="print")
    assert figure(page).locator("img").is_visible()
    assert not figure(page).locator(".gs-view").is_visible()


def test_without_scripts_there_is_the_filmstrip(written: Path, browser: Browser) -> None:
    context = browser.new_context(java_script_enabled=False)
    try:
        page = context.new_page()
        page.goto(written.as_uri())
        assert page.get_by_alt_text("Noise clears up.").is_visible()
        assert page.locator("canvas, select, input, button").count() == 0
    finally:
        context.close()


def test_what_cannot_be_read_leaves_the_filmstrip(
    written: Path, browser: Browser, tmp_path: Path
) -> None:
    path = tmp_path / "page.html"
    path.write_text(written.read_text().replace("iVBORw0KGgo", "AAAA", 3), encoding="utf-8")
    with looking.visit(browser, path) as seen:
        seen.page.wait_for_selector(".gs-built")  # the other one
        assert figure(seen.page).locator("img").is_visible()
        assert any("could not be built" in trouble for trouble in seen.troubles)
