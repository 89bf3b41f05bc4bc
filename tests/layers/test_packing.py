"""Sequences of unequal lengths: PackedSequence against torch.nn, `lengths` against PackedSequence, and `resets`.

And packed sequences that were put together by hand, of which torch's functions believe every number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from tests.torch_parity import (
    BATCH,
    HIDDEN,
    INPUT,
    TIME,
    assert_close,
    assert_same_results,
    backends,
    gradients,
    initial_state,
    layers,
    operator_backends,
    pair,
    random,
    skip_unless_projecting,
    tensors,
)

STACKS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "no bias": {"bias": False},
    "bidirectional": {"bidirectional": True},
    "stack": {"num_layers": 3},
    "everything": {"num_layers": 2, "bidirectional": True, "batch_first": True},
}
LENGTHS = {"descending": [5, 4, 2], "ascending": [1, 3, 5], "equal": [5, 5, 5], "ones": [1, 1, 1]}

CASES = [(options, [2, 5, 3]) for options in STACKS.values()]
CASES += [(STACKS["everything"], lengths) for lengths in LENGTHS.values()]
cases = pytest.mark.parametrize(
    ("options", "lengths"),
    CASES,
    ids=[*(f"mixed-{name}" for name in STACKS), *(f"{name}-everything" for name in LENGTHS)],
)
"""Every stack, and every order of lengths with the stack that has everything."""
orders = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
given_state = pytest.mark.parametrize("with_state", [False, True], ids=["no hx", "hx"])


def packed(x: Tensor, lengths: list[int], batch_first: bool = False) -> PackedSequence:
    """Sorted by the caller where the lengths descend, by torch otherwise; its data a leaf that requires grad."""
    descending = lengths == sorted(lengths, reverse=True)
    result = pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=descending)
    return PackedSequence(result.data.detach().requires_grad_(), *result[1:])


def padded_input(batch_first: bool = False) -> Tensor:
    return random(*((BATCH, TIME) if batch_first else (TIME, BATCH)), INPUT)


@operator_backends
@layers
@cases
@given_state
def test_packed_sequences_are_as_torchs(
    backend: str, kind: str, options: dict[str, Any], lengths: list[int], with_state: bool
) -> None:
    ours, theirs = pair(kind, backend=backend, **options)
    sequence = packed(padded_input(ours.batch_first), lengths, ours.batch_first)
    state = [initial_state(kind, ours, grad=True)] if with_state else []
    assert_same_results(ours, theirs, sequence, *state)


@operator_backends
@orders
@given_state
def test_packed_sequences_through_a_projection(backend: str, lengths: list[int], with_state: bool) -> None:
    skip_unless_projecting(backend)
    ours, theirs = pair("LSTM", backend=backend, proj_size=2, num_layers=2, bidirectional=True)
    state = [initial_state("LSTM", ours, grad=True)] if with_state else []
    assert_same_results(ours, theirs, packed(padded_input(), lengths), *state)


@operator_backends
@layers
def test_result_is_packed_as_the_input(backend: str, kind: str) -> None:
    ours, _ = pair(kind, backend=backend)
    sequence = packed(padded_input(), [2, 5, 3])
    output, _ = ours(sequence)
    assert isinstance(output, PackedSequence)
    assert all(torch.equal(a, b) for a, b in zip(output[1:], sequence[1:], strict=True))


@operator_backends
@layers
def test_one_sequence_packed(backend: str, kind: str) -> None:
    ours, theirs = pair(kind, backend=backend, bidirectional=True)
    assert_same_results(ours, theirs, packed(random(TIME, 1, INPUT), [TIME]))


@operator_backends
@layers
@cases
@given_state
def test_lengths_give_the_packed_result(
    backend: str, kind: str, options: dict[str, Any], lengths: list[int], with_state: bool
) -> None:
    """With NaN beyond the lengths, which must reach nothing, and zero output there."""
    ours, theirs = pair(kind, backend=backend, **options)
    time = 0 if not ours.batch_first else 1
    x = padded_input(ours.batch_first)
    beyond = beyond_lengths(lengths, ours.batch_first)
    sequence = packed(x, lengths, ours.batch_first)
    x[beyond] = float("nan")
    x.requires_grad_()
    state = [initial_state(kind, ours, grad=True)] if with_state else []

    output, our_state = ours(x, *state, lengths=torch.tensor(lengths))
    their_packed, their_state = theirs(sequence, *state)
    expected = pad_packed_sequence(their_packed, batch_first=ours.batch_first, total_length=TIME)[0]
    assert (output[beyond] == 0).all()
    assert output.shape[time] == TIME
    assert_close(output, expected)
    assert_close(tensors(our_state), tensors(their_state))

    leaves = tensors(state)
    our_gradients = gradients((output, our_state), [x, *leaves, *ours.parameters()])
    their_gradients = gradients((expected, their_state), [sequence.data, *leaves, *theirs.parameters()])
    assert (our_gradients[0][beyond] == 0).all()
    our_gradients[0] = packed(our_gradients[0], lengths, ours.batch_first).data.detach()
    assert_close(our_gradients, their_gradients)


def beyond_lengths(lengths: list[int], batch_first: bool = False) -> Tensor:
    """bool, as x without its last dimension: whether a step lies beyond its sequence's end."""
    beyond = torch.arange(TIME)[:, None] >= torch.tensor(lengths)
    return beyond.T if batch_first else beyond


