"""What is added to a message where the mistake is a beginner's: torch's own text stands first, what to do after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from tests.torch_parity import (
    BATCH,
    CELLS,
    HIDDEN,
    INPUT,
    LAYERS,
    TIME,
    error_of,
    modules,
    numba_first,
    pair,
    random,
)

IDS = "Ids must become vectors first: torch.nn.Embedding(number_of_ids, input_size)(ids), or torch.nn.functional.one"
NUMBERS = "become floating point by input.double(); ids become vectors by torch.nn.Embedding"
CARRIED = "h, c = h.detach(), c.detach()"

Change = Callable[[Tensor], Any]
"""Of an input (..., INPUT), what is given instead of it."""

OF_ALL: dict[str, tuple[Change, str]] = {"another size": (lambda x: x[..., :2].long(), IDS)}
OF_LAYERS: dict[str, tuple[Change, str]] = OF_ALL | {
    "integers": (lambda x: x.long(), NUMBERS),
    "bytes": (lambda x: x.to(torch.uint8), NUMBERS),
    "bools": (lambda x: x > 0, NUMBERS),
    "bools of another size": (lambda x: (x > 0)[..., :2], NUMBERS),
    "unbatched integers": (lambda x: x[:, 0].long(), NUMBERS),
    "ids (T, B)": (lambda x: x[..., 0].long(), IDS),
    "ids (T,)": (lambda x: x[:, 0, 0].long(), IDS),
}
OF_PACKED: dict[str, tuple[Change, str]] = {
    "packed integers": (lambda x: pack_padded_sequence(x.long(), [5, 4, 2]), NUMBERS),
    "packed, another size": (lambda x: pack_padded_sequence(x[..., :2].long(), [5, 4, 2]), IDS),
}
OF_CELLS: dict[str, tuple[Change, str]] = OF_ALL | {"ids (B,)": (lambda x: x[:, 0].long(), IDS)}


@pytest.mark.parametrize(
    ("kind", "change", "hint"),
    [
        pytest.param(kind, *case, id=f"{kind}-{name}")
        for kinds, cases in ((LAYERS, OF_LAYERS), (["RNN_TANH", "GRU"], OF_PACKED), (CELLS, OF_CELLS))
        for kind in kinds
        for name, case in cases.items()
    ],
)
def test_integers_and_ids(kind: str, change: Change, hint: str) -> None:
    ours, theirs = pair(kind)
    x = change(random(*([BATCH] if kind in CELLS else [TIME, BATCH]), INPUT))
    expected, got = error_of(lambda: theirs(x)), error_of(lambda: ours(x))
    assert type(got) is type(expected)
    assert str(got).startswith(f"{expected}. ")
    assert hint in str(got)


@pytest.mark.parametrize("kind", CELLS)
def test_integers_of_cells_that_torch_only_fails_to_multiply(kind: str) -> None:
    with pytest.raises(RuntimeError, match=r"same dtype, but got torch.int64 and torch.float64\. Integers") as error:
        pair(kind)[0](torch.zeros(BATCH, INPUT, dtype=torch.int64))
    assert NUMBERS in str(error.value)


def test_packed_integers_which_torch_checks_otherwise() -> None:
    ids, lstm = torch.zeros(TIME, BATCH, INPUT, dtype=torch.int64), pair("LSTM")[0]
    with pytest.raises(ValueError, match=r"RNN input dtype \(torch.int64\) does not match .*become floating point"):
        lstm(pack_padded_sequence(ids, [5, 4, 2]))
    with pytest.raises(RuntimeError, match=r"input must have 2 dimensions, got 1\. Ids must become vectors first"):
        lstm(pack_padded_sequence(ids[..., 0], [5, 4, 2]))


def test_of_every_way_to_call() -> None:
    ids, lstm = torch.zeros(BATCH, TIME, dtype=torch.int64), fastrnn.LSTM(INPUT, HIDDEN)
    own = fastrnn.Recurrent(fastrnn.cells.library.indrnn, INPUT, HIDDEN)
    weights = [weight.detach() for weight in lstm.parameters()]
    compiled = torch.compile(lstm, backend="eager")
    for call in (lstm, own, compiled, lambda x: fastrnn.functional.lstm(x, None, [weights])):
        with pytest.raises(ValueError, match="Ids must become vectors first"):
            call(ids)
    stream = fastrnn.stream(lstm)
    for x in (torch.zeros(1, INPUT, dtype=torch.int64), np.zeros((1, INPUT), np.int64)):
        with pytest.raises(ValueError, match=r"x must be float32, got int64\. Integers .* input\.float\(\)"):
            stream(x)


def test_no_hint_where_the_input_is_neither() -> None:
    lstm = fastrnn.LSTM(INPUT, HIDDEN)
    for x in (random(TIME, BATCH, INPUT), random(INPUT), random(TIME, BATCH, INPUT) * 1j):
        assert "Embedding" not in str(error_of(lambda x=x: lstm(x)))
    h = torch.zeros(1, BATCH, HIDDEN, dtype=torch.int64)
    assert "Embedding" not in str(error_of(lambda: lstm(torch.zeros(TIME, BATCH, INPUT), (h, h))))


def carried(module: nn.Module, x: Tensor, *, retain_graph: bool = False, train: bool = True) -> None:
    """Trains in chunks, and does not detach the state between them."""
    optimizer, states = torch.optim.SGD(module.parameters(), 0.1), None
    for _ in range(3):
        result = module(x, states)
        states = result[1] if isinstance(module, nn.RNNBase) else result
        (states[0] if isinstance(states, tuple) else states).sum().backward(retain_graph=retain_graph)
        if train:
            optimizer.step()


@numba_first
@modules
def test_a_state_that_was_not_detached(kind: str, backend: str) -> None:
    ours, theirs = pair(kind, backend=backend)
    x = random(*([BATCH] if kind in CELLS else [TIME, BATCH]), INPUT)
    expected, got = error_of(lambda: carried(theirs, x)), error_of(lambda: carried(ours, x))
    assert type(got) is type(expected) is RuntimeError
    assert str(got).startswith(f"{expected} A state that is carried")
    assert CARRIED in str(got)
    # What torch advises against that does not help: then the optimizer has changed the weights meanwhile.
    ours, _ = pair(kind, backend=backend)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation: .*h, c = h\.detach\(\), c\.detach\(\)"):
        carried(ours, x, retain_graph=True)
    ours, _ = pair(kind, backend=backend)
    carried(ours, x, retain_graph=True, train=False)


def test_an_output_that_was_changed_in_place() -> None:
    output, _ = fastrnn.LSTM(INPUT, HIDDEN, backend="numba")(torch.randn(TIME, BATCH, INPUT))
    output.mul_(2)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation: .* write output = output \* 2"):
        output.sum().backward()


def test_other_errors_of_saved_tensors_stay_as_they_are() -> None:
    def unpack(kept: Any) -> Tensor:
        raise RuntimeError("there is no disk")

    lstm = fastrnn.LSTM(INPUT, HIDDEN, backend="numba")
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):
        output, _ = lstm(torch.zeros(TIME, BATCH, INPUT))
    with pytest.raises(RuntimeError, match=r"^there is no disk$"):
        output.sum().backward()
