"""Every mistake in a call raises what torch.nn raises for it, the same type with the same message.

Where torch has no message of its own, because the mistake surfaces by accident somewhere below or not at all, fastrnn's
message is given instead, with the reason. `test_own_arguments.py` has the mistakes in what torch does not take,
`test_hints.py` those of which fastrnn says more than torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from tests.torch_parity import (
    BATCH,
    CELLS,
    INPUT,
    LAYERS,
    TIME,
    assert_same_error,
    initial_state,
    operator_backends,
    pair,
    random,
)

Mistake = Callable[[Any, Tensor, Any], Any]


def each(hx: Any, change: Callable[[Tensor], Any]) -> Any:
    """`change` applied to a state or to both."""
    return tuple(map(change, hx)) if isinstance(hx, tuple) else change(hx)


def packed(x: Tensor, *lengths: int) -> Any:
    return pack_padded_sequence(x, lengths or (5, 4, 2), enforce_sorted=False)


def call(kind: str, mistake: Mistake, backend: str | None = None) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The mistake as a call of fastrnn's module and of torch's, with the same arguments."""
    ours, theirs = pair(kind, backend=backend)
    x = random(*([BATCH] if kind in CELLS else [TIME, BATCH]), INPUT)
    hx = initial_state(kind, ours)
    return lambda: mistake(ours, x, hx), lambda: mistake(theirs, x, hx)


LAYER_MISTAKES: dict[str, Mistake] = {
    "no input": lambda module, x, hx: module(),
    "scalar input": lambda module, x, hx: module(x.sum()),
    "1-D input": lambda module, x, hx: module(x[0, 0]),
    "4-D input": lambda module, x, hx: module(x[None]),
    "input size": lambda module, x, hx: module(x[..., :2]),
    "unbatched input size": lambda module, x, hx: module(x[:, 0, :2]),
    "float32 input": lambda module, x, hx: module(x.float()),
    "complex input": lambda module, x, hx: module(x.to(torch.complex128)),
    "input on meta": lambda module, x, hx: module(x.to("meta")),
    "input and hx on meta": lambda module, x, hx: module(x.to("meta"), each(hx, lambda h: h.to("meta"))),
    "module on meta": lambda module, x, hx: module.to("meta")(x),
    "hx on meta": lambda module, x, hx: module(x, each(hx, lambda h: h.to("meta"))),
    "2-D hx": lambda module, x, hx: module(x, each(hx, lambda h: h[0])),
    "4-D hx": lambda module, x, hx: module(x, each(hx, lambda h: h[None])),
    "batched hx, unbatched input": lambda module, x, hx: module(x[:, 0], hx),
    "hx batch": lambda module, x, hx: module(x, each(hx, lambda h: h[:, :2])),
    "hx layers": lambda module, x, hx: module(x, each(hx, lambda h: torch.cat((h, h)))),
    "hx size": lambda module, x, hx: module(x, each(hx, lambda h: h[..., :2])),
    "unbatched hx size": lambda module, x, hx: module(x[:, 0], each(hx, lambda h: h[:, 0, :2])),
    "unbatched hx layers": lambda module, x, hx: module(x[:, 0], each(hx, lambda h: torch.cat((h, h))[:, 0])),
    "unknown keyword": lambda module, x, hx: module(x, state=hx),
}
PACKED_MISTAKES: dict[str, Mistake] = {
    "packed input size": lambda module, x, hx: module(packed(x[..., :2])),
    "packed float32": lambda module, x, hx: module(packed(x.float())),
    "packed 1-D rows": lambda module, x, hx: module(packed(x[..., 0])),
    "packed 3-D rows": lambda module, x, hx: module(packed(x[..., None])),
    "packed, 2-D hx": lambda module, x, hx: module(sorted_packed(x), each(hx, lambda h: h[0])),
    "packed, 4-D hx": lambda module, x, hx: module(sorted_packed(x), each(hx, lambda h: h[None])),
    "packed, hx batch": lambda module, x, hx: module(sorted_packed(x), each(hx, lambda h: h[:, :2])),
    "packed, hx layers": lambda module, x, hx: module(packed(x), each(hx, lambda h: torch.cat((h, h)))),
    "packed, hx size": lambda module, x, hx: module(packed(x), each(hx, lambda h: h[..., :2])),
}
LSTM_MISTAKES: dict[str, Mistake] = {
    "cx size": lambda module, x, hx: module(x, (hx[0], hx[1][..., :2])),
    "cx batch": lambda module, x, hx: module(x, (hx[0], hx[1][:, :2])),
    "2-D cx": lambda module, x, hx: module(x, (hx[0], hx[1][0])),
}
CELL_MISTAKES: dict[str, Mistake] = {
    "no input": lambda module, x, hx: module(),
    "scalar input": lambda module, x, hx: module(x.sum()),
    "3-D input": lambda module, x, hx: module(x[None]),
    "input size": lambda module, x, hx: module(x[:, :2]),
    "unbatched input size": lambda module, x, hx: module(x[0, :2]),
    "input is None": lambda module, x, hx: module(None),
    "input is a list": lambda module, x, hx: module(x.tolist()),
    "input is packed": lambda module, x, hx: module(packed(x[None].expand(TIME, -1, -1))),
    "3-D hx": lambda module, x, hx: module(x, each(hx, lambda h: h[None])),
    "scalar hx": lambda module, x, hx: module(x, each(hx, lambda h: h.sum())),
    "unbatched hx size": lambda module, x, hx: module(x[0], each(hx, lambda h: h[0, :2])),
    "hx batch": lambda module, x, hx: module(x, each(hx, lambda h: h[:2])),
    "hx size": lambda module, x, hx: module(x, each(hx, lambda h: h[:, :2])),
    "unknown keyword": lambda module, x, hx: module(x, state=hx),
}
LSTM_CELL_MISTAKES: dict[str, Mistake] = {
    "cx size": lambda module, x, hx: module(x, (hx[0], hx[1][:, :2])),
    "cx batch": lambda module, x, hx: module(x, (hx[0], hx[1][:2])),
    "3-D cx": lambda module, x, hx: module(x, (hx[0], hx[1][None])),
    "one state": lambda module, x, hx: module(x, hx[:1]),
    "three states": lambda module, x, hx: module(x, (*hx, hx[0])),
}


