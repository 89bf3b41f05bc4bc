"""Some random operations on fastrnn's modules and torch.nn's: `tests.torch.state_machine` runs for as long as asked."""

from __future__ import annotations

import pytest

from tests.torch.state_machine import machine, running

EXAMPLES = 60
SEED = 1


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_nothing_that_happens_between_calls_shows() -> None:
    machine.ran.clear()
    running.run(SEED, EXAMPLES)
    rules = {"call", "again", "in turn", "make", "make alike", "drop", "exchange", "tie", "threads of torch"}
    assert rules | {"hold", "finish"} <= set(machine.ran), "a rule never ran"
