"""Shared by all tests: a small private batch and a small network, in float64."""

import pytest
from support import random_batch
from torch import nn

from gleak_core import models
from gleak_core.data import Batch


@pytest.fixture
def tiny_batch() -> Batch:
    return random_batch()


@pytest.fixture
def tiny_net() -> nn.Module:
    return models.lenet(classes=5, channels=3, size=8, width=4, seed=1).double()
