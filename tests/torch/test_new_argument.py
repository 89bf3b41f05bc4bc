"""A new argument of a layer is a row of the table, its gradient's field, and what computes with it: nothing else.

Here two are added to the sources: a parameter for each unit, and an input for each step and sequence.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

import fastrnn
from fastrnn import backends
from fastrnn.backends import reference
from fastrnn.backends.layer import Layer

ROWS = """
    peepholes: Annotated[
        list[Tensor], Argument("(H,)", "a peephole", WEIGHTS, numbers=lambda layer: (0, layer.directions))
    ] = field(default_factory=list)
    decay: Annotated[Tensor | None, Argument("(T, B)", "the decay", INPUT)] = None
"""
FIELDS = """
    peepholes: list[Tensor]
    decay: list[Tensor]
"""
MODULES = ("backends.layer", "operator_checks", "ops", "batching", "transforms")
"""Each reads the table, the first one holds it."""


@pytest.fixture(scope="module")
def grown() -> Iterator[SimpleNamespace]:
    """fastrnn's modules with two more arguments, in operators of their own."""
    with pytest.MonkeyPatch.context() as patch:
        loaded = SimpleNamespace()
        for name in MODULES:
            full, (*_, leaf) = f"fastrnn.{name}", name.split(".")
            source = Path(sys.modules[full].__file__ or "").read_text()
            if leaf == "layer":
                source = after(source, "    reverse: Annotated[bool, Argument()]\n", ROWS)
                source = after(source, "    states0: list[Tensor]\n", FIELDS)
            source = source.replace('"fastrnn"', '"grown"').replace("fastrnn::", "grown::")
            module = ModuleType(full)
            patch.setitem(sys.modules, full, module)
            exec(compile(source.replace("torch.ops.fastrnn", "torch.ops.grown"), full, "exec"), module.__dict__)
            patch.setattr(backends if name.startswith("backends.") else fastrnn, leaf, module)
            setattr(loaded, leaf, module)
        usual = reference.forward
        patch.setattr(reference, "forward", lambda layer, **options: usual(without(layer), **options))
        patch.setattr(reference, "backward", lambda *given: backward(loaded, *given))
        yield loaded


def after(source: str, place: str, lines: str) -> str:
    """The source with these lines behind the line that begins so."""
    assert source.count(place) == 1
    end = source.index("\n", source.index(place) + len(place) - 1)
    return source[:end] + lines.rstrip("\n") + source[end:]


def without(layer: Any) -> Layer:
    """What the new arguments stand for in these tests, by the usual ones."""
    x = layer.x if layer.decay is None else layer.x * layer.decay[..., None]
    biases = [bias + p for bias, p in zip(layer.biases, layer.peepholes, strict=False)] + layer.biases[1:]
    others = {field.name: getattr(layer, field.name) for field in fields(Layer)}
    return Layer(**{**others, "x": x, "biases": biases if layer.peepholes else layer.biases})


def backward(grown: SimpleNamespace, layer: Any, kept: Any, grads: Any) -> Any:
    """A backend's, by autograd."""
    with torch.enable_grad():
        own = layer.with_tensors(lambda t: t.detach().requires_grad_() if t.is_floating_point() else t)
        result = reference.forward(own, history=True, gates=False)
        outputs = [*result.states[: len(grads.states)], *result.finals]
        pairs = [(y, d) for y, d in zip(outputs, [*grads.states, *grads.finals], strict=True) if d is not None]
        outputs, cotangents = zip(*pairs, strict=True)
        groups = own.groups()
        wanted = [groups[row.name] if grads.wants(row) else () for row in grown.layer.DIFFERENTIABLE]
        found = iter(torch.autograd.grad(outputs, [t for group in wanted for t in group], cotangents))
    return grown.layer.Backward(*([next(found) for _ in group] for group in wanted))


def layer_of(grown: SimpleNamespace, *members: int) -> Any:
    """A tanh RNN's, with gradients; its decay has further dimensions in front."""

    def random(*sizes: int) -> Tensor:
        return torch.randn(sizes, dtype=torch.float64, requires_grad=True)

    return grown.layer.Layer(
        "rnn_tanh",
        random(5, 3, 2),
        [random(4, 2)],
        [random(1, 4, 4)],
        [random(4), random(4)],
        [],
        [random(1, 3, 4)],
        torch.tensor([5, 2, 4]),
        None,
        False,
        [random(4)],
        random(*members, 5, 3),
    )


