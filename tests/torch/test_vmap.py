"""vmap over layers and cells: one kernel where weights are shared, one a member where not, the reference's results."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

import fastrnn
from fastrnn import batching
from fastrnn.backends.stack import Stack
from tests.tolerances import assert_accurate
from tests.torch.transformed import (
    BATCH,
    HIDDEN,
    INPUT,
    MEMBERS,
    STEPS,
    assert_by_kernels,
    assert_same,
    cases,
    counted,
    loss,
    make,
    masks,
    needs_numba,
    sequences,
    states,
    values,
)

pytestmark = needs_numba


def run(module: Any, parameters: Any, x: Tensor, hx: Any = None, lengths: Any = None, resets: Any = None) -> Any:
    return functional_call(module, parameters, (x, hx), {"lengths": lengths, "resets": resets})


@cases
@pytest.mark.parametrize("which", [w for w in product((0, None), repeat=4) if 0 in w], ids=str)
def test_any_arguments_may_have_members(case: str, which: tuple[int | None, ...]) -> None:
    """x, hx, lengths and resets: the members join the batch, forward and backward, whichever arguments have them."""
    module = make(case)
    lengths, resets = masks(module, MEMBERS)
    with_members = (sequences(module, MEMBERS), states(module, MEMBERS), lengths, resets)
    without = (sequences(module), states(module), lengths[0], resets[0])
    given = [one if dim == 0 else other for dim, one, other in zip(which, with_members, without, strict=True)]
    layers = module.num_layers
    assert_by_kernels(lambda: vmap(lambda *given: run(module, values(module), *given), which)(*given), layers)
    gradients = grad(lambda p, *given: loss(module, p, *given), (0, 1, 2))
    backward = layers * (MEMBERS if case == "projected" else 1)
    assert_by_kernels(lambda: vmap(gradients, (None, *which))(values(module), *given), layers, backward)


@cases
def test_gradients_of_the_input_alone(case: str) -> None:
    module = make(case)
    x, (lengths, resets) = sequences(module, MEMBERS), masks(module, MEMBERS)

    def of(x: Tensor, *masks: Tensor) -> Tensor:
        return loss(module, values(module), x, None, *masks)

    assert_by_kernels(lambda: vmap(grad(of))(x, lengths, resets), module.num_layers, module.num_layers)


@cases
def test_what_x_holds_beyond_the_lengths_reaches_nothing(case: str) -> None:
    module = make(case)
    x, lengths = sequences(module, MEMBERS), masks(module, MEMBERS)[0]
    dead = torch.arange(STEPS) >= lengths[..., None]
    gradients = vmap(grad(lambda p, x, lengths: loss(module, p, x, None, lengths), (0, 1)), (None, 0, 0))
    expected = gradients(values(module), x, lengths)
    spoilt = torch.where((dead if module.batch_first else dead.mT)[..., None], torch.nan, x)
    assert_same(gradients(values(module), spoilt, lengths), expected)


@cases
def test_gradients_of_each_sample_by_a_backward_for_each(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is where a member has many sequences or units."""
    monkeypatch.setattr(batching, "SMALL", 0)
    module = make(case)
    x, (lengths, resets) = sequences(module, MEMBERS), masks(module, MEMBERS)
    gradients = vmap(grad(lambda p, *given: loss(module, p, *given)), (None, 0, None, 0, 0))
    layers = module.num_layers
    assert_by_kernels(lambda: gradients(values(module), x, None, lengths, resets), layers, MEMBERS * layers)


@pytest.mark.parametrize(("batch", "hidden", "one"), [(1, 1000, True), (4, 64, True), (5, 64, False), (2, 256, False)])
def test_one_backward_is_for_small_members(batch: int, hidden: int, one: bool) -> None:
    def stack_on(device: str) -> Stack:
        x, h = torch.empty(3, batch, 2, device=device), torch.empty(1, batch, hidden, device=device)
        return Stack("gru", x, (h,), [[torch.empty(3 * hidden, 2, device=device), h.new_empty(3 * hidden, hidden)]])

    stack, elsewhere = stack_on("cpu"), stack_on("meta")
    assert batching.prefers_one_backward(stack.layer(0, stack.x)) is one
    assert batching.prefers_one_backward(elsewhere.layer(0, elsewhere.x))


