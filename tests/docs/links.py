"""Links of a built site: `python -m tests.docs.links docs/_build` says which lead nowhere, and what comes from outside.

A link is followed to the file and to the place in it. What pages load, as pictures, scripts and styles, must lie in the
site itself; links to other sites are not followed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_URL = re.compile(r"""url\(\s*['"]?([^'")]+)|@import\s+['"]([^'"]+)""")


@dataclass
class Page(HTMLParser):
    """What a page links to, what it loads, and the places in it that have a name."""

    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    places: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value for name, value in attrs if value is not None}
        self.places |= {found[name] for name in ("id", "name") if name in found}
        if "href" in found:
            (self.loads if tag == "link" else self.links).append(found["href"])
        self.loads += [found[name] for name in ("src", "poster", "data") if name in found]
        self.loads += [part.split()[0] for part in found.get("srcset", "").split(",") if part.strip()]


def read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def faults(site: Path) -> Iterator[str]:
    """A line for each, with the file that it is in."""
    site = site.resolve()
    pages = {path: read(path) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        for target in dict.fromkeys(page.links):
            yield from _broken(site, path, target, pages)
        for target in dict.fromkeys(page.loads):
            yield from _from_outside(site, path, target) or _broken(site, path, target, pages)
    for path in sorted(site.rglob("*.css")):
        for found in _URL.finditer(path.read_text(encoding="utf-8")):
            target = found[1] or found[2]
            yield from _from_outside(site, path, target) or _broken(site, path, target, pages)


def _from_outside(site: Path, path: Path, target: str) -> list[str]:
    url = urlsplit(target)
    return [f"{path.relative_to(site)}: loads {target}"] if url.netloc else []


def _broken(site: Path, path: Path, target: str, pages: dict[Path, Page]) -> list[str]:
    url = urlsplit(target)
    if url.scheme or url.netloc:
        return []
    file = (path.parent / unquote(url.path)).resolve() if url.path else path
    place = unquote(url.fragment)
    there = file.is_file() and (not place or file not in pages or place in pages[file].places)
    return [] if there else [f"{path.relative_to(site)}: {target} leads nowhere"]


def main(arguments: list[str]) -> int:
    (folder,) = arguments
    site = Path(folder)
    pages = len(list(site.rglob("*.html")))
    found = list(faults(site))
    print("\n".join([*found, f"{pages} pages, {len(found)} faults"]))
    return 1 if found or not pages else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
