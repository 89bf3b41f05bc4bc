"""What the operators refuse, which anyone may call, and what they take however it lies in memory."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import fastrnn
from fastrnn import operator_checks
from fastrnn.backends.layer import ARGUMENTS, Layer
from tests.random_layers import Shape, cast, random_layer
from tests.tolerances import relative_error
from tests.torch_parity import error_of

Arguments = dict[str, Any]
BACKWARD = ("d_states", "d_finals", "states", "saved")
LAYERS = {
    "lstm": ("lstm", Shape()),
    "gru, both directions, masked": ("gru", Shape(directions=2, lengths=True, resets=True)),
    "projected lstm": ("lstm", Shape(projection=2)),
}
layers = pytest.mark.parametrize(("cell", "shape"), LAYERS.values(), ids=LAYERS)
computed = pytest.mark.parametrize("backend", ["numba", "reference"])
OWN_ERRORS = r"(gru|lstm): |[Ii]nput and (parameter|hidden) tensors|Expected hidden"
"""And not those of whatever would have failed first, if anything."""


def arguments(cell: str, shape: Shape, dtype: torch.dtype = torch.float32) -> tuple[Arguments, Arguments]:
    """A forward's arguments by name, and what a backward takes beside them."""
    layer = cast(random_layer(cell, shape), dtype)
    layer.x.data.nan_to_num_()
    given = dict(zip([row.name for row in ARGUMENTS if row.built_in], map(detached, layer.arguments()), strict=True))
    states, finals, saved = forward(cell, given, "reference")
    gradients = [[torch.randn_like(tensor) for tensor in group] for group in (states, finals)]
    return given, dict(zip(BACKWARD, (*gradients, states, saved), strict=True))


def detached(value: Any) -> Any:
    if isinstance(value, list):
        return [tensor.detach() for tensor in value]
    return value.detach() if isinstance(value, Tensor) else value


def forward(cell: str, given: Arguments, backend: str, keep: bool = True) -> list[list[Tensor]]:
    return list(getattr(torch.ops.fastrnn, f"{cell}_forward")(*given.values(), keep, keep, backend))


def backward(cell: str, given: Arguments, kept: Arguments, backend: str) -> list[list[Tensor]]:
    return list(getattr(torch.ops.fastrnn, f"{cell}_backward")(*kept.values(), *given.values(), True, True, backend))


def each(arguments: Arguments, change: Callable[[Tensor], Any]) -> Iterator[tuple[str, Arguments]]:
    """The arguments with one tensor changed, each in turn: of a list its last."""
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            yield name, arguments | {name: change(value)}
        elif isinstance(value, list) and value:
            yield name, arguments | {name: [*value[:-1], change(value[-1])]}


def freed(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


WRONG: dict[str, Callable[[Tensor], Any]] = {
    "shorter": lambda t: t[..., :-1].contiguous(),
    "longer": lambda t: torch.cat((t, t), -1),
    "fewer rows": lambda t: t[..., :-1, :].contiguous() if t.dim() > 1 else t[:0],
    "another dimension": lambda t: t[None],
    "no dimension": lambda t: t.sum().to(t.dtype),
    "dtype": lambda t: t.double() if t.is_floating_point() else t.float(),
    "sparse": lambda t: t.to_sparse(),
    "freed": freed,
}


@computed
@layers
@pytest.mark.parametrize("mistake", WRONG)
def test_tensors_that_do_not_fit_are_refused(mistake: str, cell: str, shape: Shape, backend: str) -> None:
    given, kept = arguments(cell, shape)
    for name, wrong in each(given, WRONG[mistake]):
        calls = [
            lambda wrong=wrong: forward(cell, wrong, backend),
            lambda wrong=wrong: forward(cell, wrong, backend, keep=False),
            lambda wrong=wrong: backward(cell, wrong, kept, backend),
        ]
        # Where gates were kept, biases are not read.
        for call in calls[:2] if name == "biases" and mistake in ("freed", "sparse") else calls:
            assert_refused(call, name)
    for name, wrong in each(kept, WRONG[mistake]):
        assert_refused(lambda wrong=wrong: backward(cell, given, wrong, backend), name)


def assert_refused(call: Callable[[], Any], name: str) -> None:
    error = error_of(call)
    assert isinstance(error, (RuntimeError, ValueError, TypeError))
    assert re.match(OWN_ERRORS, str(error)), f"{name}: {error}"


@computed
@layers
def test_numbers_of_tensors_are_checked(cell: str, shape: Shape, backend: str) -> None:
    given, kept = arguments(cell, shape)
    for name in ("w_ih", "w_hh", "biases", "states0"):
        for wrong in (given[name][:-1], [*given[name], *given["w_ih"]]):
            with pytest.raises(ValueError, match=f"{cell}: .* must hold .* tensors, got"):
                forward(cell, given | {name: wrong}, backend)
    for name in BACKWARD:
        for wrong in ([], [*kept[name], *kept[name]]):
            if name == "saved" and not wrong:
                continue  # gates that are to be computed again
            with pytest.raises(ValueError, match=f"{cell}: d_states, d_finals, states and saved must hold"):
                backward(cell, given, kept | {name: wrong}, backend)


@pytest.mark.parametrize("name", ["nothing", "", "aten", "call"])
def test_unknown_backends_are_refused(name: str) -> None:
    given, kept = arguments("lstm", Shape())
    for call in (lambda: forward("lstm", given, name), lambda: backward("lstm", given, kept, name)):
        with pytest.raises(ValueError, match=f"lstm: unknown backend {name!r}; the operators take 'auto', 'numba'"):
            call()


def test_a_named_backend_must_serve_the_layer_backward_as_well() -> None:
    given, kept = arguments("lstm", Shape(), torch.float64)  # which no kernel there computes in
    for call in (lambda: forward("lstm", given, "cuda"), lambda: backward("lstm", given, kept, "cuda")):
        with pytest.raises(RuntimeError, match="lstm: backend 'cuda' cannot serve this call"):
            call()


def test_heads_and_projections_exclude_each_other() -> None:
    given, _ = arguments("lstm", Shape(projection=2))
    with pytest.raises(RuntimeError, match="lstm: the weights of layer 0 must have shapes"):
        forward("lstm", given | {"w_hh": [torch.zeros(2, 12, 1)]}, "reference")


def test_autocast_converts_nothing_here() -> None:
    given, _ = arguments("lstm", Shape())
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="must have the same dtype"):
        forward("lstm", given | {"w_ih": [given["w_ih"][0].bfloat16()]}, "numba", keep=False)


