"""The book, opened from `file://` as a reader without a network does."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from book import looking
from gleak_core.files import ROOT
from gleak_core.publish import book, notebooks, pages

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1200)]


def names() -> list[str]:
    """Return every page of the table of contents, and two that Sphinx adds."""
    import yaml

    toc = ROOT / "book" / "_toc.yml"
    if not toc.exists():
        return []
    content = yaml.safe_load(toc.read_text())
    files = [entry["file"] for part in content.get("parts", []) for entry in part["chapters"]]
    files += [entry["file"] for entry in content.get("chapters", [])]
    return [content["root"], *files, "genindex", "search"]


PAGES = [f"{name}.html" for name in names()]

Turn = Callable[..., AbstractContextManager[looking.Visit]]


@pytest.fixture(scope="module")
def turn(html: Path, browser: Browser) -> Iterator[Turn]:
    """Turn to a page of the book, in one tab for each look: a new one takes longer than a page."""
    with ExitStack() as stack:
        tabs: dict[str, looking.Visit] = {}

        @contextmanager
        def to(name: str, **how: Any) -> Iterator[looking.Visit]:
            look = repr(how)
            if look not in tabs:
                tabs[look] = stack.enter_context(looking.tab(browser, **how))
            try:
                looking.load(tabs[look], html / name)
                yield tabs[look]
            finally:
                looking.leave(tabs[look])

        yield to


def test_the_entry_page_leads_to_the_book(html: Path, browser: Browser) -> None:
    with looking.visit(browser, html / "index.html", lands="**/book/index.html") as seen:
        assert seen.page.locator("article h1").count() == 1
        assert seen.troubles == []


def test_every_chapter_has_a_page(html: Path) -> None:
    for name in notebooks.find(ROOT):
        assert (html / "chapters" / f"{name}.html").exists()


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_is_whole_and_legible(turn: Turn, name: str, scheme: str) -> None:
    with turn(name, scheme=scheme) as seen:
        assert seen.page.locator("html").get_attribute("data-theme") == scheme
        assert looking.unrendered_maths(seen.page) == []
        assert looking.unnamed_images(seen.page) == []
        assert looking.sideways(seen.page) == []
        assert looking.faint_text(seen.page) == []
        assert seen.troubles == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_a_phone(turn: Turn, name: str) -> None:
    with turn(name, size=looking.PHONE) as seen:
        assert looking.sideways(seen.page) == []
        assert seen.troubles == []


@pytest.mark.parametrize("name", PAGES[:1] + [name for name in PAGES if "chapters/" in name])
def test_the_keyboard_is_enough(turn: Turn, name: str) -> None:
    with turn(name) as seen:
        assert looking.keyboard(seen.page) == []


def test_search_finds_pages_and_leads_there(html: Path, browser: Browser) -> None:
    address = (html / "search.html").as_uri()
    with looking.visit(browser, f"{address}?q=gradient") as seen:
        assert len(looking.search_results(seen.page)) >= 3
        seen.page.locator("#search-results li a").first.click()
        seen.page.wait_for_selector("article h1")
        assert seen.troubles == []
    with looking.visit(browser, f"{address}?q=zzyzxqq") as seen:
        assert looking.search_results(seen.page) == []


def test_there_is_maths_to_render(turn: Turn) -> None:
    with turn("book/notation.html") as seen:
        assert seen.page.locator("mjx-container").count() > 10


def test_nothing_dead_fetched_unnamed_or_of_this_machine(html: Path) -> None:
    read = pages.read(html)
    assert len(read) >= len(PAGES)
    assert list(pages.dead_links(read, html)) == []
    assert list(pages.fetched(read, html)) == []
    assert list(pages.unnamed_images(read, html)) == []
    assert list(pages.machine_paths(html, ROOT)) == []


def test_a_second_build_does_nothing(html: Path) -> None:
    again = book.build(root=html.parent.parent)
    assert not again.rebuilt
    assert again.index == html / "index.html"
    assert sum(again.seconds.values()) < 5


def test_every_executed_page_is_in_the_ledger(html: Path) -> None:
    text = (html / "book" / "ledger.html").read_text()
    for name in notebooks.find(ROOT):
        assert f"../chapters/{name}.html" in text
        chapter = (html / "chapters" / f"{name}.html").read_text()
        assert "gleak-run" in chapter
        assert "Reduced run: not a reproduction." in chapter
