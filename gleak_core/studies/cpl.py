"""Grids of "A deeper dive into CPL vs DLG"."""

from gleak_core.studies.study import Study

__all__ = ["STUDIES"]

STUDIES: tuple[Study, ...] = ()
