"""Ship MathJax with the book: the one component that is used and its fonts, not all 24 MB."""

import importlib.util
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.fileutil import copy_asset

COMPONENT = "tex-chtml.js"
FONTS = "output/chtml/fonts/woff-v2"


def vendored() -> Path:
    # The package's folder has hyphens in its name: it can be found, but not imported.
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None or spec.origin is None:
        raise ExtensionError("sphinx-mathjax-offline is missing: run `make setup`")
    return Path(spec.origin).parent / "static" / "mathjax"


def copy(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        target = Path(app.outdir) / "_static" / "mathjax"
        copy_asset(str(vendored() / COMPONENT), str(target))
        copy_asset(str(vendored() / FONTS), str(target / FONTS))


def setup(app: Sphinx) -> dict[str, bool]:
    app.config.mathjax_path = f"mathjax/{COMPONENT}"  # type: ignore[attr-defined]
    app.connect("build-finished", copy)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