@cases
@pytest.mark.parametrize("own_input", [True, False])
def test_ensembles(case: str, own_input: bool) -> None:
    members = [make(case) for _ in range(MEMBERS)]
    stacked = {name: value.detach() for name, value in stack_module_state(members)[0].items()}
    x = sequences(members[0], *([MEMBERS] if own_input else []))
    dims, calls = (0, 0 if own_input else None), MEMBERS * members[0].num_layers
    assert_by_kernels(lambda: vmap(lambda p, x: run(members[0], p, x), dims)(stacked, x), calls)
    gradients = grad(lambda p, x: loss(members[0], p, x), (0, 1))
    assert_by_kernels(lambda: vmap(gradients, dims)(stacked, x), calls, calls)


@cases
def test_vmap_in_vmap(case: str) -> None:
    module = make(case)
    stacked = {name: torch.stack((value, 2 * value)) for name, value in values(module).items()}
    x, layers = sequences(module, MEMBERS), module.num_layers
    gradients = grad(lambda p, x: loss(module, p, x))
    for_each_x = vmap(lambda p, x: run(module, p, x), (None, 0))
    assert_by_kernels(lambda: vmap(for_each_x, (0, None))(stacked, x), 2 * layers)
    for_each_model = vmap(lambda p, x: run(module, p, x), (0, None))
    assert_by_kernels(lambda: vmap(for_each_model, (None, 0))(stacked, x), 2 * layers)
    both = torch.stack((x, -x))
    backward = layers * (2 * MEMBERS if case == "projected" else 1)
    of_all = vmap(vmap(gradients, (None, 0)), (None, 0))
    assert_by_kernels(lambda: of_all(values(module), both), layers, backward)


@cases
def test_where_members_lie(case: str) -> None:
    module = make(case)
    x = sequences(module, MEMBERS)
    call = vmap(lambda x: run(module, values(module), x)[0], in_dims=2, out_dims=-1)
    assert_by_kernels(lambda: call(x.movedim(0, 2).contiguous()), module.num_layers)
    in_chunks = vmap(lambda x: run(module, values(module), x), chunk_size=2)
    assert_by_kernels(lambda: in_chunks(x), 2 * module.num_layers)
    assert_same(in_chunks(x)[0], call(x.movedim(0, 2)).movedim(-1, 0))


@cases
@pytest.mark.parametrize("recompute", [False, True])
def test_autograd_around_vmap(case: str, recompute: bool) -> None:
    module = make(case, recompute=recompute)
    x, layers = sequences(module, MEMBERS).requires_grad_(), module.num_layers
    wanted = [x, *module.parameters()]

    def gradients() -> Any:
        return torch.autograd.grad(vmap(lambda x: module(x)[0])(x).square().sum(), wanted)

    assert_by_kernels(gradients, layers, layers)
    if case != "projected":  # whose backward for each member computes the gates again, too
        of_each = vmap(grad(lambda p, x: loss(module, p, x)), (None, 0))
        assert_by_kernels(lambda: of_each(values(module), x.detach()), layers, layers)


