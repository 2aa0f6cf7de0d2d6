"""Which markup an output may carry: what is not known to be harmless is refused.

Nothing is repaired. An allow-list of tags and attributes, balanced; no scripts, no handlers, no
address that a browser would fetch by itself.
"""

import re
from html.parser import HTMLParser

__all__ = ["latex_problems", "markdown_problems", "markup_problems"]

_EVERYWHERE = {"class", "style", "title", "lang", "dir", "role"}
_CELL = {"colspan", "rowspan", "scope", "align", "valign", "width", "height"}
_PLAIN = """
    div span p b strong i em u s sub sup small br hr code pre kbd ul li dl dt dd blockquote figure
    figcaption caption thead tbody tfoot tr colgroup summary h2 h3 h4 h5 h6
"""
_TAGS: dict[str, set[str]] = {tag: set() for tag in _PLAIN.split()} | {
    "td": _CELL,
    "th": _CELL,
    "col": _CELL,
    "table": {"border", "align", "width"},
    "ol": {"start", "type"},
    "details": {"open"},
    "a": {"href"},
    "img": {"src", "alt", "width", "height"},
    "style": {"scoped", "type"},
}
_VOID = {"br", "hr", "img", "col"}
_BAD_STYLE = re.compile(
    r"url\s*\(|image-set|@|expression|javascript|behavio|-moz-binding|[\\<]"
    r"|position\s*:\s*(fixed|sticky)",
    re.IGNORECASE,
)
_BAD_LATEX = re.compile(r"\\(href|require|class|cssId|style|data|html\w*|unicode)\b|<")


class _Checker(HTMLParser):
    """Collect what is wrong with a piece of HTML."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.problems: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _TAGS:
            self.problems.append(f"<{tag}> is not among the allowed tags")
            return
        if tag not in _VOID:
            self.open.append(tag)
        for name, value in attrs:
            self._attribute(tag, name, value or "")
        given = {name: value or "" for name, value in attrs}
        if tag == "img" and not given.get("alt", "").strip():
            self.problems.append("<img> has no alt text")

    def _attribute(self, tag: str, name: str, value: str) -> None:
        if not (name in _EVERYWHERE | _TAGS[tag] or re.fullmatch(r"(aria|data)-[a-z-]+", name)):
            self.problems.append(f"<{tag} {name}> is not among the allowed attributes")
        address = re.sub(r"[\x00-\x20]", "", value).lower()
        if name == "src" and not re.match(r"data:image/(png|jpeg|gif);base64,", address):
            self.problems.append(f"<{tag} src> is not an embedded picture (data:image/png;base64,)")
        if name == "href" and not re.match(r"(https?://|#|[\w./-]+(#[\w.-]*)?$)", address):
            self.problems.append(f"<{tag} href={value[:40]!r}> is not an ordinary link")
        if name == "style" and _BAD_STYLE.search(value):
            self.problems.append(f"<{tag} style> reaches outside its element")

    def handle_endtag(self, tag: str) -> None:
        if tag in _VOID or tag not in _TAGS:
            return
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> closes nothing: the markup is not balanced")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            if _BAD_STYLE.search(data):
                self.problems.append("<style> reaches outside the page")
        elif "<" in data:
            self.problems.append("a bare '<' stands in the markup: write &lt;")

    def handle_comment(self, data: str) -> None:
        self.problems.append("comments are not allowed in markup")

    def handle_decl(self, decl: str) -> None:
        self.problems.append("declarations are not allowed in markup")

    def handle_pi(self, data: str) -> None:
        self.problems.append("processing instructions are not allowed in markup")

    def unknown_decl(self, data: str) -> None:
        self.problems.append("declarations are not allowed in markup")


def markup_problems(html: str) -> list[str]:
    """Return what speaks against publishing a piece of HTML; empty if nothing does."""
    checker = _Checker()
    checker.feed(html)
    rest = checker.rawdata
    checker.close()
    if "<" in rest:
        checker.problems.append("a tag is not closed with '>'")
    if checker.open:
        checker.problems.append(f"<{checker.open[-1]}> is never closed")
    return list(dict.fromkeys(checker.problems))


def markdown_problems(markdown: str) -> list[str]:
    """Return what speaks against a Markdown output: raw HTML, pictures, script links."""
    bare = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", markdown, flags=re.DOTALL)
    problems = []
    if re.search(r"<[A-Za-z/!?]", bare):
        problems.append("raw HTML in Markdown is not allowed: write &lt; or use text/html")
    if "![" in bare:
        problems.append("pictures in Markdown are not allowed: display image/png with alt text")
    if re.search(r"(javascript|vbscript|data)\s*:", bare, re.IGNORECASE):
        problems.append("only ordinary links are allowed in Markdown")
    return problems


def latex_problems(latex: str) -> list[str]:
    r"""Return what speaks against a LaTeX output: \href and its kin can run scripts in MathJax."""
    found = sorted({match.group() for match in _BAD_LATEX.finditer(latex)})
    return [f"{name} is not allowed in LaTeX outputs" for name in found]
