"""Shared by all tests: a small private batch and a small network, in float64."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest
from support import random_batch
from torch import nn

from gleak_core import models
from gleak_core.data import Batch

# Started in the background of a shell, Ctrl-C is ignored, and tests that send it would wait.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Say what one worker does in one go: a file, the folder that shares a book, or a chapter.

    Groups by marks would do, but xdist 3.8 loses them in pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Shares(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            if file.startswith("tests/book/"):
                return "tests/book"
            return nodeid if "test_a_chapter_still_says" in nodeid else file

    return Shares(config, log)


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
