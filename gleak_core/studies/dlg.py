"""Grids of a critique of "Deep leakage from gradients"."""

from gleak_core.studies.study import Study

__all__ = ["STUDIES"]

STUDIES: tuple[Study, ...] = ()
