"""The lab's page in headless Chromium: what a visitor does, and what he must be told."""

import base64
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from book.looking import DESK, PHONE, visit
from playwright.sync_api import Browser, Page

from book import looking
from gleak_core import starts
from gleak_core.files import ROOT
from gleak_core.lab import page as lab
from gleak_core.lab import recorded, steps

pytestmark = [pytest.mark.browser, pytest.mark.slow]
READY = "window.lab && lab.lanes.length && lab.lanes.every(lane => lane.shared)"
LAST = "lab.lanes[0].points.at(-1)"


def until(page: Page, what: str, seconds: float = 60) -> None:
    """Wait; the page's policy forbids Playwright's own way, which evaluates text in the page."""
    end = time.monotonic() + seconds
    while not page.evaluate(what):
        assert time.monotonic() < end, f"never came: {what}"
        time.sleep(0.03)


@contextmanager
def opened(browser: Browser, fragment: str = "", query: str = "", **how: Any) -> Iterator[Page]:
    with visit(browser, f"{lab.PAGE.as_uri()}{query}#{fragment}", **how) as seen:
        until(seen.page, READY)
        yield seen.page
        assert seen.troubles == []


def test_the_page_is_built_from_its_sources() -> None:
    text = lab.PAGE.read_text(encoding="utf-8")
    assert text == lab.build(), "run make lab"
    assert len(text.encode()) <= 300_000
    policy = text.partition('Content-Security-Policy" content="')[2].partition('"')[0]
    assert policy.startswith("default-src 'none'") and "connect-src 'none'" in policy
    assert "http:" not in text.replace("http://www.w3.org", "") and "https:" not in text


def test_one_click_brings_the_picture_back(browser: Browser) -> None:
    with opened(browser) as page:
        page.get_by_role("button", name="Attack", exact=True).click()
        until(page, f"({LAST} ?? [0, 0, 0])[2] >= 30")
        points = page.evaluate("lab.lanes[0].points")
        shown = next(n for n, _, psnr in points if psnr >= 20)
        clear = next(n for n, _, psnr in points if psnr >= 30)
        assert shown <= 400 and clear <= 1200
        until(page, "/begins to show|is back/.test(document.querySelector('#story').textContent)")
        assert "label read: cat ✓" in page.inner_text("#lab")
        page.get_by_role("button", name="Pause").click()
        until(page, "!lab.running")
        done = page.evaluate(LAST)[0]
        page.get_by_role("button", name="One step").click()
        until(page, f"{LAST}[0] > {done}")


def test_pruning_hides_the_picture_from_who_does_not_see_it(browser: Browser) -> None:
    with opened(browser, "defence=prune") as page:
        page.select_option("#pace", "fast")
        page.get_by_role("button", name="Attack", exact=True).click()
        until(page, f"({LAST} ?? [0])[0] >= 400")
        assert max(psnr for _, _, psnr in page.evaluate("lab.lanes[0].points")) < 20
        assert "70 % of them zero" in page.inner_text("#lab")


@pytest.mark.parametrize("pictures", ["rocket", "cat,flower,rocket,temple"])
def test_a_division_is_exact(browser: Browser, pictures: str) -> None:
    with opened(browser, f"attack=division&picture={pictures}") as page:
        page.get_by_role("button", name="Attack", exact=True).click()
        until(page, "lab.lanes[0].end === 'divided'")
        assert page.evaluate(LAST)[2] >= 99
        assert "to the last digit" in page.inner_text("#story")


def choices(page: Page) -> list[tuple[str, str]]:
    return page.evaluate(
        "Object.entries(lab.lanes[0].controls).flatMap(([name, c]) => c.options "
        "? [...c.options].map(o => [name, o.value]) : [[name, '1']])"
    )


NEEDED = {"sigma": "noise", "share": "prune", "masked": "prune", "alpha": "cpl", "tv": "cosine"}


def test_every_setting_can_be_chosen_and_runs(browser: Browser) -> None:
    with opened(browser) as page:
        page.locator("details summary").click()
        for name, value in choices(page):
            kind = "attack" if name in ("alpha", "tv") else "defence"
            if name in NEEDED:
                page.select_option(f"#{kind}-0", NEEDED[name])
            chosen = page.locator(f"#{name}-0")
            (chosen.check() if name == "masked" else chosen.select_option(value))
            until(page, READY)
            page.click("#step")
            until(page, f"{LAST} !== undefined")
            assert page.evaluate(f"{LAST}.every(Number.isFinite)"), (name, value)
            if name in ("attack", *NEEDED):  # and back
                page.select_option("#attack-0", "idlg")
                page.select_option("#defence-0", "none")


