"""Grids of CAFE."""

from gleak_core.studies.study import Study

__all__ = ["STUDIES"]

STUDIES: tuple[Study, ...] = ()
