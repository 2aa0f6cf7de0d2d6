"""Sentences a chapter stands by: printed with whether they hold in this run.

The words are fixed and the numbers behind them are not, so nbval can compare the sentence on
every machine: a claim that no longer holds is a failed test, not a page that fails to build.
"""

__all__ = ["claim"]


def claim(name: str, words: str, holds: bool) -> None:
    """Print whether a sentence holds here; `name` is its identifier in the scoreboard."""
    print(f"{'✓ holds' if holds else '✗ DOES NOT HOLD'} in this run [{name}]: {words}")
