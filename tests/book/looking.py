"""What a reader would notice, one function each: they return sentences, none if all is well."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
NAMES = ("chromium", "google-chrome", "google-chrome-stable", "chromium-browser", "chrome")
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}


def without(what: str) -> None:
    """Skip for want of something; on the continuous integration, where all is there, fail."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(what)


def browser_path() -> str | None:
    """Return a Chromium that is installed here."""
    given = os.environ.get("CHROME_PATH")
    return given or next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """An open page and what it did while it loaded."""

    page: Page
    troubles: list[str] = field(default_factory=list)


@contextmanager
def tab(browser: Browser, *, size: dict[str, int] = DESK, scheme: Any = "light") -> Iterator[Visit]:
    """Open an empty tab that notes every request to the network and every error."""
    context = browser.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
    page = context.new_page()
    seen = Visit(page)

    def request(made: Any) -> None:
        if not made.url.startswith(("file:", "data:", "blob:")):
            seen.troubles.append(f"asks the network for {made.url}")

    def console(message: Any) -> None:
        if message.type in ("error", "warning"):
            seen.troubles.append(f"console {message.type}: {message.text}")

    page.on("request", request)
    page.on("console", console)
    page.on("pageerror", lambda error: seen.troubles.append(f"error: {error}"))
    page.on("requestfailed", lambda made: seen.troubles.append(f"could not load {made.url}"))
    try:
        yield seen
    finally:
        context.close()


def load(seen: Visit, address: Path | str, *, lands: str = "**") -> None:
    """Open a page from its file, and wait until it and its maths are there."""
    seen.page.goto(address.resolve().as_uri() if isinstance(address, Path) else address)
    seen.page.wait_for_url(lands)  # a page that leads on must have done so before it is asked
    seen.page.evaluate("() => window.MathJax?.startup?.promise")


def leave(seen: Visit) -> None:
    """Make an open tab as good as new: no page, no trouble, nothing stored."""
    seen.page.evaluate("() => { localStorage.clear(); sessionStorage.clear(); }")
    seen.page.goto("about:blank")
    seen.troubles.clear()


@contextmanager
def visit(
    browser: Browser, address: Path | str, *, lands: str = "**", **how: Any
) -> Iterator[Visit]:
    """Open a page in a tab of its own; `how` are the tab's size and scheme."""
    with tab(browser, **how) as seen:
        load(seen, address, lands=lands)
        yield seen


def unrendered_maths(page: Page) -> list[str]:
    """Maths that is still TeX, or that MathJax could not read."""
    return page.evaluate(
        """() => [...document.querySelectorAll('span.math, div.math')]
             .filter(e => !e.querySelector('mjx-container') || e.querySelector('mjx-merror'))
             .map(e => 'maths is not rendered: ' + e.textContent.trim().slice(0, 60))"""
    )


def unnamed_images(page: Page) -> list[str]:
    """Pictures without alt text, and pictures that do not show."""
    return page.evaluate(
        """() => [...document.images].flatMap(e => [
             ...(e.alt.trim() ? [] : ['no alt text: ' + e.src.slice(-60)]),
             ...(e.complete && e.naturalWidth ? [] : ['does not show: ' + e.src.slice(-60)])])"""
    )


def sideways(page: Page) -> list[str]:
    """What sticks out of the window, so that the whole page scrolls sideways."""
    return page.evaluate(
        """() => {
             const wide = document.documentElement.clientWidth;
             const out = document.scrollingElement.scrollWidth - wide;
             if (out <= 1) return [];
             const worst = [...document.querySelectorAll('body *')]
               .filter(e => e.getBoundingClientRect().right > wide + 1)
               .map(e => e.tagName.toLowerCase() + '.' + e.className).slice(0, 5);
             return [`sticks out by ${out} px: ${worst.join(', ')}`];
           }"""
    )


_CONTRAST = """() => {
  const context = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const once = (work, known = new Map()) => key => {
    if (!known.has(key)) known.set(key, work(key));
    return known.get(key);
  };
  const colour = once(css => {
    context.clearRect(0, 0, 1, 1); context.fillStyle = css; context.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  });
  const over = ([r, g, b, a], [R, G, B]) => [r*a + R*(1-a), g*a + G*(1-a), b*a + B*(1-a), 1];
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = once(e => {
    if (!e) return [255, 255, 255, 1];
    const [style, below] = [getComputedStyle(e), ground(e.parentElement)];
    return below && style.backgroundImage === 'none' ? over(colour(style.backgroundColor), below)
      : null;
  });
  const found = [];
  for (const e of document.querySelectorAll('article *, .bd-sidebar *, .bd-toc *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.checkVisibility({checkOpacity: true, checkVisibilityCSS: true})) continue;
    if (e.closest('mjx-assistive-mml, svg, .headerlink, .visually-hidden')) continue;
    const box = e.getBoundingClientRect();
    if (box.width < 2 || box.height < 2) continue;
    const below = ground(e);
    if (!below) continue;
    const [a, b] = [light(over(colour(getComputedStyle(e).color), below)), light(below)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < LEAST)
      found.push(`contrast ${ratio.toFixed(1)}: ${e.tagName.toLowerCase()}.${e.className} `
        + `"${e.textContent.trim().slice(0, 30)}"`);
  }
  return [...new Set(found)];
}"""


def faint_text(page: Page, least: float = 4.5) -> list[str]:
    """Text that is hard to read on its ground (WCAG AA: at least 4.5 to 1)."""
    return page.evaluate(_CONTRAST.replace("LEAST", str(least)))


_FOCUS = """() => {
  const e = document.activeElement;
  if (!e || e === document.body) return null;
  const box = e.getBoundingClientRect();
  const look = s => [s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0 ? s.outline : '',
    s.boxShadow, s.borderColor, s.backgroundColor, s.textDecoration].join('|');
  const within = box.width > 1 && box.height > 1
    && box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth;
  const focused = look(getComputedStyle(e));
  e.blur();
  const changed = look(getComputedStyle(e)) !== focused || focused.split('|')[0] !== '';
  e.focus();
  return {name: (e.textContent || e.getAttribute('aria-label') || e.title || e.name || e.id || '')
    .trim().slice(0, 40), href: e.getAttribute('href'), within, changed, tag: e.tagName};
}"""


def keyboard(page: Page, steps: int = 12) -> list[str]:
    """Follow the Tab key: a link to the main text comes first, and one always sees where one is."""
    problems, names = [], []
    for _ in range(steps):
        page.keyboard.press("Tab")
        page.wait_for_timeout(30)
        here = page.evaluate(_FOCUS)
        if here is None:
            continue
        names.append(here["name"])
        if not (here["within"] and here["changed"]):
            problems.append(f"the focus cannot be seen on {here['tag']} {here['name']!r}")
    if not names:
        return ["the Tab key reaches nothing"]
    if "skip" not in names[0].lower():
        problems.append(f"the first Tab reaches {names[0]!r}, not a link to the main text")
    return problems


def search_results(page: Page) -> list[str]:
    """Wait for the search to end; return the titles it found."""
    page.wait_for_function(
        "() => /finished|did not match/i"
        ".test(document.querySelector('#search-results')?.textContent)"
    )
    return [text.strip() for text in page.locator("#search-results li a").all_inner_texts()]
