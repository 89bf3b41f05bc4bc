"""Which of a test's cases the short run takes: of several parameters, enough that any two values meet in some case.

Most mistakes show with one value of a parameter, or with two together: Kuhn, Wallace and Gallo, "Software fault
interactions and implications for software testing" (2004). Such a selection is called a covering array of strength two.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import combinations

Pair = tuple[int, Hashable, int, Hashable]


def covering(cases: Sequence[Sequence[Hashable]]) -> list[int]:
    """The numbers of cases, in order, that join all pairs of values which any case joins; all of one parameter's.

    Cases that join most pairs anew are taken first, which leaves few to take.
    """
    pairs = [_pairs(case) for case in cases]
    missing = set[Pair]().union(*pairs)
    if not missing:
        return list(range(len(cases)))
    chosen = []
    for gain in range(max(map(len, pairs)), 0, -1):
        for number, joined in enumerate(pairs):
            if len(missing & joined) >= gain:
                missing -= joined
                chosen.append(number)
    return sorted(chosen)


def _pairs(case: Sequence[Hashable]) -> set[Pair]:
    return {(i, a, j, b) for (i, a), (j, b) in combinations(enumerate(case), 2)}
