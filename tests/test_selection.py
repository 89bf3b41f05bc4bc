"""Which cases the short run takes."""

from __future__ import annotations

from itertools import combinations, product

import pytest

from tests.covering import covering

pytest_plugins = ["pytester"]

CASES = [case for case in product(range(5), "abc", (True, False), (None, 1)) if case[:2] != (3, "b")]

TESTS = """
import pytest
from collections import namedtuple
from itertools import product

class Four(namedtuple("Four", "a b c d")):
    FOLLOWING = ("d",)

@pytest.mark.parametrize("c", range(3))
@pytest.mark.parametrize("b", range(3))
@pytest.mark.parametrize("a", range(3))
def test_of_three(a, b, c):
    pass

@pytest.mark.exhaustive
def test_marked():
    pass

@pytest.mark.exhaustive
@pytest.mark.parametrize("fields", [Four(*one, one) for one in product(range(2), repeat=3)])
def test_of_fields(fields):
    pass

@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", [Four, int])
def test_of_classes(kind):
    pass

@pytest.mark.skipif(True, reason="not here")
@pytest.mark.parametrize("a", range(3))
def test_skipped(a):
    pass
"""


def test_any_two_values_meet_in_few_cases() -> None:
    chosen = [CASES[number] for number in covering(CASES)]
    for i, j in combinations(range(4), 2):
        assert {(case[i], case[j]) for case in chosen} == {(case[i], case[j]) for case in CASES}
    assert len(chosen) <= 16  # of 56; the first two alone ask for 14


def test_all_values_of_one_parameter_are_taken() -> None:
    assert covering([["a"], ["b"], ["c"]]) == [0, 1, 2]
    assert covering([[]]) == [0]
    assert covering([]) == []


@pytest.mark.parametrize(
    ("options", "passed", "skipped"),
    [
        ([], 10, 3),
        (["--exhaustive"], 38, 3),
        (["--only-exhaustive"], 28, 0),
        (["--thorough"], 7, 0),
        (["test_it.py::test_marked"], 1, 0),
    ],
    ids=str,
)
def test_what_a_run_takes(pytester: pytest.Pytester, options: list[str], passed: int, skipped: int) -> None:
    pytester.makepyfile(test_it=TESTS)
    pytester.makeini("[pytest]\nmarkers = exhaustive")
    result = pytester.runpytest_inprocess("-p", "tests.selection", "-p", "no:xdist", *options)
    result.assert_outcomes(passed=passed, skipped=skipped)
