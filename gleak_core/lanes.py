"""Placeholder until the SIMD evaluator lands."""

from typing import Any


def supports(*_: Any) -> bool:
    return False


class Lanes:
    def __init__(self, *_: Any) -> None: ...