def test_a_preset_is_an_address(browser: Browser) -> None:
    with opened(browser) as page:
        for value in page.evaluate(
            "[...document.querySelector('#preset').options].map(o => o.value)"
        ):
            if value:
                page.select_option("#preset", value)
                until(page, READY)
                assert page.evaluate("location.hash") == f"#{value}"
                assert page.input_value("#preset") == value
                assert "does not have" not in page.inner_text("#story")


def test_an_address_that_is_misspelt_is_said(browser: Browser) -> None:
    with opened(browser, "attack=dgl&picture=dog&b.start=black&start=black") as page:
        story = page.inner_text("#story")
        assert "attack=dgl" in story and "picture=dog" in story
        assert page.input_value("#start-0") == "black" and page.input_value("#attack-0") == "idlg"


def test_the_page_has_what_the_library_has(browser: Browser) -> None:
    with opened(browser) as page:
        held = page.evaluate("lab.CHOICES")
        held = {name: options for name, (_, options) in held.items()}
        assert set(held["start"]) == set(starts.STARTS)
        assert set(held["attack"]) == {*steps.ATTACKS, "division"}
        assert page.evaluate("Object.keys(lab.samples)") == list(recorded.BEST)


def test_the_links_of_the_book_s_page_are_settings(browser: Browser) -> None:
    links = re.findall(r'href="#([^"]+)"', (ROOT / "book/lab.md").read_text(encoding="utf-8"))
    assert len(links) >= 6
    with opened(browser) as page:
        for link in links:
            page.evaluate("link => lab.restore(link)", link)
            until(page, READY)
            assert "does not have" not in page.inner_text("#story")
            assert sorted(page.evaluate("lab.hash").split("&")) == sorted(link.split("&"))


@pytest.mark.parametrize("odd", ["attack=constructor", "start=toString", "hasOwnProperty=1"])
def test_no_inherited_name_is_a_setting(browser: Browser, odd: str) -> None:
    with opened(browser, odd) as page:
        assert odd in page.inner_text("#story")


OUTCOME = """([settings, end, points, more]) => {
  const lane = lab.lanes[0];
  Object.assign(lane.settings, lab.DEFAULTS, settings);
  lane.points = points;
  lane.end = end;
  lane.kept = 5000;
  const psnr = points.at(-1)[2];
  lane.last = { psnr, each: [psnr], spent: 1000, labels: [1], ...more };
  return lab.outcome(lane);
}"""
FALLS = [[n, 10 / n, 12.0] for n in range(1, 100)]
STUCK = [[n, 80.0 + n % 2, 12.0] for n in range(1, 100)]
CLEAR = [[99, 1e-6, 41.0]]


ENDINGS: list[Any] = [
    ({}, "solved", CLEAR, {}, "The picture is back"),
    ({}, "solved", FALLS, {}, "agreement is no proof"),
    ({}, "limit", FALLS, {}, "An attacker has more time"),
    ({}, "limit", STUCK, {}, "Try new starting noise"),
    ({}, "stalled", FALLS, {}, "falls no more"),
    ({"solver": "plain"}, "limit", STUCK, {}, "choose the line search"),
    ({"solver": "plain"}, "diverged", FALLS, {}, "flew apart"),
    ({"weights": "trained"}, "limit", STUCK, {}, "try the angle"),
    ({"defence": "noise"}, "limit", FALLS, {}, "noise of 0.001 covers"),
    ({"defence": "noise"}, "limit", FALLS, {"labels": [3]}, "the defence has changed"),
    ({"defence": "prune"}, "limit", FALLS, {}, "Let him ignore"),
    ({"defence": "prune", "masked": "1"}, "limit", FALLS, {}, "5,000 entries for 3,072"),
    ({"defence": "int8"}, "solved", CLEAR, {}, "does not help"),
    ({}, "limit", FALLS, {"labels": [3]}, "with a wrong label no picture"),
    ({"attack": "dlg"}, "limit", FALLS, {"labels": [3]}, "An attacker has more time"),
    ({"attack": "dlg"}, "solved", CLEAR, {}, "found on the way"),
    ({}, "", FALLS, {}, "so far"),
    ({"attack": "division"}, "divided", [[0, 0, 100]], {}, "to the last digit"),
    ({"attack": "division", "defence": "int8"}, "divided", [[0, 0, 44]], {}, "spoils digits"),
    ({"attack": "division", "defence": "noise"}, "divided", [[0, 0, 9]], {}, "trusts every"),
]


def test_what_happened_is_said(browser: Browser) -> None:
    with opened(browser) as page:
        for settings, end, points, more, says in ENDINGS:
            assert says in page.evaluate(OUTCOME, [settings, end, points, more]), (settings, end)


