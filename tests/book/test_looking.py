"""Each check can fail: a broken page in small, and the words that it earns."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from book import looking
from gleak_core.publish import pages

pytestmark = pytest.mark.browser

GOOD = """<!doctype html><html lang="en"><title>x</title>
<style>body { color: #222; background: #fff } a:focus { outline: 2px solid #06c }</style>
<a href="#main">Skip to main content</a><a href="#main">again</a>
<article id="main"><p>text</p><span class="math"><mjx-container>x</mjx-container></span>
<img alt="A dot" src="data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="></article></html>"""

BAD: dict[str, tuple[Callable[[Page], list[str]], str, str, str]] = {
    "maths": (looking.unrendered_maths, "<mjx-container>x</mjx-container>", "x^2", "not rendered"),
    "alt": (looking.unnamed_images, 'alt="A dot"', 'alt=" "', "no alt text"),
    "lost": (looking.unnamed_images, "R0lG", "AAAA", "does not show"),
    "wide": (looking.sideways, "<p>text</p>", '<p style="width: 3000px">text</p>', "sticks out by"),
    "faint": (looking.faint_text, "<p>text</p>", '<p style="color: #aaa">text</p>', "contrast 2."),
    "veiled": (looking.faint_text, "<p>", '<p style="background: rgb(0 0 0 / .8)">', "contrast 1."),
    "no skip link": (looking.keyboard, "Skip to main content", "Home", "not a link to the main"),
    "no focus": (looking.keyboard, "2px solid #06c", "none", "focus cannot be seen"),
    "no links": (looking.keyboard, "<a ", "<b ", "the Tab key reaches nothing"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_check_can_fail(case: str, browser: Browser, tmp_path: Path) -> None:
    check, old, new, said = BAD[case]
    assert old in GOOD
    path = tmp_path / "page.html"
    with looking.tab(browser) as seen:
        for content, expected in ((GOOD, False), (GOOD.replace(old, new), True)):
            path.write_text(content)
            looking.load(seen, path)
            found = check(seen.page)
            assert any(said in problem for problem in found) is expected, found
            assert bool(found) is expected


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ('<img alt="x" src="http://127.0.0.1:9/x.png">', "asks the network for http://127.0.0.1:9"),
        ("<script>console.error('oh')</script>", "console error: oh"),
        ("<script>nothing.here</script>", "error: nothing is not defined"),
        ('<script src="gone.js"></script>', "could not load"),
    ],
)
def test_troubles_of_a_page_are_noted(
    broken: str, said: str, browser: Browser, tmp_path: Path
) -> None:
    path = tmp_path / "page.html"
    path.write_text(GOOD)
    with looking.tab(browser) as seen:
        looking.load(seen, path)
        assert seen.troubles == []
        path.write_text(GOOD + broken)
        looking.load(seen, path)
        assert any(said in trouble for trouble in seen.troubles), seen.troubles


def test_a_tab_that_was_left_is_as_good_as_new(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(f"{GOOD}<script>localStorage.x = sessionStorage.x = 1; nothing.here</script>")
    with looking.tab(browser) as seen:
        looking.load(seen, path)
        assert seen.troubles == ["error: nothing is not defined"]
        looking.leave(seen)
        assert (seen.page.url, seen.troubles) == ("about:blank", [])
        path.write_text(GOOD)
        looking.load(seen, path)
        assert seen.page.evaluate("[localStorage.length, sessionStorage.length]") == [0, 0]
        assert seen.troubles == []


@pytest.mark.parametrize(
    ("check", "broken", "said"),
    [
        (pages.dead_links, '<a href="gone.html">x</a>', "a.html links to gone.html, which is not"),
        (pages.dead_links, '<a href="b.html#no">x</a>', "which has no such anchor"),
        (pages.dead_links, '<a href="#no">x</a>', "which has no such anchor"),
        (pages.unnamed_images, '<img src="x.png">', "a.html shows x.png without alt text"),
        (
            pages.fetched,
            '<script src="https://x.y/z.js"></script>',
            "the network for https://x.y/z",
        ),
        (
            pages.fetched,
            '<link rel="stylesheet" href="//x.y/z.css">',
            "network for //x.y/z.css",
        ),
        (
            pages.fetched,
            '<link rel="preconnect" href="https://x.y">',
            "the network for https://x.y",
        ),
        (pages.fetched, '<iframe src="https://x.y"></iframe>', "the network for https://x.y"),
        (pages.fetched, '<script src="gone.js"></script>', "asks for gone.js, which is not there"),
    ],
)
def test_the_checks_on_files_can_fail(
    check: Callable, broken: str, said: str, tmp_path: Path
) -> None:
    good = '<a href="b.html#there">x</a><a href="https://x.y">paper</a><img alt="x" src="data:,">'
    (tmp_path / "b.html").write_text('<p id="there">x</p>')
    (tmp_path / "a.html").write_text(good)
    assert list(check(pages.read(tmp_path), tmp_path)) == []
    (tmp_path / "a.html").write_text(good + broken)
    [problem] = check(pages.read(tmp_path), tmp_path)
    assert said in problem


def test_a_style_sheet_must_not_fetch(tmp_path: Path) -> None:
    (tmp_path / "x.css").write_text("@import url(https://x.y/f.css); p { background: url(a.png) }")
    [problem] = pages.fetched({}, tmp_path)
    assert problem == "x.css asks the network for https://x.y/f.css"


def test_machine_paths_are_found_in_any_text_file(tmp_path: Path) -> None:
    root = tmp_path / "project"
    made = root / "_build" / "html"
    made.mkdir(parents=True)
    (made / "a.html").write_text("<p>home/x</p>")
    assert list(pages.machine_paths(made, root)) == []
    (made / "searchindex.js").write_text(f'"{root}/book/index.md"')
    [problem] = pages.machine_paths(made, root)
    assert problem.startswith("searchindex.js shows a path of this machine")
