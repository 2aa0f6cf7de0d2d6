"""gleak_core: the small shared library under the gradient leakage book."""

__version__ = "0.1.0"