@computed
@pytest.mark.parametrize("shape", [Shape(batch=0), Shape(steps=0), Shape(inputs=0)], ids=str)
def test_empty_sizes_are_taken(shape: Shape, backend: str) -> None:
    given, kept = arguments("lstm", shape)
    assert forward("lstm", given, backend)[0][0].shape == (shape.steps, shape.batch, shape.hidden)
    assert backward("lstm", given, kept, backend)[0][0].shape == (shape.steps, shape.batch, shape.inputs)


def test_a_layer_without_units_is_refused() -> None:
    given, _ = arguments("lstm", Shape())
    empty = {"w_ih": [torch.zeros(0, 4)], "w_hh": [torch.zeros(1, 0, 0)], "biases": []}
    with pytest.raises(RuntimeError, match="lstm: there must be at least one hidden unit and output, got 0 and 0"):
        forward("lstm", given | empty, "numba")


def negative(tensor: Tensor) -> Tensor:
    """A view whose values are the tensor's, though its memory holds their negatives."""
    return tensor if tensor.dtype == torch.bool else torch._neg_view(-tensor)


LIES: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "strided": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "behind others": lambda t: torch.cat((t.flatten()[:1], t.flatten()))[1:].view(t.shape),
    "negative": negative,
    "differentiable": lambda t: t.clone().requires_grad_(t.is_floating_point()),
}


@computed
@layers
@pytest.mark.parametrize("lies", LIES)
def test_however_tensors_lie_in_memory(lies: str, cell: str, shape: Shape, backend: str) -> None:
    given, kept = arguments(cell, shape)
    change = LIES[lies]
    outputs, few = forward(cell, given, backend), forward(cell, given, backend, keep=False)
    gradients = backward(cell, given, kept, backend)
    for _, other in each(given, change):
        assert_equal(forward(cell, other, backend), outputs)
        assert_equal(forward(cell, other, backend, keep=False), few)
        assert_equal(backward(cell, other, kept, backend), gradients)
    for _, other in each(kept, change):
        assert_equal(backward(cell, given, other, backend), gradients)


@computed
@layers
def test_elements_may_share_their_memory(cell: str, shape: Shape, backend: str) -> None:
    given, kept = arguments(cell, shape)

    def one_for_all(tensor: Tensor) -> Tensor:
        return tensor.flatten()[:1].as_strided(tensor.shape, [0] * tensor.dim())

    def apart(tensor: Tensor) -> Tensor:
        return one_for_all(tensor).contiguous()

    for (_, shared), (_, dense) in zip(each(given, one_for_all), each(given, apart), strict=True):
        assert_equal(forward(cell, shared, backend), forward(cell, dense, backend))
        assert_equal(backward(cell, shared, kept, backend), backward(cell, dense, kept, backend))
    for (_, shared), (_, dense) in zip(each(kept, one_for_all), each(kept, apart), strict=True):
        assert_equal(backward(cell, given, shared, backend), backward(cell, given, dense, backend))


def assert_equal(got: list[list[Tensor]], expected: list[list[Tensor]]) -> None:
    for a, b in zip((t for group in got for t in group), (t for group in expected for t in group), strict=True):
        assert a.shape == b.shape
        assert relative_error(a, b) < 1e-6


def test_gradients_do_not_flow_through_the_backward_operator() -> None:
    """They would be those of the products that it is made of, and not those of its kernels."""
    given, kept = arguments("gru", Shape())
    given |= {"w_ih": [given["w_ih"][0].requires_grad_()], "x": given["x"].requires_grad_()}
    gradients = backward("gru", given, kept, "numba")
    assert {tensor.grad_fn.name().split("::")[-1] for group in gradients for tensor in group} == {"WarnNotImplemented"}


def test_the_same_sizes_in_another_dtype() -> None:
    """What was found of sizes is remembered, and dtypes are among it."""
    for dtype in (torch.float32, torch.float64):
        given, kept = arguments("lstm", Shape(steps=2), dtype)
        assert backward("lstm", given, kept, "reference")[0][0].dtype == dtype


def test_only_what_comes_through_the_dispatcher_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules have checked everything: it would cost every call of them some microseconds."""
    seen: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_: seen.append(name)

    monkeypatch.setattr(operator_checks, "forward", note("forward"))
    monkeypatch.setattr(operator_checks, "backward", note("backward"))
    gru = fastrnn.GRU(4, 5, backend="numba")
    x = torch.randn(6, 3, 4, requires_grad=True)
    gru(x)[0].sum().backward()
    assert seen == []
    w_ih, w_hh, *biases = gru.all_weights[0]
    layer = Layer("gru", x, [w_ih], [w_hh[None]], biases, [], [torch.zeros(1, 3, 5)], None, None, reverse=False)
    torch.ops.fastrnn.gru_forward(*layer.arguments(), True, True, "numba")[0][0].sum().backward()
    assert seen == ["forward"]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        gru(x)[0].sum().backward()
    assert set(seen) == {"forward", "backward"}
