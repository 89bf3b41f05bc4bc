"""Some random operations on fastrnn's modules and torch.nn's: `tests.torch.state_machine` runs for as long as asked."""

from __future__ import annotations

import pytest

from tests.torch.state_machine import machine, running

EXAMPLES = 20
SEED = 1


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_nothing_that_happens_between_calls_shows() -> None:
    machine.ran.clear()
    running.run(SEED, EXAMPLES)
    kinds = {name.partition(":")[0] for name in machine.ran}
    assert {"call", "again", "in turn", "make", "change", "visit", "mistake", "hold"} <= kinds, "a rule never ran"
