"""Let search work from `file://`, where a browser refuses to fetch the pages for their excerpts."""

from sphinx.application import Sphinx

WITHOUT_EXCERPTS = """
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
"""


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_js_file(None, body=WITHOUT_EXCERPTS)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