def sorted_packed(x: Tensor) -> Any:
    """Without indices to reorder hx by, where torch would trip over hx before it checks it."""
    return pack_padded_sequence(x, (5, 4, 2))


def cases(*groups: tuple[Any, dict[str, Mistake]]) -> Any:
    return pytest.mark.parametrize(
        ("kind", "mistake"),
        [
            pytest.param(kind, mistake, id=f"{kind}-{name}")
            for kinds, mistakes in groups
            for kind in kinds
            for name, mistake in mistakes.items()
        ],
    )


UNPACKED_KINDS = [kind for kind in LAYERS if kind != "LSTM"]


@cases(
    (LAYERS, LAYER_MISTAKES),
    (UNPACKED_KINDS, PACKED_MISTAKES),
    (["LSTM"], LSTM_MISTAKES),
    (CELLS, CELL_MISTAKES),
    (["LSTM_CELL"], LSTM_CELL_MISTAKES),
)
def test_raises_as_torch(kind: str, mistake: Mistake) -> None:
    assert_same_error(*call(kind, mistake))


UNCHECKED = "LSTM with a PackedSequence: torch checks nothing, and reads memory out of bounds for some of these"
DIMENSIONS = "torch before 2.15: compares sizes first, of dimensions that are others"
NO_TENSOR = "torch: AttributeError for a method that the object happens to lack, or an IndexError"
DTYPES = "torch: from the matrix product, or 'get_mkldnn_dtype: unsupported data type', or no error for cx"
DEVICES = "torch: from the indexing or the product below, with the devices in another order"
INDICES = "torch: from index_select, before hx is checked, or no error where hx has too many rows"

Clearer = tuple[str, str, Mistake, type[Exception], str]
"""Reason, name, mistake, and fastrnn's type and message."""