def test_who_was_first_is_said(browser: Browser) -> None:
    with opened(browser, "race=1") as page:
        say = """([a, b, end]) => {
          lab.lanes.forEach((lane, i) => { lane.points = [a, b][i]; lane.end = end; });
          return lab.between();
        }"""
        early, late, never = [[80, 1, 31.0]], [[20, 1, 9.0], [90, 1, 30.5]], [[90, 1, 12.0]]
        assert page.evaluate(say, [early, late, "limit"]).startswith(
            "A is first at 30 dB, after 80"
        )
        assert page.evaluate(say, [never, late, "limit"]).startswith("Only B reaches")
        assert page.evaluate(say, [early, never, ""]).startswith("So far only A reaches")
        assert "by division" in page.evaluate(say, [[[0, 0, 100.0]], late, "limit"])
        assert page.evaluate(say, [never, never, "limit"]) == ""


def test_agreement_is_measured_by_what_was_sent(browser: Browser) -> None:
    """The first loss says nothing: a trained network answers noise with a huge gradient."""
    with opened(browser, "picture=rocket&weights=trained") as page:
        page.click("#go")
        until(page, f"({LAST} ?? [0])[0] > 260 || lab.lanes[0].end")
        assert page.evaluate("lab.lanes[0].end") == ""


def test_who_sees_through_pruning_gets_nearer(browser: Browser) -> None:
    with opened(browser, "defence=prune&race=1&b.defence=prune&b.masked=1") as page:
        page.select_option("#pace", "fast")
        page.click("#go")
        until(page, "lab.lanes.every(lane => (lane.points.at(-1) ?? [0])[0] >= 300)")
        a, b = page.evaluate("lab.lanes.map(lane => lane.points.at(-1))")
        assert b[2] > a[2] + 4 and b[1] < 0.1 * a[1]


def test_two_settings_race(browser: Browser) -> None:
    with opened(browser, "race=1&b.start=normal") as page:
        page.click("#go")
        until(page, "lab.lanes.every(lane => lane.points.length > 20)")
        page.click("#go")
        until(page, "!lab.running")
        a, b = page.evaluate("lab.lanes.map(lane => lane.points[20][2])")
        assert a > b + 1  # N(0, 1) is farther away
        assert "A: " in page.inner_text("#story") and "B: " in page.inner_text("#story")
        page.locator("#race").uncheck()
        assert page.locator(".lane").count() == 1


PICTURE = """() => {
  const canvas = document.createElement('canvas');
  canvas.width = 90; canvas.height = 60;
  const context = canvas.getContext('2d');
  context.fillStyle = '#c04000'; context.fillRect(0, 0, 90, 60);
  context.fillStyle = '#0040c0'; context.fillRect(45, 0, 45, 60);
  return canvas.toDataURL('image/png').split(',')[1];
}"""


def test_the_reader_s_own_picture(browser: Browser) -> None:
    with opened(browser) as page:
        png = base64.b64decode(page.evaluate(PICTURE))
        file: Any = {"name": "own.png", "mimeType": "image/png", "buffer": png}
        page.set_input_files("#file", file)
        until(page, "lab.pictures[0].name === 'your own picture'")
        x = page.evaluate("[...lab.pictures[0].x]")
        left, right = 32 * 16 + 4, 32 * 16 + 28  # of the middle square
        found = [[x[k * 1024 + at] * 255 for k in range(3)] for at in (left, right)]
        assert found == [pytest.approx([192, 64, 0], abs=2), pytest.approx([0, 64, 192], abs=2)]
        until(page, READY)
        page.click("#go")
        until(page, f"({LAST} ?? [0])[0] > 20")
        assert "picture" not in page.evaluate("lab.hash")  # an address never holds it


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"no picture", "cannot read this file"), (b"\0" * 61_000_000, "more than the lab opens")],
)
def test_a_file_that_is_no_picture_is_said(browser: Browser, content: bytes, says: str) -> None:
    with opened(browser) as page:
        page.evaluate(
            """size => {
              const content = size > 100 ? new Uint8Array(size) : 'no picture';
              const file = new File([content], 'a.png', { type: 'image/png' });
              const held = new DataTransfer();
              held.items.add(file);
              const how = { dataTransfer: held, bubbles: true, cancelable: true };
              document.body.dispatchEvent(new DragEvent('drop', how));
            }""",
            len(content),
        )
        until(page, f"document.querySelector('#story').textContent.includes({says!r})")
        assert page.evaluate("lab.pictures[0].name") == "cat"


