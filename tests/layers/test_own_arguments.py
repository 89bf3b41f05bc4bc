"""Mistakes in what only fastrnn takes: `lengths`, `resets` and `backend`; messages name argument, expected and got."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from tests.torch_parity import BATCH, INPUT, TIME, initial_state, layers, modules, pair, random, tensors

BOOL_LENGTHS = "lengths must be integers of shape (B=3,), got bool of shape (3,)"
WRONG_LENGTHS: dict[str, tuple[Any, type[Exception], str]] = {
    "a number": (5, ValueError, "lengths must be integers of shape (B=3,), got int64 of shape ()"),
    "0-D": (torch.tensor(5), ValueError, "lengths must be integers of shape (B=3,), got int64 of shape ()"),
    "too few": (
        torch.tensor([5, 4]), ValueError, "lengths must be integers of shape (B=3,), got int64 of shape (2,)"
    ),
    "2-D": (
        torch.ones(3, 1, dtype=torch.int64),
        ValueError,
        "lengths must be integers of shape (B=3,), got int64 of shape (3, 1)",
    ),
    "floats": (
        torch.tensor([5.0, 4, 2]),
        ValueError,
        "lengths must be integers of shape (B=3,), got float32 of shape (3,)",
    ),
    "bools": (torch.ones(3, dtype=torch.bool), ValueError, BOOL_LENGTHS),
    "on meta": (
        torch.ones(3, dtype=torch.int64, device="meta"),
        ValueError,
        "lengths must be on the input's device cpu, got meta",
    ),
    "beyond T": (torch.tensor([5, 6, 2]), ValueError, "lengths must lie within [0, T=5], got 6 at index 1"),
    "negative": (torch.tensor([5, 4, -1]), ValueError, "lengths must lie within [0, T=5], got -1 at index 2"),
    "extreme": (
        torch.tensor([5, 4, -(2**63)]), ValueError, "lengths must lie within [0, T=5], got -9223372036854775808"
    ),
}  # fmt: skip
WRONG_RESETS: dict[str, tuple[Any, type[Exception], str]] = {
    "a list": ([True] * TIME, TypeError, "resets must be bool of shape (T=5, B=3), got list"),
    "integers": (
        torch.zeros(TIME, BATCH, dtype=torch.int64),
        ValueError,
        "resets must be bool of shape (T=5, B=3), got int64 of shape (5, 3)",
    ),
    "batch first": (
        torch.zeros(BATCH, TIME, dtype=torch.bool),
        ValueError,
        "resets must be bool of shape (T=5, B=3), got bool of shape (3, 5)",
    ),
    "1-D": (
        torch.zeros(TIME, dtype=torch.bool),
        ValueError,
        "resets must be bool of shape (T=5, B=3), got bool of shape (5,)",
    ),
    "on meta": (
        torch.zeros(TIME, BATCH, dtype=torch.bool, device="meta"),
        ValueError,
        "resets must be on the input's device cpu, got meta",
    ),
}


def operator(kind: str) -> str:
    """A pattern of what messages start with: the class, or the cell's operator, which looks at the range of lengths."""
    return f"^({kind.partition('_')[0].lower()}|{kind.lower()}): "


@layers
@pytest.mark.parametrize(("lengths", "error", "message"), WRONG_LENGTHS.values(), ids=WRONG_LENGTHS)
def test_wrong_lengths(kind: str, lengths: Any, error: type[Exception], message: str) -> None:
    ours, _ = pair(kind)
    with pytest.raises(error, match=operator(kind) + re.escape(message)):
        ours(random(TIME, BATCH, INPUT), lengths=lengths)


@layers
@pytest.mark.parametrize(("resets", "error", "message"), WRONG_RESETS.values(), ids=WRONG_RESETS)
def test_wrong_resets(kind: str, resets: Any, error: type[Exception], message: str) -> None:
    ours, _ = pair(kind)
    with pytest.raises(error, match=operator(kind) + re.escape(message)):
        ours(random(TIME, BATCH, INPUT), resets=resets)


@layers
def test_resets_follow_batch_first(kind: str) -> None:
    ours, _ = pair(kind, batch_first=True)
    resets = torch.zeros(TIME, BATCH, dtype=torch.bool)
    with pytest.raises(ValueError, match=re.escape("must be bool of shape (B=3, T=5), got bool of shape (5, 3)")):
        ours(random(BATCH, TIME, INPUT), resets=resets)


