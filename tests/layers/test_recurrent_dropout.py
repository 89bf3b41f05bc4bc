"""Recurrent dropout: one mask of h in its product for all steps of a call, beside loops in plain PyTorch."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import fastrnn
from fastrnn.backends import CannotServe
from fastrnn.cells.library import indrnn
from tests.devices import why_not
from tests.layers.plain_loops import by_loops, recurrent, states_of
from tests.torch_parity import BATCH, HIDDEN, INPUT, TIME, assert_close, gradients, lstm_first, random, tensors

RATE = 0.4
GROUPS = 4
PRODUCTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
LENGTHS = torch.tensor([4, 5, 0])
SEED = 3


def make(name: str, **options: Any) -> Any:
    options = {"recurrent_dropout": RATE, "dtype": torch.float64, "num_layers": 2, "bidirectional": True, **options}
    return getattr(fastrnn, name)(INPUT, HIDDEN, **options)


def states(module: Any) -> tuple[Tensor, ...]:
    widths = [module.proj_size or HIDDEN] + [HIDDEN] * isinstance(module, fastrnn.LSTM)
    return tuple(random(GROUPS, BATCH, width, grad=True) for width in widths)


def mask_of(width: int = HIDDEN, groups: int = GROUPS, dtype: torch.dtype = torch.float64) -> Tensor:
    """What a call draws first after this seed."""
    torch.manual_seed(SEED)
    return F.dropout(torch.ones(groups, BATCH, width, dtype=dtype), RATE)


def called(module: Any, x: Any, *arguments: Any, **options: Any) -> Any:
    torch.manual_seed(SEED)
    return module(x, *arguments, **options)


def rnn(x: Tensor, u: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    return (torch.tanh(x + u),)


def gru(x: Tensor, u: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    (x_r, x_z, x_n), (u_r, u_z, u_n) = x.chunk(3, -1), u.chunk(3, -1)
    z = torch.sigmoid(x_z + u_z)
    return (z * h + (1 - z) * torch.tanh(x_n + torch.sigmoid(x_r + u_r) * u_n),)


def lstm(x: Tensor, u: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    i, f, g, o = (x + u).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


STEPS: dict[str, Callable[..., tuple[Tensor, ...]]] = {"RNN": rnn, "GRU": gru, "LSTM": lstm}


def loop(
    name: str, module: Any, x: Tensor, before: tuple[Tensor, ...], mask: Tensor, lengths: Any, resets: Any
) -> list[Tensor]:
    """The output and the final states, sequence by sequence, each from its first live step to its last."""
    finals: list[tuple[Tensor, ...]] = []
    for layer in range(2):
        both = []
        for way in range(2):
            suffix, k = f"_l{layer}" + "_reverse" * way, 2 * layer + way
            w_ih, w_hh, b_ih, b_hh = [getattr(module, p + suffix) for p in PRODUCTS]
            w_hr = getattr(module, "weight_hr" + suffix, None)
            rows, lasts = [], []
            for b in range(BATCH):
                now = [state[k, b] for state in before]
                steps = range(int(lengths[b]))
                outputs = [x.new_zeros(now[0].shape)] * TIME
                for t in reversed(steps) if way else steps:
                    if resets[t + way, b] if t + way < int(lengths[b]) else False:
                        now = [torch.zeros_like(state) for state in now]
                    u = w_hh @ (mask[k, b] * now[0]) + b_hh
                    now = [*STEPS[name](w_ih @ x[t, b] + b_ih, u, *now)]
                    now[0] = now[0] if w_hr is None else w_hr @ now[0]
                    outputs[t] = now[0]
                rows.append(torch.stack(outputs))
                lasts.append(now)
            both.append(torch.stack(rows, 1))
            finals.append(tuple(map(torch.stack, zip(*lasts, strict=True))))
        x = torch.cat(both, -1)
    return [x, *map(torch.stack, zip(*finals, strict=True))]


@pytest.mark.parametrize("masked", [False, True], ids=["", "lengths and resets"])
@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize(
    ("name", "options"),
    [("RNN", {}), ("GRU", {}), ("LSTM", {}), ("LSTM", {"proj_size": 2}), ("LSTM", {"recompute": True})],
    ids=["RNN", "GRU", "LSTM", "projected", "recomputed"],
)
def test_values_and_gradients_are_those_of_a_loop(
    name: str, options: dict[str, Any], backend: str, masked: bool
) -> None:
    assert_as_loop(name, options, backend, masked)


@pytest.mark.skipif(bool(why_not("triton")), reason="no Triton")
@pytest.mark.parametrize("backend", ["triton"])  # names the backend, and with it the device
@pytest.mark.parametrize(("name", "options"), [("LSTM", {}), ("GRU", {"recompute": True})], ids=["LSTM", "GRU"])
def test_by_tritons_kernels(name: str, options: dict[str, Any], backend: str) -> None:
    assert_as_loop(name, options, backend, masked=True)


def assert_as_loop(name: str, options: dict[str, Any], backend: str, masked: bool) -> None:
    module = make(name, backend=backend, **options)
    x, before = random(TIME, BATCH, INPUT, grad=True), states(module)
    lengths = LENGTHS if masked else torch.full((BATCH,), TIME)
    resets = torch.rand(TIME, BATCH) < 0.3 if masked else torch.zeros(TIME, BATCH, dtype=torch.bool)
    given = {"lengths": lengths, "resets": resets} if masked else {}
    expected = loop(name, module, x, before, mask_of(before[0].shape[-1]), lengths, resets)
    got = tensors(called(module, x, before if len(before) > 1 else before[0], **given))
    assert_close(got, expected)
    wanted = [x, *before, *module.parameters()]
    assert_close(gradients(got, wanted), gradients(expected, wanted))


@pytest.mark.parametrize("heads", [1, 3])
def test_of_any_cell(heads: int) -> None:
    module = recurrent("peephole_lstm", num_layers=2, bidirectional=True, recurrent_dropout=RATE, num_heads=heads)
    alone = fastrnn.heads.dense(module)
    x, before, resets = random(TIME, BATCH, INPUT, grad=True), states_of(module), torch.rand(TIME, BATCH) < 0.3
    output, finals, _ = by_loops(alone, x, before, LENGTHS, resets, mask=mask_of())
    got = tensors(called(module, x, before, lengths=LENGTHS, resets=resets))
    assert_close(got, [output, *finals])
    assert_close(gradients(got, [x, *before]), gradients([output, *finals], [x, *before]))


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_one_mask_serves_all_steps(backend: str) -> None:
    """Seen through a layer that hands on its state: ones that are enlarged in every step, or dropped."""
    options = {"nonlinearity": "relu", "recurrent_dropout": 0.25, "dtype": torch.float64, "backend": backend}
    module = fastrnn.RNN(1, 40, bias=False, **options)
    with torch.no_grad():
        module.weight_hh_l0.copy_(torch.eye(40))
        module.weight_ih_l0.zero_()
    output, _ = module(torch.zeros(3, 50, 1, dtype=torch.float64), torch.ones(1, 50, 40, dtype=torch.float64))
    kept = output[0] > 0
    assert_close(output, torch.stack([kept.double() * (4 / 3) ** step for step in (1, 2, 3)]))
    assert abs(kept.double().mean() - 0.75) < 4 * (0.75 * 0.25 / kept.numel()) ** 0.5
    assert kept.unique(dim=0).shape[0] == 50  # each sequence has a mask of its own


def test_threads_that_share_the_rows() -> None:
    module = fastrnn.LSTM(INPUT, 65, recurrent_dropout=RATE, dtype=torch.float64)
    x, h = random(20, 24, INPUT, grad=True), random(1, 24, 65, grad=True)
    before, runs = torch.get_num_threads(), []
    for backend, threads in (("reference", 1), ("numba", 1), ("numba", 2)):
        module.backend = backend
        torch.set_num_threads(threads)
        got = called(module, x, (h, h))
        runs.append([*tensors(got), *gradients(got, [x, h, *module.parameters()])])
    torch.set_num_threads(before)
    assert_close(runs[1], runs[0])
    assert_close(runs[2], runs[0])


def test_where_the_cell_reads_h_itself_it_reads_all_of_it() -> None:
    """With all of the product dropped, a GRU still has its z h."""
    module = make("GRU", recurrent_dropout=1.0)
    alone = make("GRU", recurrent_dropout=0.0)
    alone.load_state_dict(module.state_dict())
    with torch.no_grad():
        for name, parameter in alone.named_parameters():
            if name.startswith("weight_hh"):
                parameter.zero_()
    x, h = random(TIME, BATCH, INPUT), random(GROUPS, BATCH, HIDDEN)
    assert_close(module(x, h), alone(x, h))


@lstm_first
def test_however_the_input_lies_a_sequence_has_the_same_mask(name: str) -> None:
    module = make(name)
    x = random(TIME, BATCH, INPUT)
    lengths = torch.tensor([2, 5, 3])
    padded, finals = called(module, x, lengths=lengths)
    packed, packed_finals = called(module, pack_padded_sequence(x, lengths, enforce_sorted=False))
    assert_close(tensors(packed_finals), tensors(finals))
    assert_close(packed.data, pack_padded_sequence(padded, lengths, enforce_sorted=False).data)
    first = make(name, batch_first=True)
    first.load_state_dict(module.state_dict())
    assert_close(called(first, x.transpose(0, 1), lengths=lengths)[0].transpose(0, 1), padded)
    assert_close(called(module, x[:, 0])[0], called(module, x[:, :1])[0][:, 0])


@pytest.mark.parametrize("module", [make("LSTM"), recurrent("peephole_lstm", recurrent_dropout=RATE)], ids=type)
def test_it_repeats_with_the_seed_and_ends_with_training(module: Any) -> None:
    x = random(TIME, BATCH, INPUT)
    outputs = [called(module, x)[0], called(module, x)[0], module(x)[0]]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(called(other, x)[0], outputs[0])
    assert f"recurrent_dropout={RATE}" in repr(module)
    alone = copy.deepcopy(module)
    alone.recurrent_dropout = 0.0
    state = torch.get_rng_state()
    assert torch.equal(module.eval()(x)[0], alone(x)[0])
    fastrnn.explain(module.train(), x)
    assert torch.equal(torch.get_rng_state(), state)


def test_changed_rates_and_modes_take_effect_in_the_next_call() -> None:
    module, x = make("GRU"), random(TIME, BATCH, INPUT)
    for _ in range(3):  # of which plans are kept
        before = called(module, x)[0]
    module.recurrent_dropout = 0.0
    alone = module(x)[0]
    module.recurrent_dropout = RATE
    assert not torch.allclose(before, alone)
    assert torch.equal(called(module, x)[0], before)
    assert torch.equal(module.eval()(x)[0], alone)


def test_a_checkpoint_draws_the_same_mask_again() -> None:
    module, x = make("LSTM", dropout=0.5), random(TIME, BATCH, INPUT, grad=True)
    calls = (lambda x: module(x)[0], lambda x: checkpoint(module, x, use_reentrant=False)[0])
    found = [gradients(called(call, x), [x, *module.parameters()]) for call in calls]
    assert_close(*found, tolerance=0)


def test_derivatives_of_derivatives() -> None:
    module, x = make("GRU", num_layers=1, bidirectional=False, backend="numba"), random(2, 2, INPUT, grad=True)

    def function(x: Tensor) -> Tensor:
        return called(module, x)[0]  # type: ignore[no-any-return]

    assert torch.autograd.gradgradcheck(function, x)


def test_compiled_whole() -> None:
    module, x = make("GRU", num_layers=1), random(TIME, BATCH, INPUT, grad=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    got, expected = (called(function, x) for function in (compiled, module))
    assert_close(tensors(got), tensors(expected))
    assert_close(gradients(got, [x]), gradients(expected, [x]))


def test_under_vmap_members_share_the_mask_or_have_their_own() -> None:
    module, xs = make("GRU", num_layers=1), random(3, TIME, BATCH, INPUT)
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(module, parameters, (x,))[0].square().sum()  # type: ignore[no-any-return]

    torch.manual_seed(SEED)
    found = vmap(grad(loss), (None, 0), randomness="same")(parameters, xs)
    for member, x in enumerate(xs):
        torch.manual_seed(SEED)
        assert_close([d[member] for d in found.values()], list(grad(loss)(parameters, x).values()))
    alike = xs[:1].expand_as(xs)
    first, second, _ = vmap(lambda x: module(x)[0], randomness="different")(alike)
    assert not torch.allclose(first, second)


def test_the_probe_sees_it() -> None:
    module, x = make("LSTM", num_layers=1), random(TIME, BATCH, INPUT)
    with fastrnn.probe(module) as record:
        called(module, x)[0].sum().backward()
    assert "LSTM" in record.summary()


def test_who_cannot_says_so() -> None:
    module, x = make("LSTM"), random(TIME, BATCH, INPUT)
    found = fastrnn.explain(module, x)
    assert found.layers == ["numba", "numba"]
    assert found.reasons["aten"] == "cannot: torch's kernels have no recurrent dropout"
    with fastrnn.use_backend("aten"), pytest.raises(CannotServe, match="have no recurrent dropout"):
        module(x)
    module.eval()
    assert fastrnn.explain(module, x).reasons["aten"] != found.reasons["aten"]


@pytest.mark.parametrize("rate", [-0.1, 1.5, True, "0.5", None, float("nan")], ids=repr)
@pytest.mark.parametrize("make", [make, recurrent])
def test_what_is_no_probability_is_refused(make: Any, rate: Any) -> None:
    with pytest.raises(ValueError, match="recurrent_dropout should be a number in range"):
        make("LSTM" if make is not recurrent else "peephole_lstm", recurrent_dropout=rate)
    module = make("LSTM" if make is not recurrent else "peephole_lstm")
    module.recurrent_dropout = rate
    with pytest.raises(ValueError, match="recurrent_dropout should be a number in range"):
        module(random(TIME, BATCH, INPUT))


def test_what_has_no_product_is_refused() -> None:
    with pytest.raises(ValueError, match="indrnn has no gates of the state, recurrent_dropout must be 0"):
        fastrnn.Recurrent(indrnn, INPUT, HIDDEN, recurrent_dropout=RATE)


def test_torchs_layers_have_none() -> None:
    changes: list[Any] = []
    module = fastrnn.to_torch(make("GRU"), report=changes.append)
    assert changes[0].note == f"without recurrent_dropout={RATE}"
    assert not hasattr(module, "recurrent_dropout")
    assert fastrnn.accelerate(module, report=changes.append).recurrent_dropout == 0