def test_nothing_is_kept_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where autograd is off, or has nothing to differentiate: what transforms wrap hides neither."""
    module = make("LSTM")
    kept: list[tuple[bool, bool]] = []
    backend = fastrnn.backends.module("numba")
    usual = backend.forward

    def forward(layer: Any, *, history: bool, gates: bool) -> Any:
        kept.append((history, gates))
        return usual(layer, history=history, gates=gates)

    monkeypatch.setattr(backend, "forward", forward)
    x = sequences(module, 1, MEMBERS)
    call = vmap(vmap(lambda x: module(x)[0]))
    with torch.no_grad():
        call(x)
    call(x)
    module.requires_grad_(False)
    call(x)
    call(x.requires_grad_())
    module.recompute = True
    call(x)
    assert kept == [(False, False), (True, True), (False, False), (True, True), (True, False)]


@cases
def test_dropout_under_every_randomness(case: str) -> None:
    module = make(case, dropout=0.5, num_layers=2)
    x = sequences(module).expand(MEMBERS, *sequences(module).shape)

    def outputs(randomness: str) -> Tensor:
        torch.manual_seed(1)
        return vmap(lambda x: module(x)[0], randomness=randomness)(x)

    with pytest.raises(RuntimeError, match="randomness error mode"):
        outputs("error")
    same, different = outputs("same"), outputs("different")
    assert_same(same[1], same[0])
    assert not torch.allclose(different[1], different[0])
    for randomness in ("same", "different"):
        assert_by_kernels(lambda randomness=randomness: outputs(randomness), 2)


@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
def test_cells(name: str) -> None:
    cell = getattr(fastrnn, name)(INPUT, HIDDEN, dtype=torch.float64)
    x, h = torch.randn(MEMBERS, BATCH, INPUT, dtype=torch.float64), torch.randn(MEMBERS, BATCH, HIDDEN).double()
    hx = (h, h.flip(0)) if name == "LSTMCell" else h

    def of(parameters: Any, x: Tensor, hx: Any) -> Tensor:
        after = functional_call(cell, parameters, (x, hx))
        return sum(state.square().sum() for state in (after if isinstance(after, tuple) else (after,)))

    assert_by_kernels(lambda: vmap(lambda x, hx: functional_call(cell, values(cell), (x, hx)))(x, hx), 1)
    assert_by_kernels(lambda: vmap(vmap(lambda x: functional_call(cell, values(cell), (x,))))(x), 1)
    assert_by_kernels(lambda: vmap(grad(of, (0, 1, 2)), (None, 0, 0))(values(cell), x, hx), 1, 1)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_heads(backend: str) -> None:
    """What Numba's kernels do not serve, the operators' reference does, for members too."""
    heads, width = 2, 3
    shapes = [(4 * heads * width, INPUT), (heads, 4 * width, width), (4 * heads * width,), (4 * heads * width,)]
    weights = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    x = torch.randn(MEMBERS, STEPS, BATCH, INPUT, dtype=torch.float64)

    def of(weights: list[Tensor], x: Tensor) -> Tensor:
        return fastrnn.functional.lstm(x, None, [weights], backend=backend)[0].square().sum()

    got = vmap(grad(of), (None, 0))(weights, x)
    leaves = [weight.requires_grad_() for weight in weights]
    for index in range(MEMBERS):
        assert_same([d[index] for d in got], list(torch.autograd.grad(of(leaves, x[index]), leaves)))


@cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_each_sample_are_as_accurate_as_autograds(case: str, dtype: torch.dtype) -> None:
    module = make(case, dtype=dtype, backend="numba")
    x, (lengths, resets) = sequences(module, MEMBERS), masks(module, MEMBERS)
    weights = torch.randn(module(x[0])[0].shape, dtype=torch.float64)

    def of(parameters: Any, x: Tensor, *masks: Tensor) -> Tensor:
        return (run(module, parameters, x, None, *masks)[0].double() * weights).sum()

    arguments = (x, lengths, resets)
    got = vmap(grad(of), (None, 0, 0, 0))(values(module), *arguments)
    exact = make(case, backend="reference")
    exact.load_state_dict(module.state_dict())
    exact_of = grad(lambda p, x, *masks: (run(exact, p, x, None, *masks)[0] * weights).sum())
    truth = vmap(exact_of, (None, 0, 0, 0))(values(exact), x.double(), *arguments[1:])
    for index in range(MEMBERS):
        member = [argument[index] for argument in arguments]
        usual = torch.autograd.grad(of(dict(module.named_parameters()), *member), list(module.parameters()))
        for (name, gradient), other in zip(got.items(), usual, strict=True):
            assert_accurate(f"{name} of {index}", gradient[index], truth[name][index], other)


@cases
def test_autocast(case: str) -> None:
    module = make(case, dtype=torch.float32, backend="numba")
    x = sequences(module, MEMBERS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = vmap(grad(lambda p, x: run(module, p, x)[0].float().square().sum()), (None, 0))(values(module), x)
        for index in range(MEMBERS):
            output = module(x[index])[0].float()
            usual = torch.autograd.grad(output.square().sum(), list(module.parameters()))
            for gradient, other in zip(got.values(), usual, strict=True):
                assert gradient.dtype == torch.float32
                torch.testing.assert_close(gradient[index], other, rtol=0.05, atol=0.05)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own rules for jvp are scripted
def test_autocast_does_not_reach_into_the_reference() -> None:
    """Its arguments are rounded, what it computes with them is not."""
    module = make("GRU", dtype=torch.float32, backend="reference")
    x = sequences(module)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, _ = jvp(lambda x: module(x)[0], (x,), (x,))
        assert torch.equal(got, module(x)[0])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own rules for jvp are scripted
def test_lengths_out_of_range_raise() -> None:
    module = make("GRU")
    x, lengths = sequences(module, MEMBERS), torch.full((MEMBERS, BATCH), STEPS + 1)
    message = r"gru: lengths must lie within \[0, T=5\], got 6"
    with pytest.raises(ValueError, match=message):
        vmap(lambda x, lengths: module(x, lengths=lengths)[0])(x, lengths)
    with pytest.raises(ValueError, match=message):
        jvp(lambda x: vmap(lambda x, lengths: module(x, lengths=lengths)[0])(x, lengths), (x,), (x,))


@cases
def test_no_members_at_all(case: str) -> None:
    """As vmap gives it for plain PyTorch: results without elements."""
    module = make(case)
    x = sequences(module, 0)
    stacked = {name: value.expand(0, *value.shape) for name, value in values(module).items()}
    gradients = grad(lambda p, x: run(module, p, x)[0].sum())
    assert vmap(lambda x: run(module, values(module), x)[0])(x).shape[:3] == x.shape[:3]
    for found in (
        vmap(gradients, (None, 0))(values(module), x),
        vmap(gradients, (0, None))(stacked, sequences(module)),
    ):
        assert [d.shape for d in found.values()] == [value.shape for value in stacked.values()]


@pytest.mark.parametrize("sizes", [(0, BATCH), (STEPS, 0)], ids=["no steps", "no sequences"])
def test_members_without_elements(sizes: tuple[int, int]) -> None:
    module = make("GRU")
    x = torch.randn(MEMBERS, *sizes, INPUT, dtype=torch.float64)
    gradients = vmap(grad(lambda p, x: loss(module, p, x)), (None, 0))(values(module), x)
    assert [d.shape for d in gradients.values()] == [(MEMBERS, *p.shape) for p in module.parameters()]
    assert not any(d.any() for d in gradients.values())


SEES_TRANSFORMS = torch.__version__ >= (2, 13)
"""Compilers before do not tell which transforms are at work, and the reference serves them."""


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("case", ["GRU", "projected"])
def test_compiled(case: str) -> None:
    """One graph, with kernels: vmap inside torch.compile, with gradients around it."""
    members = [make(case, backend="numba") for _ in range(2)]
    stacked, _ = stack_module_state(members)
    x, lengths = sequences(members[0], MEMBERS), masks(members[0], MEMBERS)[0]

    def over_inputs(x: Tensor) -> Tensor:
        return vmap(lambda x, lengths: members[0](x, lengths=lengths)[0])(x, lengths)

    def ensemble(x: Tensor) -> Tensor:
        return vmap(lambda p: functional_call(members[0], p, (x[0],))[0])(stacked)

    layers = members[0].num_layers
    for function, wanted, calls in (
        (over_inputs, list(members[0].parameters()), layers),
        (ensemble, list(stacked.values()), 2 * layers),
    ):
        expected = function(x)
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        compiled(x)
        with counted() as kernels:
            got = compiled(x)
            gradients = torch.autograd.grad(got.square().sum(), wanted)
        if SEES_TRANSFORMS:
            assert (kernels["forward"], kernels["backward"]) == (calls, calls)
        assert_same((got, gradients), (expected, torch.autograd.grad(expected.square().sum(), wanted)))


class Many(torch.nn.Module):
    """A module under vmap."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return vmap(lambda x: self.module(x)[0])(x)


