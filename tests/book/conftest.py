"""The real book, built once, and one browser for all its pages."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from book.looking import browser_path, chromium
from playwright.sync_api import Browser

from gleak_core.files import ROOT
from gleak_core.publish import book as publishing
from gleak_core.publish import notebooks


def without(what: str) -> None:
    """Skip for want of something; on the continuous integration, where all is there, fail."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(what)


@pytest.fixture(scope="session")
def html() -> Path:
    """The folder of the built book; a fresh one is taken as it is."""
    if not notebooks.find(ROOT):
        without("there is no chapter yet")
    return publishing.build(root=ROOT).index.parent


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if browser_path() is None:
        without("no Chromium here: apt install chromium, or set CHROME_PATH")
    with chromium() as opened:
        yield opened
