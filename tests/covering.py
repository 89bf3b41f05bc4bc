"""Which of a test's cases the short run takes: of several parameters, enough that any two values meet in some case.

Most mistakes show with one value of a parameter, or with two together: Kuhn, Wallace and Gallo, "Software fault
interactions and implications for software testing" (2004). Such a selection is called a covering array of strength two.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import combinations

Joined = tuple[tuple[int, Hashable], ...]
"""Values of some parameters, each with the parameter's number."""


def covering(cases: Sequence[Sequence[Hashable]], strength: int = 2) -> list[int]:
    """The numbers of cases, in order, that join whatever `strength` values any case joins; all if there are fewer.

    Cases that join most anew are taken first, which leaves few to take.
    """
    joined: list[set[Joined]] = [set(combinations(enumerate(case), strength)) for case in cases]
    missing = set[Joined]().union(*joined)
    if not missing:
        return list(range(len(cases)))
    chosen = []
    for gain in range(max(map(len, joined)), 0, -1):
        for number, each in enumerate(joined):
            if len(missing & each) >= gain:
                missing -= each
                chosen.append(number)
    return sorted(chosen)
