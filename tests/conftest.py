"""Shared by all tests: a small private batch and a small network, in float64."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import random_batch
from torch import nn

from gleak_core import models
from gleak_core.data import Batch

# Started in the background of a shell, Ctrl-C is ignored, and tests that send it would wait.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say what one worker of xdist does: a file, the folder that shares a book, or a chapter."""
    tests = Path(__file__).parent
    for item in items:
        if tests not in item.path.parents:
            continue
        place = item.path.relative_to(tests)
        group = place.parts[0] if place.parts[0] == "book" else place.as_posix()
        if item.get_closest_marker("alone"):
            group = item.nodeid
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture
def tiny_batch() -> Batch:
    return random_batch()


@pytest.fixture
def tiny_net() -> nn.Module:
    return models.lenet(classes=5, channels=3, size=8, width=4, seed=1).double()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One Chromium for all tests that look at a page: a process may hold no second one."""
    from book.looking import browser_path, chromium, without

    if browser_path() is None:
        without("no Chromium here: apt install chromium, or set CHROME_PATH")
    with chromium() as opened:
        yield opened
