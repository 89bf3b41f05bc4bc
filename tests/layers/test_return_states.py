"""`return_states=True`: every state of every step, layer and direction, against torch's layers taken step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn.backends import CannotServe
from fastrnn.backends.triton.interpreter import INTERPRETED
from tests.devices import why_not
from tests.torch_parity import (
    BATCH,
    HIDDEN,
    INPUT,
    TIME,
    assert_close,
    gradients,
    has_two_states,
    initial_state,
    layers,
    operator_backends,
    pair,
    random,
    skip_unless_projecting,
    tensors,
)

LENGTHS = torch.tensor([4, 5, 0])
RESETS = torch.tensor([[0, 1, 0, 0, 1], [0, 0, 0, 1, 1], [0, 0, 1, 0, 0]]).bool().T
ARGUMENTS: dict[str, dict[str, Tensor]] = {
    "plain": {},
    "lengths": {"lengths": LENGTHS},
    "resets": {"resets": RESETS},
    "both": {"lengths": LENGTHS, "resets": RESETS},
}
arguments = pytest.mark.parametrize("given", ARGUMENTS.values(), ids=ARGUMENTS)


def here(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Arguments where the test creates its tensors, which is not where those above were made, before any test."""
    return {name: tensor.to(torch.get_default_device()) for name, tensor in given.items()}


def skip_if_interpreted(backend: str) -> None:
    """Ends a test that would take the interpreter long; `test_tritons_states` is what it gets."""
    if backend == "triton" and INTERPRETED:
        pytest.skip("too many steps for Triton's interpreter")


def one_direction(kind: str, module: nn.Module, suffix: str, inputs: int) -> Any:
    """torch's layer of one direction with the module's parameters of that suffix, as (input, hx) -> output, hx."""
    options = {"nonlinearity": module.nonlinearity} if kind.startswith("RNN") else {}
    if getattr(module, "proj_size", 0):
        options["proj_size"] = module.proj_size
    layer = getattr(nn, kind.split("_")[0])(inputs, module.hidden_size, dtype=torch.float64, **options)
    names = [name for name, _ in layer.named_parameters()]
    parameters = {name: getattr(module, name.replace("_l0", suffix)) for name in names}
    return lambda *arguments: functional_call(layer, parameters, arguments)


def unrolled(
    kind: str, module: nn.Module, x: Tensor, hx: Any, lengths: Tensor | None = None, resets: Tensor | None = None
) -> list[Tensor]:
    """Every state, (layers·directions, T, B, F) each, by torch's layers over one step of one sequence at a time."""
    steps, batch, _ = x.shape
    before = hx if isinstance(hx, tuple) else (hx,)
    found: list[list[Tensor]] = [[] for _ in before]
    for layer in range(module.num_layers):
        outputs = []
        for direction in range(1 + module.bidirectional):
            suffix = f"_l{layer}" + "_reverse" * direction
            step, number = one_direction(kind, module, suffix, x.shape[-1]), len(found[0])
            rows = [[[torch.zeros(s.shape[-1], dtype=s.dtype)] * batch for _ in range(steps)] for s in before]
            for b in range(batch):
                state = tuple(s[number, b][None, None] for s in before)
                live = range(steps if lengths is None else int(lengths[b]))
                for place, t in enumerate(reversed(live) if direction else live):
                    if resets is not None and (place > 0 or not direction) and resets[t + direction, b]:
                        state = tuple(torch.zeros_like(s) for s in state)
                    after = step(x[t, b][None, None], state if len(state) > 1 else state[0])[1]
                    state = after if isinstance(after, tuple) else (after,)
                    for row, s in zip(rows, state, strict=True):
                        row[t][b] = s[0, 0]
            for states, row in zip(found, rows, strict=True):
                states.append(torch.stack([torch.stack(step_rows) for step_rows in row]))
            outputs.append(found[0][-1])
        x = torch.cat(outputs, -1)
    return [torch.stack(states) for states in found]