def test_a_run_that_flies_apart_is_said(browser: Browser) -> None:
    with opened(browser, "attack=dlg&start=normal&solver=plain") as page:
        page.evaluate(
            """() => {
              const lane = lab.lanes[0];
              const broken = new Float32Array(3072).fill(NaN);
              lab.running = true;
              lane.hear({ what: 'frame', token: lab.number, images: broken, order: [0],
                          each: [NaN], psnr: NaN, labels: [1], spent: 10,
                          points: [[40, NaN, NaN]], end: 'diverged' });
            }"""
        )
        assert "flew apart after 40 evaluations" in page.inner_text("#story")
        assert page.inner_text("#go") == "Again"


def test_memory_is_flat_over_ten_runs(browser: Browser) -> None:
    with opened(browser) as page:
        used = set()
        for _ in range(10):
            page.click("#again")
            until(page, READY)
            page.click("#go")
            until(page, f"({LAST} ?? [0])[0] > 3")
            used.add(page.evaluate("lab.lanes[0].used"))
            page.click("#go")
        assert len(used) == 1


CAMERA = """() => {
  const canvas = document.createElement('canvas');
  canvas.width = canvas.height = 64;
  const context = canvas.getContext('2d');
  setInterval(() => { context.fillStyle = '#208040'; context.fillRect(0, 0, 64, 64); }, 20);
  window.streams = [];
  navigator.mediaDevices ??= {};
  navigator.mediaDevices.getUserMedia = async () => {
    window.streams.push(canvas.captureStream(30));
    return window.streams.at(-1);
  };
}"""


def test_the_camera_takes_a_picture_and_goes_off(browser: Browser) -> None:
    with opened(browser) as page:
        page.evaluate(CAMERA)
        for _ in range(2):
            page.click("#camera")
            until(page, "document.querySelector('#video').videoWidth > 0")
        page.click("#snap")
        until(page, "lab.pictures[0].name === 'your own picture'")
        middle = page.evaluate("[0, 1, 2].map(k => 255 * lab.pictures[0].x[k * 1024 + 528])")
        assert middle == pytest.approx([32, 128, 64], abs=12)
        tracks = "streams.flatMap(s => s.getTracks()).map(t => t.readyState)"
        assert set(page.evaluate(tracks)) == {"ended"}
        assert page.evaluate("document.activeElement.id") == "camera"


def test_pausing_leaves_one_loop(browser: Browser) -> None:
    with opened(browser) as page:
        page.select_option("#pace", "slow")
        for _ in range(9):
            page.click("#go")
        until(page, f"{LAST} !== undefined")
        before = page.evaluate("lab.lanes[0].points.length")
        time.sleep(1)
        assert page.evaluate("lab.lanes[0].points.length") - before <= 12  # 90 ms and more for each


def test_without_webassembly_the_numbers_are_the_same(browser: Browser) -> None:
    seen = []
    for query, name in (("", "WebAssembly"), ("?plain", "JavaScript")):
        with opened(browser, "attack=dlg&picture=cat,rocket", query) as page:
            assert page.evaluate("lab.lanes[0].kernels") == name
            for n in range(1, 4):
                page.click("#step")
                until(page, f"lab.lanes[0].points.length >= {n}")
            seen.append([loss for _, loss, _ in page.evaluate("lab.lanes[0].points")][:3])
    assert seen[0] == pytest.approx(seen[1], rel=1e-9)


def test_the_keyboard_is_enough(browser: Browser) -> None:
    with opened(browser) as page:
        # No link past a menu: the lab in a tab of its own has none.
        assert [t for t in looking.keyboard(page) if "first Tab" not in t] == []
        page.locator("#go").focus()
        page.keyboard.press("Enter")
        until(page, f"({LAST} ?? [0])[0] > 5")
        page.keyboard.press("Enter")
        until(page, "!lab.running")
        nameless = page.evaluate(
            "[...document.querySelectorAll('button, select, input, canvas[role], svg[role]')]"
            ".filter(e => e.offsetParent)"
            ".filter(e => !(e.textContent.trim() || e.labels?.length || e.ariaLabel))"
            ".map(e => e.outerHTML.slice(0, 80))"
        )
        assert nameless == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_it_is_legible_everywhere(browser: Browser, size: dict[str, int], scheme: str) -> None:
    fragment = "race=1&b.attack=cpl&picture=cat,rocket"
    with opened(browser, fragment, size=size, scheme=scheme) as page:
        for summary in page.locator("summary").all():
            summary.click()
        assert looking.sideways(page) == [] and looking.faint_text(page) == []


def test_without_scripts_a_filmstrip_stands_there(browser: Browser) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(lab.PAGE.as_uri())
    assert page.locator("img.strip").is_visible() and not page.locator("#lab").is_visible()
    assert "800 iterations" in page.inner_text("body")
    context.close()