def test_exported() -> None:
    many = Many(make("GRU"))
    x = sequences(many.module, MEMBERS)
    program = torch.export.export(many, (x,), strict=False)
    assert_same(program.module()(x), many(x))


@cases
def test_the_operator_itself(case: str) -> None:
    module = make(case)
    x = sequences(module, MEMBERS).transpose(1, 2) if module.batch_first else sequences(module, MEMBERS)
    names = [module._all_weights[d] for d in range(1 + module.bidirectional)]
    weights = [[getattr(module, name).detach() for name in group] for group in names]
    hx = states(module, MEMBERS)
    hx = [h[:, : 1 + module.bidirectional] for h in (hx if isinstance(hx, tuple) else (hx,))]
    name = {"RNN": "rnn_relu", "GRU": "gru"}.get(module.mode.split("_")[0], "lstm")
    lists = (
        [w[0] for w in weights],
        [w[1][None] for w in weights],
        [b for w in weights for b in w[2:4]],
        [e for w in weights for e in w[4:]],
    )
    operator = getattr(torch.ops.fastrnn, f"{name}_forward")

    def call(x: Tensor, *h: Tensor) -> Any:
        return operator(x, *lists, list(h), None, None, False, None, True, True, "numba")

    got = vmap(call)(x, *hx)
    for index in range(MEMBERS):
        for found, expected in zip(got, call(x[index], *(h[index] for h in hx)), strict=True):
            assert_same([tensor[index] for tensor in found], expected)