def given_to(kind: str, module: nn.Module) -> tuple[Tensor, Any]:
    return random(TIME, BATCH, INPUT, grad=True), initial_state(kind, module, grad=True)


@operator_backends
@layers
@arguments
def test_every_state_and_its_gradients(kind: str, backend: str, given: dict[str, Tensor]) -> None:
    skip_if_interpreted(backend)
    ours, theirs = pair(kind, backend=backend, num_layers=2, bidirectional=True)
    x, hx, given = *given_to(kind, ours), here(given)
    _, _, got = ours(x, hx, **given, return_states=True)
    expected = unrolled(kind, theirs, x, hx, **given)
    assert isinstance(got, tuple) == has_two_states(kind)
    assert_close(tensors(got), expected)
    assert_close(
        gradients(got, [x, *tensors(hx), *ours.parameters()]),
        gradients(expected, [x, *tensors(hx), *theirs.parameters()]),
    )


@pytest.mark.skipif(bool(why_not("triton")), reason="no Triton")
@pytest.mark.parametrize("backend", ["triton"])  # names the backend, and with it the device
@layers
def test_tritons_states(kind: str, backend: str) -> None:
    given = here({"lengths": torch.tensor([3, 2]), "resets": RESETS[:3, :2]})
    x, wanted, results = random(3, 2, INPUT, grad=True), [], []
    ours, _ = pair(kind, backend=backend)
    for name in (backend, "reference"):
        ours.backend = name
        results.append(ours(x, **given, return_states=True)[2])
        wanted.append(gradients(results[-1], [x, *ours.parameters()]))
    assert_close(results[0], results[1])
    assert_close(wanted[0], wanted[1])


@operator_backends
def test_projected_states_have_sizes_of_their_own(backend: str) -> None:
    skip_unless_projecting(backend)
    ours, theirs = pair("LSTM", backend=backend, proj_size=2, bidirectional=True)
    x, hx = given_to("LSTM", ours)
    _, _, (h, c) = ours(x, hx, return_states=True)
    assert h.shape == (2, TIME, BATCH, 2)
    assert c.shape == (2, TIME, BATCH, HIDDEN)
    assert_close([h, c], unrolled("LSTM", theirs, x, hx))


@layers
@pytest.mark.parametrize("recompute", [False, True])
def test_the_other_results_and_gradients_do_not_change(kind: str, recompute: bool) -> None:
    module, _ = pair(kind, num_layers=2, bidirectional=True)
    module.recompute = recompute
    x, hx = given_to(kind, module)
    output, finals = module(x, hx, lengths=LENGTHS)
    *others, states = module(x, hx, lengths=LENGTHS, return_states=True)
    assert_close(others, [output, finals])
    wanted = [x, *tensors(hx), *module.parameters()]
    assert_close(gradients(others, wanted), gradients([output, finals], wanted))
    assert_close(tensors(states)[0][2:], torch.stack(output.chunk(2, -1)))
    for final, state in zip(tensors(finals), tensors(states), strict=True):
        torch.testing.assert_close(final[0::2, 0], state[0::2, 3, 0])
        torch.testing.assert_close(final[1::2, :2], state[1::2, 0, :2])


@layers
def test_layouts(kind: str) -> None:
    module, _ = pair(kind, num_layers=2, bidirectional=True)
    x, hx = given_to(kind, module)
    expected = module(x, hx, resets=RESETS, return_states=True)[2]
    module.batch_first = True
    got = module(x.transpose(0, 1), hx, resets=RESETS.T, return_states=True)[2]
    assert_close([state.transpose(1, 2) for state in tensors(got)], tensors(expected))
    hx = tuple(state[:, 1] for state in hx) if isinstance(hx, tuple) else hx[:, 1]
    got = module(x[:, 1], hx, resets=RESETS[:, 1], return_states=True)[2]
    assert_close(tensors(got), [state[:, :, 1] for state in tensors(expected)])