@operator_backends
@layers
@pytest.mark.parametrize("lengths", [[0, 5, 2], [3, 0, 0], [0, 0, 0]], ids=str)
def test_an_empty_sequence_keeps_its_state_and_gives_zero(backend: str, kind: str, lengths: list[int]) -> None:
    ours, _ = pair(kind, backend=backend, num_layers=2, bidirectional=True)
    x, hx = padded_input(), initial_state(kind, ours, grad=True)
    x[beyond_lengths(lengths)] = float("nan")
    output, state = ours(x.requires_grad_(), hx, lengths=torch.tensor(lengths))
    empty = torch.tensor(lengths) == 0
    assert (output[:, empty] == 0).all()
    assert_close([final[:, empty] for final in tensors(state)], [first[:, empty] for first in tensors(hx)], tolerance=0)
    assert all(gradient.isfinite().all() for gradient in gradients((output, state), [x, *ours.parameters()]))


@operator_backends
@layers
def test_each_sequence_is_as_if_alone(backend: str, kind: str) -> None:
    ours, theirs = pair(kind, backend=backend, num_layers=2, bidirectional=True)
    x, hx, lengths = padded_input(), initial_state(kind, ours), [4, 1, 3]
    output, state = ours(x, hx, lengths=torch.tensor(lengths))
    for row, length in enumerate(lengths):
        alone = tuple(first[:, row] for first in tensors(hx))
        expected, final = theirs(x[:length, row], alone if kind == "LSTM" else alone[0])
        assert_close(output[:length, row], expected)
        assert_close([tensor[:, row] for tensor in tensors(state)], tensors(final))


@operator_backends
@layers
def test_lengths_of_unbatched_input(backend: str, kind: str) -> None:
    ours, theirs = pair(kind, backend=backend, bidirectional=True)
    x = random(TIME, INPUT)
    output, state = ours(x, lengths=torch.tensor(3))
    expected, final = theirs(x[:3])
    assert_close(output, torch.cat((expected, torch.zeros(TIME - 3, 2 * HIDDEN, dtype=x.dtype))))
    assert_close(tensors(state), tensors(final))


@operator_backends
@layers
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_lengths_of_any_integer_dtype(backend: str, kind: str, dtype: torch.dtype) -> None:
    ours, _ = pair(kind, backend=backend)
    x = padded_input()
    expected = ours(x, lengths=torch.tensor([2, 5, 3]))
    assert_close(tensors(ours(x, lengths=torch.tensor([2, 5, 3], dtype=dtype))), tensors(expected), tolerance=0)