def test_the_operators_take_and_give_it(grown: SimpleNamespace) -> None:
    forward, backward = (torch.ops.grown.lstm_forward.default, torch.ops.grown.lstm_backward.default)
    added = "bool reverse, Tensor[] peepholes, Tensor? decay, Tensor? recurrent_mask"
    assert f"{added}, bool history" in str(forward._schema)
    assert f"{added}, bool need_x" in str(backward._schema)
    assert str(backward._schema).endswith("Tensor[] d_states0, Tensor[] d_peepholes, Tensor[] d_decay)")
    layer = layer_of(grown)
    kept = grown.ops.forward(layer, history=True, gates=True, backend="reference")
    operator = torch.ops.grown.rnn_tanh_backward
    for needs in ((True, True), (True, False), (False, True)):
        arguments = [list(kept.states), [None], list(kept.states), [], *layer.arguments(), *needs, "reference"]
        arguments = tree_map_only(Tensor, torch.Tensor.detach, arguments)
        told = operator(*tree_map_only(Tensor, lambda tensor: tensor.to("meta"), arguments))
        shapes = [[tensor.shape for tensor in group] for group in operator(*arguments)]
        assert shapes == [[tensor.shape for tensor in group] for group in told]
        assert list(map(len, shapes[-2:])) == [needs[1], needs[0]]


def test_a_layer_is_taken_apart_and_put_together(grown: SimpleNamespace) -> None:
    layer = layer_of(grown)
    outline, tensors = layer.parts()
    assert tensors[-1] is layer.decay
    assert [row.name for row in outline.rows][-3:] == ["lengths", "peepholes", "decay"]
    assert [row.batch for row in outline.rows][-3:] == [0, None, 1]
    given, again = (list(map(id, tree_leaves(one.arguments()))) for one in (layer, outline.layer(tensors)))
    assert given == again
    absent = replace(layer, peepholes=[], decay=None)
    assert absent.tensors() == tensors[:-2]


@pytest.mark.parametrize("create_graph", [False, True])
def test_it_gets_its_gradient(grown: SimpleNamespace, create_graph: bool) -> None:
    layer = layer_of(grown)
    inputs = [tensor for tensor in layer.tensors() if tensor.requires_grad]
    for function in (grown.ops.forward, torch.ops.grown.rnn_tanh_forward):
        if function is grown.ops.forward:
            states, finals, _ = function(layer, history=True, gates=True, backend="reference")
        else:
            states, finals, _ = function(*layer.arguments(), True, True, "reference")
        found = torch.autograd.grad(states[0].sum() + finals[0].square().sum(), inputs, create_graph=create_graph)
        usual = reference.forward(layer, history=True, gates=False)
        expected = torch.autograd.grad(usual.states[0].sum() + usual.finals[0].square().sum(), inputs)
        torch.testing.assert_close(found, expected)


def test_vmap_knows_its_batch(grown: SimpleNamespace) -> None:
    """And each member's gradients of all weights come from a backward of its own."""
    layer = layer_of(grown, 6)

    def output(decay: Tensor, peephole: Tensor) -> Tensor:
        one = replace(layer, decay=decay, peepholes=[peephole]).with_tensors(torch.Tensor.detach)
        return grown.transforms.forward(one, history=False, recompute=False, backend="numba").states[0].sum()

    calls: list[int] = []

    def choose(name: str, layer: Any, *_: Any) -> str:
        calls.append(layer.x.shape[1])
        return "reference"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grown.ops, "operator_backend", choose)
        patch.setattr(grown.ops, "module", lambda _: reference)
        peephole, decays = layer.peepholes[0].detach(), layer.decay.detach()
        found = torch.func.vmap(output, (0, None))(decays, peephole)
        assert calls == [18]  # once, of all batches
        torch.testing.assert_close(found, torch.stack([output(decay, peephole) for decay in decays]))
        derive = torch.func.grad(output, (0, 1))
        found = torch.func.vmap(derive, (0, None))(decays, peephole)
        expected = [derive(decay, peephole) for decay in decays]
        torch.testing.assert_close(found, tuple(map(torch.stack, zip(*expected, strict=True))))


def test_it_is_checked(grown: SimpleNamespace) -> None:
    layer, operator = layer_of(grown), torch.ops.grown.rnn_tanh_forward

    def call(**changed: Any) -> None:
        operator(*replace(layer, **changed).arguments(), False, False, "reference")

    with pytest.raises(ValueError, match="peepholes must hold 0 or 1 tensors, got 2"):
        call(peepholes=layer.peepholes * 2)
    with pytest.raises(RuntimeError, match=r"peepholes\[0\] must be of shape \(H,\), got \(5,\)"):
        call(peepholes=[torch.zeros(5, dtype=torch.float64)])
    with pytest.raises(RuntimeError, match="decay must have 2 dimensions"):
        call(decay=layer.decay[..., None])
    with pytest.raises(RuntimeError, match="same dtype"):
        call(decay=layer.decay.float())
    freed = layer.decay.detach().clone()
    freed.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="the decay has a non-zero number of elements, but"):
        call(decay=freed)
