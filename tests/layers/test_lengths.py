"""`lengths` in every form that it may have, and mistakes in those that are no tensors (see `test_own_arguments`)."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastrnn

TIME = 5
LENGTHS = [4, 0, 2]
ARRAY = np.array(LENGTHS)
read_only = np.array(LENGTHS)
read_only.flags.writeable = False
FORMS: dict[str, Any] = {
    "list": LENGTHS,
    "tuple": tuple(LENGTHS),
    "a list of NumPy's and torch's": [np.int32(4), 0, torch.tensor(2)],
    "int64 array": ARRAY,
    "uint16 array": ARRAY.astype(np.uint16),
    "big-endian array": ARRAY.astype(">i4"),
    "reversed view": ARRAY[::-1].copy()[::-1],
    "read-only array": read_only,
    "int32 tensor": torch.tensor(LENGTHS, dtype=torch.int32),
}
forms = pytest.mark.parametrize("lengths", FORMS.values(), ids=FORMS)
WRONG: dict[str, tuple[Any, type[Exception], str]] = {
    "floats": ([4, 0.0, 2], TypeError, "lengths must be integers of shape (B=3,), got float at index 1"),
    "truth values": ((True, 0, 2), TypeError, "lengths must be integers of shape (B=3,), got bool at index 0"),
    "a float tensor within": (
        [torch.tensor(4.0), 0, 2], TypeError, "lengths must be integers of shape (B=3,), got Tensor at index 0"
    ),
    "lists within": ([[4], [0], [2]], TypeError, "lengths must be integers of shape (B=3,), got list at index 0"),
    "a set": ({4, 0, 2}, TypeError, "lengths must be integers of shape (B=3,), got set"),
    "too few": ([4, 0], ValueError, "lengths must be integers of shape (B=3,), got int64 of shape (2,)"),
    "beyond T": ([4, 0, 6], ValueError, "lengths must lie within [0, T=5], got 6 at index 2"),
    "beyond int64": ([4, 2**70, 2], ValueError, f"lengths must lie within [0, T=5], got {2**70} at index 1"),
    "a float array": (
        np.array([4.0, 0, 2]), ValueError, "lengths must be integers of shape (B=3,), got float64 of shape (3,)"
    ),
    "a 2D array": (ARRAY[:, None], ValueError, "lengths must be integers of shape (B=3,), got int64 of shape (3, 1)"),
}  # fmt: skip


def call(module: Any, x: Tensor, lengths: Any) -> Tensor:
    output: Tensor = module(x, lengths=lengths)[0]
    return output


@forms
def test_all_forms_mean_the_same(lengths: Any) -> None:
    module, x = fastrnn.GRU(3, 4), torch.randn(TIME, 3, 3)
    assert torch.equal(call(module, x, lengths), call(module, x, torch.tensor(LENGTHS)))
    output, _ = fastrnn.functional.gru(x, None, module.all_weights, lengths=lengths)
    assert torch.equal(output, call(module, x, torch.tensor(LENGTHS)))


@pytest.mark.parametrize("length", [3, np.int64(3), np.array(3)], ids=["int", "NumPy's", "0-D array"])
def test_unbatched_input_takes_a_number(length: Any) -> None:
    module, x = fastrnn.GRU(3, 4), torch.randn(TIME, 3)
    assert torch.equal(call(module, x, length), call(module, x, torch.tensor(3)))


def test_an_empty_batch_takes_an_empty_list() -> None:
    assert call(fastrnn.GRU(3, 4), torch.randn(TIME, 0, 3), []).shape == (TIME, 0, 4)


@pytest.mark.parametrize(("lengths", "error", "message"), WRONG.values(), ids=WRONG)
def test_mistakes(lengths: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^gru: {re.escape(message)}$"):
        call(fastrnn.GRU(3, 4), torch.randn(TIME, 3, 3), lengths)


def test_an_array_that_is_overwritten_changes_no_gradient() -> None:
    module, lengths = fastrnn.GRU(3, 4), ARRAY.copy()
    x = torch.randn(TIME, 3, 3, requires_grad=True)
    output = call(module, x, lengths)
    lengths[:] = TIME
    (gradient,) = torch.autograd.grad(output.sum(), x)
    assert torch.equal(gradient[4:, 0], torch.zeros(1, 3))


@forms
def test_numbers_from_the_host_go_where_the_input_is(lengths: Any) -> None:
    """By the meta device, which stands for every other than the CPU."""
    module, x = fastrnn.GRU(3, 4, device="meta"), torch.empty(TIME, 3, 3, device="meta")
    assert call(module, x, lengths).device.type == "meta"


@pytest.mark.parametrize("form", [list, np.array, torch.tensor], ids=["list", "array", "tensor"])
def test_numbers_from_the_host_are_looked_at_there(form: Any) -> None:
    module, x = fastrnn.GRU(3, 4, device="meta"), torch.empty(TIME, 3, 3, device="meta")
    with pytest.raises(ValueError, match=re.escape("lengths must lie within [0, T=5], got 6 at index 1")):
        call(module, x, form([4, 6, 2]))


def test_lists_under_a_default_device_are_the_hosts() -> None:
    with torch.device("meta"):
        module, x = fastrnn.GRU(3, 4, device="cpu"), torch.randn(TIME, 3, 3, device="cpu")
        assert call(module, x, LENGTHS).device.type == "cpu"


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("form", [list, np.array, torch.tensor], ids=["list", "array", "tensor"])
def test_compiled(form: Any) -> None:
    module, x = fastrnn.GRU(3, 4), torch.randn(TIME, 3, 3)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    assert torch.equal(call(compiled, x, form(LENGTHS)), call(module, x, LENGTHS))


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_with_a_size_among_them() -> None:
    module = fastrnn.GRU(3, 4)

    def run(x: Tensor) -> Tensor:
        return call(module, x, [x.shape[0], 0, 2])

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="eager")
    for steps in (5, 7):
        x = torch.randn(steps, 3, 3)
        assert torch.equal(compiled(x), run(x))


def test_vmap_with_a_list() -> None:
    module, x = fastrnn.GRU(3, 4), torch.randn(2, TIME, 3, 3)
    output = torch.func.vmap(lambda x: call(module, x, LENGTHS))(x)
    torch.testing.assert_close(output[1], call(module, x[1], LENGTHS))