@operator_backends
@layers
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch_first"])
def test_a_reset_starts_from_zero(backend: str, kind: str, batch_first: bool) -> None:
    """Cutting all sequences before step 2 is running the two parts one after another, the second without state."""
    ours, theirs = pair(kind, backend=backend, batch_first=batch_first)
    x, hx, time = padded_input(batch_first), initial_state(kind, ours), 1 if batch_first else 0
    resets = torch.zeros(x.shape[:2], dtype=torch.bool)
    resets.select(time, 2).fill_(True)
    first, second = x.split([2, TIME - 2], time)
    expected, state = theirs(second)
    output, our_state = ours(x, hx, resets=resets)
    assert_close(output, torch.cat((theirs(first, hx)[0], expected), time))
    assert_close(tensors(our_state), tensors(state))


@operator_backends
@layers
def test_a_reset_cuts_both_directions(backend: str, kind: str) -> None:
    ours, theirs = pair(kind, backend=backend, bidirectional=True)
    x = random(TIME, INPUT)
    resets = torch.arange(TIME) == 2
    output, _ = ours(x, resets=resets)
    assert_close(output, torch.cat((theirs(x[:2])[0], theirs(x[2:])[0])))


@operator_backends
@layers
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch_first"])
def test_resets_of_a_packed_sequence_are_in_the_callers_order(backend: str, kind: str, batch_first: bool) -> None:
    ours, _ = pair(kind, backend=backend, num_layers=2, bidirectional=True, batch_first=batch_first)
    lengths, x = [2, 5, 3], padded_input(batch_first)
    resets = torch.rand(x.shape[:2]) < 0.4
    expected, expected_state = ours(x, lengths=torch.tensor(lengths), resets=resets)
    output, state = ours(packed(x, lengths, batch_first), resets=resets)
    assert_close(pad_packed_sequence(output, batch_first=batch_first)[0], expected)
    assert_close(tensors(state), tensors(expected_state))


@operator_backends
@layers
def test_a_packed_sequence_may_be_shorter_than_its_padding_was(backend: str, kind: str) -> None:
    ours, theirs = pair(kind, backend=backend, bidirectional=True)
    assert_same_results(ours, theirs, packed(padded_input(), [2, 3, 1]))


def with_sizes(*sizes: float, dtype: torch.dtype = torch.int64) -> Callable[[PackedSequence], PackedSequence]:
    return lambda packed: packed._replace(batch_sizes=torch.tensor(sizes, dtype=dtype))


