"""Repeated calls with gradients: the second call is the first one again, and what was checked is checked again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn
from fastrnn.backends import cost, module
from fastrnn.binding.plans import Torch
from tests.plans import plans_of
from tests.torch_parity import assert_close

pytestmark = pytest.mark.skipif(bool(module("numba").ready()), reason="no Numba")

KINDS = ("LSTM", "GRU", "RNN")
INPUT, HIDDEN, STEPS = 5, 19, 9
OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_layers": 3},
    {"bidirectional": True, "num_layers": 2, "batch_first": True},
    {"bias": False},
]


def pair(kind: str, **options: Any) -> tuple[nn.Module, nn.Module]:
    """fastrnn's module and torch's, with the same weights in float64."""
    ours = getattr(fastrnn, kind)(INPUT, HIDDEN, backend="numba", dtype=torch.float64, **options)
    theirs = getattr(nn, kind)(INPUT, HIDDEN, dtype=torch.float64, **options)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def arguments(kind: str, batch: int | None, options: dict[str, Any]) -> tuple[Tensor, Any]:
    """An input and initial states that require gradients."""
    directions = options.get("num_layers", 1) * (1 + options.get("bidirectional", False))
    sizes = () if batch is None else (batch,)
    shape = (batch or 1, STEPS) if options.get("batch_first") and batch else (STEPS, *sizes)
    x = torch.randn(*shape, INPUT, dtype=torch.float64, requires_grad=True)
    states = [torch.randn(directions, *sizes, HIDDEN, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    return x, tuple(states) if kind == "LSTM" else states[0]


def everything(net: nn.Module, x: Tensor, hx: Any) -> tuple[Any, tuple[Tensor | None, ...]]:
    """Results and gradients of all arguments and parameters."""
    output, final = net(x, hx)
    finals = final if isinstance(final, tuple) else (final,)
    loss = (output * torch.linspace(-1, 1, output.shape[0], dtype=x.dtype).view(-1, *[1] * (output.dim() - 1))).sum()
    loss = loss + sum((final * (2 + index)).sum() for index, final in enumerate(finals))
    states = () if hx is None else hx if isinstance(hx, tuple) else (hx,)
    wanted = [one for one in (x, *states, *net.parameters()) if one.requires_grad]
    return (output, finals), torch.autograd.grad(loss, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_state_requires_a_gradient(kind: str) -> None:
    ours, theirs = (module.requires_grad_(False) for module in pair(kind))
    x, hx = arguments(kind, 3, {})
    _, expected = everything(theirs, x.detach(), hx)
    for _ in range(3):
        assert_close(everything(ours, x.detach(), hx)[1], expected)


@pytest.mark.parametrize("with_states", [True, False])
@pytest.mark.parametrize("batch", [None, 1, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_like_torch(
    kind: str, options: dict[str, Any], batch: int | None, with_states: bool, usual_way: list[str]
) -> None:
    ours, theirs = pair(kind, **options)
    for _ in range(3):
        x, hx = arguments(kind, batch, options)
        hx = hx if with_states else None
        assert_close(everything(ours, x, hx), everything(theirs, x, hx), 1e-12)
    assert len(usual_way) == 1


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("kind", ["GRU", "RNN"])
def test_torchs_kernels_where_they_are_faster(
    kind: str, batch: int | None, steps: int, usual_way: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "predicted", lambda sizes: {"numba": 2.0, "aten": 1.0})
    ours, theirs = pair(kind)
    ours.backend = None
    for _ in range(3):
        x, hx = arguments(kind, batch, {})
        x = x[:steps].detach().requires_grad_()
        assert_close(everything(ours, x, hx), everything(theirs, x, hx), 1e-12)
    assert isinstance(plans_of(ours)[0], Torch)
    assert len(usual_way) == 1


def warm(kind: str = "LSTM", **options: Any) -> tuple[nn.Module, nn.Module, Tensor, Any]:
    ours, theirs = pair(kind, **options)
    x, hx = arguments(kind, 2, options)
    ours(x, hx)
    assert plans_of(ours)
    return ours, theirs, x, hx


def test_an_optimizers_step_takes_effect(usual_way: list[str]) -> None:
    ours, theirs, x, hx = warm()
    for net in (ours, theirs):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            net(x, hx)[0].sum().backward()
            optimizer.step()
    assert_close(everything(ours, x, hx), everything(theirs, x, hx), 1e-11)
    assert len(usual_way) == 1


def test_a_change_before_backward_is_an_error() -> None:
    ours, _, x, hx = warm()
    output = ours(x, hx)[0]
    with torch.no_grad():
        ours.weight_hh_l0.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_frozen_parameters_and_frozen_input(usual_way: list[str]) -> None:
    ours, theirs, x, _ = warm()
    for net in (ours, theirs):
        net.weight_ih_l0.requires_grad_(False)
    assert_close(everything(ours, x, None), everything(theirs, x, None), 1e-12)
    for net in (ours, theirs):
        net.requires_grad_(False)
    fixed = x.detach()
    for _ in range(3):
        output = ours(fixed)[0]
        assert not output.requires_grad
        assert_close(output, theirs(fixed)[0], 1e-12)
    assert_close(everything(ours, x, None), everything(theirs, x, None), 1e-12)
    assert len(usual_way) == 2  # the first of each kind


def test_double_backward() -> None:
    ours, theirs, x, hx = warm()
    results = []
    for net in (ours, theirs):
        (gradient,) = torch.autograd.grad(net(x, hx)[0].square().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(gradient.square().sum(), [x, *net.parameters()]))
    assert_close(*results, 1e-10)


def test_backward_twice_and_saved_tensor_hooks() -> None:
    ours, theirs, x, hx = warm("GRU")
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = ours(x, hx)[0]
    assert packed
    first = torch.autograd.grad(output.sum(), x, retain_graph=True)
    assert_close(first, torch.autograd.grad(output.sum(), x), 0)
    assert_close(first, torch.autograd.grad(theirs(x, hx)[0].sum(), x), 1e-12)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own, in jvp
def test_transforms_are_seen() -> None:
    ours, theirs, x, _ = warm("RNN")
    both = torch.stack((x, torch.randn_like(x)))
    assert_close(torch.func.vmap(lambda x: ours(x)[0])(both), torch.stack([theirs(x)[0] for x in both]), 1e-12)

    def loss(net: nn.Module) -> Any:
        return lambda x: net(x)[0].square().sum()

    (expected,) = torch.autograd.grad(loss(theirs)(x), x)
    assert_close(torch.func.grad(loss(ours))(x.detach()), expected, 1e-12)
    _, derivative = torch.func.jvp(loss(ours), (x.detach(),), (both[1].detach(),))
    assert_close(derivative, (expected * both[1]).sum(), 1e-11)


def test_recompute_and_dropout_are_repeated(usual_way: list[str]) -> None:
    ours, theirs, x, hx = warm()
    ours.recompute = True
    assert_close(everything(ours, x, hx), everything(theirs, x, hx), 1e-12)
    dropping = fastrnn.LSTM(INPUT, HIDDEN, num_layers=2, dropout=0.5, dtype=torch.float64)
    assert not torch.equal(dropping(x)[0], dropping(x)[0])
    assert len(usual_way) == 3


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(3,), ()], ids=["batched", "unbatched"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_of_cells_is_repeated(kind: str, batch: tuple[int, ...], bias: bool, usual_way: list[str]) -> None:
    """By torch's kernels, which `auto` prefers for a single step; the first call of a loop has no state."""
    ours = getattr(fastrnn, f"{kind}Cell")(INPUT, HIDDEN, bias=bias, dtype=torch.float64)
    theirs = getattr(nn, f"{kind}Cell")(INPUT, HIDDEN, bias=bias, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(STEPS, *batch, INPUT, dtype=torch.float64, requires_grad=True)

    def loop(cell: nn.Module) -> list[Tensor]:
        state = None
        for row in x:
            state = cell(row, state)
        finals = state if isinstance(state, tuple) else (state,)
        return [*finals, *torch.autograd.grad(sum(each.sum() for each in finals), [x, *cell.parameters()])]

    for _ in range(3):
        assert_close(loop(ours), loop(theirs), 1e-12)
    assert len(usual_way) == 1
