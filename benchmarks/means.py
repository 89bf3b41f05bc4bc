"""What is said of many cases at once: the geometric mean of their ratios, and the worst of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from benchmarks.cases import Case
from benchmarks.runner import CaseResult

OVERALL = "all"
RATIO, PEER_RATIO, GRAPH_RATIO = "ratio", "peer_ratio", "graph_ratio"
"""Which of an entry's ratios."""


class Worst(NamedTuple):
    """The case where a contender does worst."""

    ratio: float
    case: str


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive values, at least one."""
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def geometric_means(results: Sequence[CaseResult], which: str = RATIO) -> dict[str, dict[str, float]]:
    """For each contender, the geometric mean of its ratios by cell, mode and dtype, and over all cases as OVERALL."""
    return {
        contender: {group: geometric_mean([ratio for ratio, _ in values]) for group, values in groups.items()}
        for contender, groups in grouped(results, which).items()
    }


def worst_cases(results: Sequence[CaseResult], which: str = RATIO) -> dict[str, dict[str, Worst]]:
    """For each contender, its least ratio and the case's label, in the groups of `geometric_means`."""
    return {
        contender: {group: min(values) for group, values in groups.items()}
        for contender, groups in grouped(results, which).items()
    }


def grouped(results: Sequence[CaseResult], which: str) -> dict[str, dict[str, list[Worst]]]:
    """For each contender and group, OVERALL last, the median ratio of each case that has one, with its label."""
    found: dict[str, dict[str, list[Worst]]] = {}
    for contender, case, ratio in ratios(results, which):
        groups = found.setdefault(contender, {OVERALL: []})
        for group in (group_of(case), OVERALL):
            groups.setdefault(group, []).append(Worst(ratio, case.label))
    for groups in found.values():
        groups[OVERALL] = groups.pop(OVERALL)
    return found


def ratios(results: Sequence[CaseResult], which: str) -> Iterator[tuple[str, Case, float]]:
    for result in results:
        for entry in result.entries:
            summary = getattr(entry, which)
            if summary is not None:
                yield entry.contender, result.case, summary.median


def group_of(case: Case) -> str:
    """The cell and the mode, and the dtype if it is not float32."""
    parts = (case.cell, case.mode) if case.dtype == "float32" else (case.cell, case.mode, case.dtype)
    return " ".join(parts)