LAYERS_CLEARER: list[Clearer] = [
    (NO_TENSOR, "input is None", lambda m, x, hx: m(None), TypeError, "must be a tensor or a PackedSequence, got None"),
    (NO_TENSOR, "input is a list", lambda m, x, hx: m(x.tolist()), TypeError, "PackedSequence, got list"),
    (NO_TENSOR, "input is an array", lambda m, x, hx: m(x.numpy()), TypeError, "PackedSequence, got ndarray"),
    (NO_TENSOR, "hx is a number", lambda m, x, hx: m(x, 0), TypeError, "hx must be a t.*got (a )?int"),
    (NO_TENSOR, "hx is a string", lambda m, x, hx: m(x, "zeros"), TypeError, "hx must be a t.*got (a )?str"),
    (DTYPES, "float32 hx", lambda m, x, hx: m(x, each(hx, Tensor.float)), RuntimeError,
     "input and hidden tensors must have the same dtype, but got torch.float64 and torch.float32"),
    (DTYPES, "integer hx", lambda m, x, hx: m(x, each(hx, Tensor.long)), RuntimeError,
     "input and hidden tensors must have the same dtype, but got torch.float64 and torch.int64"),
    (DTYPES, "packed, float32 hx", lambda m, x, hx: m(packed(x), each(hx, Tensor.float)), RuntimeError,
     "input and hidden tensors must have the same dtype"),
    (DEVICES, "packed, hx on meta", lambda m, x, hx: m(sorted_packed(x), each(hx, lambda h: h.to("meta"))),
     RuntimeError, "Input and hidden tensors are not at the same device"),
    (INDICES, "unsorted packed, hx with too few rows", lambda m, x, hx: m(packed(x), each(hx, lambda h: h[:, :2])),
     RuntimeError, r"Expected hidden(\[0\])? size \(1, 3, 6\), got \[1, 2, 6\]"),
    (INDICES, "unsorted packed, hx with too many rows",
     lambda m, x, hx: m(packed(x), each(hx, lambda h: torch.cat((h, h), 1))),
     RuntimeError, r"Expected hidden(\[0\])? size \(1, 3, 6\), got \[1, 6, 6\]"),
    (INDICES, "unsorted packed, 2-D hx", lambda m, x, hx: m(packed(x, 2, 5, 3), each(hx, lambda h: h[:, 0])),
     RuntimeError, r"Expected hidden(\[0\])? size \(1, 3, 6\), got \[1, 6\]"),
]  # fmt: skip
ONE_STATE_CLEARER: list[Clearer] = [
    (NO_TENSOR, "hx is a tuple", lambda m, x, hx: m(x, (hx, hx)), TypeError, "hx must be a tensor, got tuple"),
    (NO_TENSOR, "hx is a list", lambda m, x, hx: m(x, [hx]), TypeError, "hx must be a tensor, got list"),
    (NO_TENSOR, "packed, hx is a tuple", lambda m, x, hx: m(packed(x), (hx,)), TypeError, "must be a tensor, got tup"),
]
TWO_STATES_CLEARER: list[Clearer] = [
    (
        NO_TENSOR,
        "hx is a tensor",
        lambda m, x, hx: m(x, hx[0]),
        TypeError,
        r"tuple of 2 tensors \(h, c\), got a Tensor",
    ),
    (NO_TENSOR, "hx has None", lambda m, x, hx: m(x, (hx[0], None)), TypeError, r"tuple of 2 tensors \(h, c\), got"),
    (NO_TENSOR, "hx has one state", lambda m, x, hx: m(x, hx[:1]), RuntimeError, "expects two hidden states"),
    (NO_TENSOR, "hx has three states", lambda m, x, hx: m(x, (*hx, hx[0])), RuntimeError, "expects two hidden states"),
    (DTYPES, "float32 cx", lambda m, x, hx: m(x, (hx[0], hx[1].float())), RuntimeError, "must have the same dtype"),
]
CELLS_CLEARER: list[Clearer] = [
    (DTYPES, "float32 input", lambda m, x, hx: m(x.float()), RuntimeError,
     "input and parameter tensors must have the same dtype, but got torch.float32 and torch.float64"),
    (DTYPES, "integer input", lambda m, x, hx: m(x.long()), RuntimeError,
     "input and parameter tensors must have the same dtype, but got torch.int64 and torch.float64"),
    (DTYPES, "float32 hx", lambda m, x, hx: m(x, each(hx, Tensor.float)), RuntimeError,
     "input and hidden tensors must have the same dtype, but got torch.float64 and torch.float32"),
    (DEVICES, "input on meta", lambda m, x, hx: m(x.to("meta")), RuntimeError, "are not at the same device"),
    (DEVICES, "module on meta", lambda m, x, hx: m.to("meta")(x), RuntimeError, "are not at the same device"),
    (DEVICES, "hx on meta", lambda m, x, hx: m(x, each(hx, lambda h: h.to("meta"))), RuntimeError,
     "Input and hidden tensors are not at the same device"),
    (DIMENSIONS, "1-D hx", lambda m, x, hx: m(x, each(hx, lambda h: h[0])), RuntimeError,
     r"Expected 2D hidden0 \(batch x hidden_size\), but got 1D tensor"),
    (DIMENSIONS, "2-D hx, unbatched input", lambda m, x, hx: m(x[0], hx), RuntimeError,
     r"Expected 2D hidden0 \(batch x hidden_size\), but got 3D tensor"),
    (DIMENSIONS, "hx with one row, unbatched input", lambda m, x, hx: m(x[0], each(hx, lambda h: h[:1])), RuntimeError,
     r"Expected 2D hidden0 \(batch x hidden_size\), but got 3D tensor"),
]  # fmt: skip
PACKED_LSTM_MESSAGES = {
    "packed input size": (RuntimeError, r"input.size(-1) must be equal to input_size. Expected 4, got 2"),
    "packed float32": (ValueError, "RNN input dtype (torch.float32) does not match weight dtype (torch.float64)"),
    "packed 1-D rows": (RuntimeError, "input must have 2 dimensions, got 1"),
    "packed 3-D rows": (RuntimeError, "input must have 2 dimensions, got 3"),
    "packed, 2-D hx": (RuntimeError, "Expected hidden[0] size (1, 3, 6), got [3, 6]"),
    "packed, 4-D hx": (RuntimeError, "Expected hidden[0] size (1, 3, 6), got [1, 1, 3, 6]"),
    "packed, hx batch": (RuntimeError, "Expected hidden[0] size (1, 3, 6), got [1, 2, 6]"),
    "packed, hx layers": (RuntimeError, "Expected hidden[0] size (1, 3, 6), got [2, 3, 6]"),
    "packed, hx size": (RuntimeError, "Expected hidden[0] size (1, 3, 6), got [1, 3, 2]"),
}
PACKED_LSTM_CLEARER: list[Clearer] = [
    (UNCHECKED, name, PACKED_MISTAKES[name], error, re.escape(message))
    for name, (error, message) in PACKED_LSTM_MESSAGES.items()
]