SIZES = "gru: no size in batch_sizes of a PackedSequence may be negative or larger than the one before, "
FORM = "gru: batch_sizes of a PackedSequence must be a 1D cpu int64 tensor, got "
ONCE = "of a PackedSequence must hold every number below B=3 once"
INDICES = r"of a PackedSequence must be int64 of shape \(B=3,\) on cpu, got "
MALFORMED: dict[str, tuple[Callable[[PackedSequence], PackedSequence], type[Exception], str]] = {
    "a negative size": (with_sizes(3, -1), RuntimeError, SIZES + "got -1 at index 1 after 3"),
    "a negative first size": (with_sizes(-1, 3), RuntimeError, SIZES + "got -1 at index 0"),
    "growing sizes": (with_sizes(2, 3, 5), RuntimeError, SIZES + "got 3 at index 1 after 2"),
    "sizes that grow late": (with_sizes(3, 3, 1, 2, 1), RuntimeError, SIZES + "got 2 at index 3 after 1"),
    "too many rows": (with_sizes(3, 3, 2, 1), RuntimeError, "must add up to the 10 rows of data, got 9"),
    "too few rows": (with_sizes(3, 3, 2, 2, 1), RuntimeError, "must add up to the 10 rows of data, got 11"),
    "a huge size": (with_sizes(1 << 40, 1), RuntimeError, "must add up to the 10 rows of data, got 1099511627777"),
    "no sizes": (with_sizes(), RuntimeError, "must hold a size for each step, got none"),
    "int32 sizes": (with_sizes(3, 3, 2, 1, 1, dtype=torch.int32), RuntimeError, FORM + "1D cpu int32"),
    "floating sizes": (with_sizes(3, 3, 2, 1, 1, dtype=torch.float32), RuntimeError, FORM + "1D cpu float32"),
    "2-D sizes": (lambda p: p._replace(batch_sizes=p.batch_sizes[None]), RuntimeError, FORM + "2D cpu int64"),
    "0-D sizes": (lambda p: p._replace(batch_sizes=p.batch_sizes.sum()), RuntimeError, FORM + "0D cpu int64"),
    "sizes elsewhere": (lambda p: p._replace(batch_sizes=p.batch_sizes.to("meta")), RuntimeError, FORM + "1D meta"),
    "sizes in a list": (lambda p: p._replace(batch_sizes=[10]), TypeError, "batch_sizes .* must be a tensor, got list"),
    "no data": (lambda p: p._replace(data=None), TypeError, "data of a PackedSequence must be a tensor, got NoneType"),
    "1-D data": (lambda p: p._replace(data=p.data[:, 0]), RuntimeError, "input must have 2 dimensions, got 1"),
} | {
    f"{field}, {name}": (lambda p, f=field, change=change: p._replace(**{f: change(getattr(p, f))}), error, message)
    for field in ("sorted_indices", "unsorted_indices")
    for name, change, error, message in (
        ("out of range", lambda i: i + 1, RuntimeError, ONCE),
        ("negative", lambda i: i - 1, RuntimeError, ONCE),
        ("one twice", lambda i: i * 0, RuntimeError, ONCE),
        ("too few", lambda i: i[:2], RuntimeError, INDICES + r"int64 of shape \(2,\) on cpu"),
        ("too many", lambda i: torch.cat((i, i)), RuntimeError, INDICES + r"int64 of shape \(6,\) on cpu"),
        ("floating", lambda i: i.float(), RuntimeError, INDICES + r"float32 of shape \(3,\) on cpu"),
        ("2-D", lambda i: i[None], RuntimeError, INDICES + r"int64 of shape \(1, 3\) on cpu"),
        ("elsewhere", lambda i: i.to("meta"), RuntimeError, INDICES + r"int64 of shape \(3,\) on meta"),
        ("in a list", lambda i: i.tolist(), TypeError, "of a PackedSequence must be a tensor, got list"),
    )
}  # fmt: skip


@pytest.mark.parametrize("mistake", MALFORMED)
def test_malformed_packed_sequences_are_refused(mistake: str) -> None:
    """Where torch raises, it is from whatever fails first; in its functions some of these end the process."""
    change, error, message = MALFORMED[mistake]
    wrong = change(pack_padded_sequence(padded_input(), [2, 5, 3], enforce_sorted=False))
    for backend in ("numba", "aten"):
        ours, _ = pair("GRU", backend=backend)
        for state in ((), (initial_state("GRU", ours),)):
            with pytest.raises(error, match=message):
                ours(wrong, *state)


@backends
@pytest.mark.parametrize("rows", [3, 0])
def test_a_step_may_have_no_sequences(backend: str, rows: int) -> None:
    """As torch's layers allow it, though no function makes such a packed sequence."""
    ours, theirs = pair("GRU", backend=backend)
    sequence = PackedSequence(random(rows, INPUT), torch.tensor([rows, 0]))
    assert_close(ours(sequence), theirs(sequence))


@backends
@pytest.mark.parametrize("lies", ["strided", "expanded", "negative"])
def test_batch_sizes_however_they_lie_in_memory(backend: str, lies: str) -> None:
    """torch's functions read them as if they were contiguous."""
    sizes = torch.tensor([2, 2, 2])
    views = {
        "strided": torch.tensor([2, 9, 2, 9, 2])[::2],
        "expanded": sizes[:1].expand(3),
        "negative": torch._neg_view(-sizes),
    }
    ours, theirs = pair("GRU", backend=backend, bidirectional=True)
    data = random(6, INPUT)
    expected = theirs(PackedSequence(data, sizes))[0].data
    assert_close(ours(PackedSequence(data, views[lies]))[0].data, expected)