@layers
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_packed_sequence_gives_them_padded_in_the_callers_order(kind: str, batch_first: bool) -> None:
    module, _ = pair(kind, num_layers=2, bidirectional=True, batch_first=batch_first)
    lengths, resets = torch.tensor([2, 5, 3]), RESETS.T if batch_first else RESETS
    x = random(*((BATCH, TIME) if batch_first else (TIME, BATCH)), INPUT)
    hx = initial_state(kind, module)
    packed = pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False)
    got = module(packed, hx, resets=resets, return_states=True)[2]
    assert_close(got, module(x, hx, lengths=lengths, resets=resets, return_states=True)[2])
    assert isinstance(got, tuple) == has_two_states(kind)


@operator_backends
@layers
@pytest.mark.usefixtures("poisoned_memory")
def test_zero_beyond_a_sequences_end(kind: str, backend: str) -> None:
    skip_if_interpreted(backend)
    module, _ = pair(kind, backend=backend, bidirectional=True)
    x, lengths = random(TIME, BATCH, INPUT), here(ARGUMENTS["lengths"])["lengths"]
    dead = torch.arange(TIME)[:, None] >= lengths
    x[dead] = float("nan")
    x.requires_grad_()
    states = tensors(module(x, lengths=lengths, return_states=True)[2])
    for state in states:
        assert (state[:, dead] == 0).all()
        assert (state[:, ~dead] != 0).any()
    (d_x,) = gradients(states, [x])
    assert (d_x[dead] == 0).all()
    assert d_x.isfinite().all()


@layers
@pytest.mark.parametrize("sizes", [(0, BATCH), (TIME, 0)])
def test_no_steps_and_no_sequences(kind: str, sizes: tuple[int, int]) -> None:
    module, _ = pair(kind, num_layers=2, bidirectional=True)
    x = random(*sizes, INPUT, grad=True)
    states = tensors(module(x, return_states=True)[2])
    assert [state.shape for state in states] == [(4, *sizes, HIDDEN)] * len(states)
    sum(state.sum() for state in states).backward()
    assert x.grad is not None


@operator_backends
@layers
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_and_no_gradients(kind: str, backend: str, dtype: torch.dtype) -> None:
    """Rounded once, as the final states are; without gradients, for which backends keep nothing of their own."""
    module, _ = pair(kind, backend=backend)
    module.to(dtype)
    x = random(TIME, BATCH, INPUT).to(dtype)
    with torch.no_grad():
        output, finals, states = module(x, return_states=True)
    for final, state in zip(tensors(finals), tensors(states), strict=True):
        assert state.dtype == dtype
        # Triton's interpreter cuts float32 to bfloat16, where all else rounds.
        assert_close(state[:, -1], final, tolerance=2**-7 if backend == "triton" and INTERPRETED else 0)
    assert torch.equal(tensors(states)[0][0], output)


