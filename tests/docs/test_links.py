"""tests/docs/links.py: what it finds of a site with faults, and nothing of one without."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs import links


def site(folder: Path, body: str, style: str = "") -> Path:
    (folder / "sub").mkdir()
    (folder / "index.html").write_text(f'<link rel="stylesheet" href="site.css?v=1"><h1 id="top">Home</h1>{body}')
    (folder / "sub" / "page.html").write_text('<a href="../index.html#top">home</a><a href="#">up</a>')
    (folder / "site.css").write_text(style)
    (folder / "a picture.png").write_bytes(b"")
    return folder


GOOD = (
    '<a href="sub/page.html">',
    '<a href="#top">',
    '<img src="a%20picture.png" srcset="a%20picture.png 2x">',
    '<a href="https://example.org/nowhere#at-all">',
    '<a href="mailto:nobody@example.org">',
    '<img src="data:image/png;base64,AAAA">',
)


def test_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert links.main([str(site(tmp_path, "".join(GOOD), "a { background: url('a picture.png') }"))]) == 0
    assert capsys.readouterr().out == "2 pages, 0 faults\n"


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<a href="sub/other.html">', "index.html: sub/other.html leads nowhere"),
        ('<a href="sub/page.html#place">', "index.html: sub/page.html#place leads nowhere"),
        ('<a href="#place">', "index.html: #place leads nowhere"),
        ('<img src="other.png">', "index.html: other.png leads nowhere"),
        ('<img srcset="a%20picture.png, other.png 2x">', "index.html: other.png leads nowhere"),
        ('<script src="https://example.org/a.js">', "index.html: loads https://example.org/a.js"),
        ('<script src="//example.org/a.js">', "index.html: loads //example.org/a.js"),
        ('<link href="https://example.org/a.css">', "index.html: loads https://example.org/a.css"),
    ],
)
def test_what_is_not_there_or_elsewhere(tmp_path: Path, body: str, fault: str) -> None:
    assert list(links.faults(site(tmp_path, body))) == [fault]


@pytest.mark.parametrize("style", ["@import 'https://example.org/a.css'", "a { src: url(https://example.org/a.css) }"])
def test_styles_from_elsewhere(tmp_path: Path, style: str) -> None:
    assert list(links.faults(site(tmp_path, "", style))) == ["site.css: loads https://example.org/a.css"]


def test_a_site_without_pages_is_a_fault(tmp_path: Path) -> None:
    assert links.main([str(tmp_path)]) == 1