@layers
@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("lengths", torch.tensor([3]), "lengths must be integers of shape (), got int64 of shape (1,)"),
        ("lengths", torch.tensor(6), "lengths must lie within [0, T=5], got 6"),
        ("resets", torch.zeros(4, dtype=torch.bool), "resets must be bool of shape (T=5,), got bool of shape (4,)"),
        (
            "resets",
            torch.zeros(5, 1, dtype=torch.bool),
            "resets must be bool of shape (T=5,), got bool of shape (5, 1)",
        ),
    ],
)
def test_wrong_arguments_of_unbatched_input(kind: str, argument: str, value: Tensor, message: str) -> None:
    ours, _ = pair(kind)
    with pytest.raises(ValueError, match=re.escape(message)):
        ours(random(TIME, INPUT), **{argument: value})


@layers
def test_a_packed_sequence_takes_no_lengths(kind: str) -> None:
    ours, _ = pair(kind)
    packed = pack_padded_sequence(random(TIME, BATCH, INPUT), [5, 4, 2])
    with pytest.raises(ValueError, match="a PackedSequence has its own lengths, lengths must be None"):
        ours(packed, lengths=torch.tensor([5, 4, 2]))


@layers
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch_first"])
def test_resets_of_a_packed_sequence_have_its_padded_shape(kind: str, batch_first: bool) -> None:
    ours, _ = pair(kind, batch_first=batch_first)
    packed = pack_padded_sequence(random(TIME, BATCH, INPUT), [4, 3, 1])
    expected = "(B=3, T=4)" if batch_first else "(T=4, B=3)"
    with pytest.raises(
        ValueError, match=re.escape(f"resets must be bool of shape {expected}, got bool of shape (5, 3)")
    ):
        ours(packed, resets=torch.zeros(TIME, BATCH, dtype=torch.bool))


@layers
def test_lengths_and_resets_are_keywords_only(kind: str) -> None:
    ours, _ = pair(kind)
    with pytest.raises(TypeError, match=r"positional arguments? but 4 were given"):
        ours(random(TIME, BATCH, INPUT), initial_state(kind, ours), torch.tensor([5, 4, 2]))


@modules
def test_a_backend_set_to_an_unknown_name_is_refused_at_the_call(kind: str) -> None:
    ours, _ = pair(kind)
    ours.backend = "cudnn"
    with pytest.raises(ValueError, match="unknown backend 'cudnn'; expected one of 'auto'"):
        ours(random(BATCH, INPUT))


def test_use_backend_refuses_an_unknown_name_and_keeps_the_old_one() -> None:
    with fastrnn.use_backend("reference"):
        with pytest.raises(ValueError, match="unknown backend 'cudnn'"), fastrnn.use_backend("cudnn"):
            pass
        assert fastrnn.explain(fastrnn.GRU(4, 6), torch.zeros(1, 1, 4)).asked == "reference"


@layers
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"lengths": torch.tensor([5, 4, 2])}, "torch's kernels take no lengths"),
        ({"resets": torch.zeros(TIME, BATCH, dtype=torch.bool)}, "torch's kernels take no resets"),
    ],
    ids=["lengths", "resets"],
)
def test_a_named_backend_that_cannot_serve_says_why(kind: str, arguments: dict[str, Tensor], reason: str) -> None:
    ours, _ = pair(kind, backend="aten")
    with pytest.raises(RuntimeError, match=f"backend 'aten' cannot serve this call: {reason}"):
        ours(random(TIME, BATCH, INPUT), **arguments)


MISTAKES = [
    *(
        pytest.param({"lengths": value}, error, id=f"lengths-{name}")
        for name, (value, error, _) in WRONG_LENGTHS.items()
    ),
    *(pytest.param({"resets": value}, error, id=f"resets-{name}") for name, (value, error, _) in WRONG_RESETS.items()),
]


@layers
@pytest.mark.parametrize(("mistake", "error"), MISTAKES)
def test_a_failed_call_changes_nothing(kind: str, mistake: dict[str, Any], error: type[Exception]) -> None:
    ours, _ = pair(kind, num_layers=2, dropout=0.5)
    x, hx = random(TIME, BATCH, INPUT), initial_state(kind, ours)
    everything = [x, *tensors(hx), *ours.parameters()]
    before, random_state = [tensor.detach().clone() for tensor in everything], torch.get_rng_state()
    with pytest.raises(error):
        ours(x, hx, **mistake)
    assert all(torch.equal(a, b) for a, b in zip(everything, before, strict=True))
    assert torch.equal(torch.get_rng_state(), random_state)
