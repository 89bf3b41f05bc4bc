"""docs/gallery/: every topic has its program, every program its topic, its picture and what it found."""

from __future__ import annotations

import inspect
import json
from collections import Counter

import pytest

from benchmarks.checkout import ROOT
from fastrnn.cells import library
from tests.examples.programs import PICTURE_BYTES

DOCS = ROOT / "docs"
PROGRAMS = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))
TOPICS = json.loads((DOCS / "gallery" / "topics.json").read_text(encoding="utf-8"))
ITEMS = range(1, 11)
"""of the list of topics that the gallery is to show"""


def test_no_topic_is_missing() -> None:
    assert {row["item"] for row in TOPICS if row["item"] is not None} == set(ITEMS)


def test_topics_and_programs_are_one_to_one() -> None:
    assert Counter(row["program"] for row in TOPICS) == Counter(PROGRAMS)


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_the_gallery_shows_of_a_program(program: str) -> None:
    result = json.loads((DOCS / "gallery" / "results.json").read_text(encoding="utf-8"))[program]
    assert result["line"] == result["printed"][-1]
    assert 0 < result["seconds"] <= 120
    picture = DOCS / "pictures" / "gallery" / f"{program}.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size < PICTURE_BYTES


def test_the_librarys_cells_have_their_signatures() -> None:
    """Which Sphinx cannot ask of what `fastrnn.cell` makes."""

    def shown(name: str) -> str:
        signature = inspect.signature(getattr(library, name).__wrapped__)
        plain = [parameter.replace(annotation=parameter.empty) for parameter in signature.parameters.values()]
        return f".. autofunction:: {name}{signature.replace(parameters=plain, return_annotation=signature.empty)}"

    lines = (DOCS / "api" / "library.rst").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("..") and "function" in line] == list(map(shown, library.__all__))
