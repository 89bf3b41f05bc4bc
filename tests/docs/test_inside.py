"""docs/inside.md follows the code: what it says is there, its lines of code are the code's, and its numbers true."""

from __future__ import annotations

import re

import pytest
import torch

from benchmarks.checkout import ROOT
from fastrnn.backends.numba.compile import kernel
from fastrnn.backends.numba.forward_schedule import schedule
from fastrnn.backends.numba.kernels.simd import fuses_multiply_add, register_bits
from fastrnn.backends.numba.kernels.tile import parts, tile_rows

DOCS = ROOT / "docs"
PAGE = (DOCS / "inside.md").read_text()
NAMED = re.findall(r"`(\w+)` in\s+\[`[^`]+`\]\(([^)]+)\)", PAGE)
"""A function, and the file where the page says that it is."""
LINKED = sorted(set(re.findall(r"\]\((\.\./[^)]+)\)", PAGE)))
EXCERPTS = re.findall(r"```py\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_page_says_where_functions_are() -> None:
    assert len(NAMED) >= 8


@pytest.mark.parametrize(("name", "path"), NAMED)
def test_a_function_is_where_the_page_says(name: str, path: str) -> None:
    assert re.search(rf"^(\s*def )?{name}\(", (DOCS / path).read_text(), re.MULTILINE), path


def test_excerpts_are_the_codes_own_lines() -> None:
    assert len(EXCERPTS) == 2
    there = {line.strip() for path in LINKED for line in (DOCS / path).read_text().splitlines()}
    for excerpt in EXCERPTS:
        lines = {line.strip() for line in excerpt.splitlines()}
        assert lines - {"...", ""} <= there


def avx2() -> bool:
    return register_bits() == 256 and fuses_multiply_add()


@pytest.mark.skipif(not avx2(), reason="the page's numbers are AVX2's")
def test_the_numbers_of_the_layer_that_the_page_follows() -> None:
    geometry = kernel("lstm", "forward", torch.float32).geometry
    assert (geometry.lanes, geometry.rows, geometry.tile_bytes) == (8, 6, 768)
    assert tile_rows(4) == 6
    assert parts(4, 6) == [range(2), range(2, 4)]

    def cut(batch: int, units: int) -> tuple[int, ...]:
        sizes = ("lstm", torch.float32, (100, batch, units), units, units)
        threads, (shape,), _ = schedule(*sizes, 1, 1, False, False, 2).launches[-1]
        return threads, shape.slices, shape.team, shape.panels, shape.chunk

    assert cut(32, 64) == (2, 2, 1, 8, 24)
    assert cut(1, 64)[:3] == (1, 1, 1)
    assert cut(1, 128)[:3] == cut(1, 256)[:3] == (2, 1, 2)
