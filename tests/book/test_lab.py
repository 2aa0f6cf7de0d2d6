"""The lab in the built book: framed, in the page's colours, with the page's address."""

from pathlib import Path
from typing import Any

import pytest
from book.looking import visit
from lab.test_page import READY, until
from playwright.sync_api import Browser

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def framed(page: Any) -> Any:
    until(page, "document.querySelector('#gleak-lab').style.height.endsWith('px')")
    frame = next(
        one
        for one in page.frames
        if one.url.startswith("file:") and "lab.html" in one.url and one != page.main_frame
    )
    until(frame, READY)
    return frame


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_frames_the_lab(html: Path, browser: Browser, scheme: str) -> None:
    with visit(browser, html / "book" / "lab.html", scheme=scheme) as seen:
        frame = framed(seen.page)
        until(frame, f"document.documentElement.dataset.theme === {scheme!r}")
        assert not frame.locator("h1").is_visible()
        frame.click("#go")
        until(frame, "lab.lanes[0].points.length > 5")
        frame.click("#go")
        until(frame, "!lab.running")
        # All of it shows, without a second scroll bar.
        inside = frame.evaluate("document.documentElement.scrollHeight")
        assert inside <= seen.page.evaluate("document.querySelector('#gleak-lab').clientHeight")
        assert seen.troubles == []


def test_an_address_sets_the_lab_and_the_lab_the_address(html: Path, browser: Browser) -> None:
    address = (html / "book" / "lab.html").as_uri()
    with visit(browser, f"{address}#attack=cpl&start=black") as seen:
        frame = framed(seen.page)
        until(frame, "lab.lanes[0].settings.attack === 'cpl'")
        assert frame.input_value("#start-0") == "black"
        seen.page.evaluate("location.hash = 'attack=division'")
        until(frame, "lab.lanes[0].settings.attack === 'division'")
        frame.locator("summary").click()
        frame.select_option("#defence-0", "int8")
        until(seen.page, "location.hash === '#attack=division&defence=int8'")
        frame.click("#link")
        assert frame.input_value("#address") == f"{address}#attack=division&defence=int8"
        assert seen.troubles == []


def test_a_heading_s_address_is_no_setting(html: Path, browser: Browser) -> None:
    with visit(browser, f"{(html / 'book' / 'lab.html').as_uri()}#what-to-try") as seen:
        frame = framed(seen.page)
        assert "does not have" not in frame.inner_text("#story")
        assert seen.page.evaluate("location.hash") == "#what-to-try"


def test_chapters_lead_to_the_lab(html: Path) -> None:
    for page in ("book/index.html", "chapters/01_dlg_critique.html", "chapters/02_cpl.html"):
        assert "lab.html" in (html / page).read_text(encoding="utf-8").partition("<article")[2], (
            page
        )