@pytest.mark.parametrize(
    ("kind", "mistake", "error", "message"),
    [
        pytest.param(kind, mistake, error, message, id=f"{kind}-{name}")
        for kinds, clearer in (
            (LAYERS, LAYERS_CLEARER),
            (UNPACKED_KINDS, ONE_STATE_CLEARER),
            (["LSTM"], TWO_STATES_CLEARER + PACKED_LSTM_CLEARER),
            (CELLS, CELLS_CLEARER),
            (["LSTM_CELL"], TWO_STATES_CLEARER[:2]),
        )
        for kind in kinds
        for _, name, mistake, error, message in clearer
    ],
)
def test_is_clearer_than_torch(kind: str, mistake: Mistake, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(kind, mistake)[0]()


def replace_parameter(name: str, change: Callable[[Tensor], Tensor]) -> Mistake:
    def mistake(module: Any, x: Tensor, hx: Any) -> Any:
        name_here = name if hasattr(module, name) else f"{name}_l0"
        setattr(module, name_here, nn.Parameter(change(getattr(module, name_here)).detach().clone()))
        return module(x, hx)

    return mistake


WRONG_PARAMETERS: dict[str, Mistake] = {
    "float32 weight_hh": replace_parameter("weight_hh", Tensor.float),
    "float32 bias_hh": replace_parameter("bias_hh", Tensor.float),
    "rows of weight_ih": replace_parameter("weight_ih", lambda weight: weight[:-1]),
    "columns of weight_ih": replace_parameter("weight_ih", lambda weight: weight[:, :-1]),
    "rows of weight_hh": replace_parameter("weight_hh", lambda weight: weight[:-1]),
    "columns of weight_hh": replace_parameter("weight_hh", lambda weight: weight[:, :-1]),
    "size of bias_ih": replace_parameter("bias_ih", lambda bias: bias[:-1]),
    "size of bias_hh": replace_parameter("bias_hh", lambda bias: bias[:-1]),
    "weight_hh on meta": replace_parameter("weight_hh", lambda weight: weight.to("meta")),
}


@operator_backends
@cases((LAYERS, WRONG_PARAMETERS), (CELLS, WRONG_PARAMETERS))
def test_wrong_parameters_raise_before_a_kernel_sees_them(backend: str, kind: str, mistake: Mistake) -> None:
    """Messages differ from torch's, which stem from whatever operation fails first."""
    with pytest.raises(RuntimeError):
        call(kind, mistake, backend)[0]()


@cases((LAYERS, LAYER_MISTAKES | PACKED_MISTAKES), (CELLS, CELL_MISTAKES))
def test_a_failed_call_changes_nothing(kind: str, mistake: Mistake) -> None:
    ours, _ = pair(kind)
    x = random(*([BATCH] if kind in CELLS else [TIME, BATCH]), INPUT)
    hx = initial_state(kind, ours)
    everything = [x, *(hx if isinstance(hx, tuple) else [hx]), *ours.parameters()]
    before = [tensor.detach().clone() for tensor in everything]
    random_state = torch.get_rng_state()
    with pytest.raises((RuntimeError, ValueError, TypeError, AttributeError)):
        mistake(ours, x, hx)
    assert all(torch.equal(a, b) for a, b in zip(everything, before, strict=True))
    assert torch.equal(torch.get_rng_state(), random_state)
