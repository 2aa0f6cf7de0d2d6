"""Built pages, looked at as files: what they fetch, where they lead, what they leave unsaid."""

import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["Page", "dead_links", "fetched", "machine_paths", "read", "unnamed_images"]

# What a browser fetches by itself, by tag and attribute.
_FETCHING = {
    ("script", "src"), ("img", "src"), ("img", "srcset"), ("iframe", "src"), ("source", "src"),
    ("video", "src"), ("audio", "src"), ("embed", "src"), ("object", "data"), ("use", "href"),
}  # fmt: skip
_LINK_KINDS = {
    "stylesheet",
    "icon",
    "preload",
    "prefetch",
    "preconnect",
    "dns-prefetch",
    "manifest",
}


@dataclass
class Page:
    """One HTML file: its anchors, its links, what it fetches, its pictures."""

    path: Path
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    fetches: list[str] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)


class _Reader(HTMLParser):
    def __init__(self, page: Page) -> None:
        super().__init__()
        self.page = page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.page.ids.update(given[name] for name in ("id", "name") if given.get(name))
        if tag == "a" and "href" in given:
            self.page.links.append(given["href"])
        if tag == "link" and _LINK_KINDS & set(given.get("rel", "").split()):
            self.page.fetches.append(given.get("href", ""))
        self.page.fetches += [v for name, v in given.items() if (tag, name) in _FETCHING]
        if tag == "img" and not given.get("alt", "").strip():
            self.page.unnamed.append(given.get("src", ""))


def read(folder: Path) -> dict[Path, Page]:
    """Read every HTML page below a folder."""
    found = {}
    for path in sorted(folder.rglob("*.html")):
        if "_static" in path.relative_to(folder).parts:
            continue
        page = found[path] = Page(path)
        reader = _Reader(page)
        reader.feed(path.read_text(encoding="utf-8"))
        reader.close()
    return found


def fetched(pages: Mapping[Path, Page], folder: Path) -> Iterator[str]:
    """Name everything that a page would ask the network for, and every missing local file."""
    for path, page in pages.items():
        name = path.relative_to(folder)
        for address in page.fetches:
            parts = urlsplit(address)
            if parts.scheme == "data":
                continue
            if parts.scheme or parts.netloc:
                yield f"{name} asks the network for {address}"
            elif parts.path and not (path.parent / unquote(parts.path)).exists():
                yield f"{name} asks for {address}, which is not there"
    for sheet in sorted(folder.rglob("*.css")):
        rules = sheet.read_text(encoding="utf-8", errors="replace")
        for address in re.findall(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')\s]+)", rules):
            yield f"{sheet.relative_to(folder)} asks the network for {address}"


def dead_links(pages: Mapping[Path, Page], folder: Path) -> Iterator[str]:
    """Name every link inside the book whose page or anchor does not exist."""
    anchors = {path.resolve(): page.ids for path, page in pages.items()}
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            goal = (path.parent / unquote(parts.path)).resolve() if parts.path else path.resolve()
            fragment = unquote(parts.fragment)
            if "=" in fragment:  # settings of the lab, which it checks itself
                fragment = ""
            if not goal.exists():
                yield f"{path.relative_to(folder)} links to {link}, which is not there"
            elif goal in anchors and fragment and fragment not in anchors[goal]:
                yield f"{path.relative_to(folder)} links to {link}, which has no such anchor"


def unnamed_images(pages: Mapping[Path, Page], folder: Path) -> Iterator[str]:
    """Name every picture without alt text."""
    for path, page in pages.items():
        for source in page.unnamed:
            yield f"{path.relative_to(folder)} shows {source[-60:]} without alt text"


def machine_paths(folder: Path, root: Path) -> Iterator[str]:
    """Name every published file that tells where on whose machine it was made."""
    places = {str(root.resolve()), str(Path.home()), tempfile.gettempdir()} - {"/"}
    pattern = re.compile("|".join(rf"(?<![\w./]){re.escape(p)}(?=/)" for p in sorted(places)))
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".html", ".js", ".json", ".txt", ".ipynb", ".md", ".inv", ""}:
            if not path.is_file() or "_static" in path.relative_to(folder).parts:
                continue
            found = pattern.search(path.read_text(encoding="utf-8", errors="replace"))
            if found:
                shown = found.string[found.start() :][:60]
                yield f"{path.relative_to(folder)} shows a path of this machine: {shown!r}"