@layers
def test_autocast(kind: str) -> None:
    module, _ = pair(kind)
    module.float()
    x = random(TIME, BATCH, INPUT, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output, _, states = module(x, return_states=True)
    assert [state.dtype for state in tensors(states)] == [torch.bfloat16] * len(tensors(states))
    assert torch.equal(tensors(states)[0][0], output)
    sum(state.float().sum() for state in tensors(states)).backward()
    assert module.weight_hh_l0.grad.dtype == torch.float32


@layers
def test_h_is_a_layers_before_dropout(kind: str) -> None:
    module, _ = pair(kind, num_layers=2, dropout=0.5)
    lower, _ = pair(kind)
    lower.load_state_dict({name: p for name, p in module.state_dict().items() if name.endswith("l0")})
    x = random(TIME, BATCH, INPUT)
    states = tensors(module.train()(x, return_states=True)[2])
    assert_close([state[:1] for state in states], tensors(lower(x, return_states=True)[2]))


@layers
def test_results_share_no_memory(kind: str) -> None:
    module, _ = pair(kind)
    with torch.no_grad():
        results = tensors(module(random(TIME, BATCH, INPUT), return_states=True))
    assert len({result.untyped_storage().data_ptr() for result in results}) == len(results)


@layers
def test_aten_cannot_give_them(kind: str) -> None:
    module, _ = pair(kind)
    x = random(2, BATCH, INPUT, grad=True)  # so few steps that "auto" would take torch's kernels
    assert fastrnn.explain(module, x).layers == ["aten"] or has_two_states(kind)
    assert fastrnn.explain(module, x, return_states=True).layers not in ([], ["aten"])
    expected = module(x)[0]
    assert_close(tensors(module(x, return_states=True)[2])[0][0], expected)
    message = "backend 'aten' cannot serve this call: torch's kernels do not give the states of every step"
    with fastrnn.use_backend("aten"), pytest.raises(CannotServe, match=message):
        module(x, return_states=True)
    module.backend = "aten"
    assert_close(module(x)[0], expected)
    with pytest.raises(RuntimeError, match=message):
        module(x, return_states=True)


@layers
def test_a_repeated_call_gives_them_too(kind: str) -> None:
    module, _ = pair(kind)
    x = random(TIME, BATCH, INPUT)
    with torch.no_grad():
        before = [module(x) for _ in range(3)]
        _, _, states = module(x, return_states=True)
        after = module(x)
    assert_close(tensors(states)[0][0], before[-1][0])
    assert_close(after, before[-1])


@layers
def test_functions_give_what_modules_give(kind: str) -> None:
    module, _ = pair(kind, num_layers=2)
    x, hx = given_to(kind, module)
    options = {"nonlinearity": module.nonlinearity} if kind.startswith("RNN") else {}
    function = getattr(fastrnn.functional, kind.split("_")[0].lower())
    got = function(x, hx, module.all_weights, lengths=LENGTHS, return_states=True, **options)
    assert_close(got, module(x, hx, lengths=LENGTHS, return_states=True))


@operator_backends
@layers
def test_derivatives_of_both_orders(kind: str, backend: str) -> None:
    skip_if_interpreted(backend)
    module = pair(kind, 2, 3, backend=backend, bidirectional=True)[0]
    x, given = random(3, 2, 2, grad=True), here({"resets": RESETS[:3, :2]})

    def states(x: Tensor) -> list[Tensor]:
        return tensors(module(x, **given, return_states=True)[2])

    assert torch.autograd.gradcheck(lambda x: tuple(states(x)), (x,))
    if backend == "reference":  # which takes the second derivative whatever the backend
        assert torch.autograd.gradgradcheck(lambda x: states(x)[-1], (x,))


@layers
def test_under_transforms(kind: str) -> None:
    module, _ = pair(kind, num_layers=2)
    x = random(4, TIME, BATCH, INPUT)

    def loss(x: Tensor) -> Tensor:
        return sum(state.square().sum() for state in tensors(module(x, lengths=LENGTHS, return_states=True)[2]))

    one_by_one = []
    for each in x:
        each.requires_grad_()
        one_by_one.append(torch.autograd.grad(loss(each), each)[0])
    assert_close(vmap(grad(loss))(x.detach()), torch.stack(one_by_one))
    got = vmap(lambda x: module(x, return_states=True)[2])(x)
    expected = [tensors(module(each, return_states=True)[2]) for each in x]
    assert_close(tensors(got), [torch.stack(parts) for parts in zip(*expected, strict=True)])


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_into_one_graph() -> None:
    module, _ = pair("LSTM", bidirectional=True)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (3, 2):
        x = random(TIME, batch, INPUT, grad=True)
        given = {"lengths": LENGTHS[:batch], "resets": RESETS[:, :batch], "return_states": True}
        got, expected = compiled(x, **given), module(x, **given)
        assert_close(got[2], expected[2])
        wanted = [x, *module.parameters()]
        assert_close(gradients(got[2], wanted), gradients(expected[2], wanted))
