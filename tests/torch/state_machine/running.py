"""How the machine is run, and what is told of it."""

from __future__ import annotations

from collections import Counter

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.torch.state_machine import machine

STEPS = 25
"""Of an example: a failure is sooner found in many short ones, because there is less to shrink."""


def run(seed: int, examples: int) -> None:
    """That many sequences of operations; raises what the shortest one that fails raises, and prints it."""
    options = settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        database=None,
        deadline=None,
        print_blob=True,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(hypothesis.seed(seed)(machine.Modules), settings=options)


def coverage() -> str:
    """How often each rule ran, and each of what it chooses from, a line each; what never did comes first."""
    counts = Counter(dict.fromkeys(machine.NAMES, 0))
    counts.update(machine.ran)
    return "\n".join(f"{count:8} {name}" for name, count in sorted(counts.items(), key=lambda item: item[1]))
