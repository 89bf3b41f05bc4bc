"""`LayerNormLSTM` and `LayerNormGRU`: with weights of torch's example and of haste, how they begin, what is refused."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, vmap

import fastrnn
from fastrnn.cells.library.normalised import first_values, layer_norm_gru, layer_norm_lstm
from tests.selection import exhaustive
from tests.torch_parity import BATCH, HIDDEN, INPUT, TIME, assert_close, gradients, random, tensors

OPTIONS: dict[str, Any] = {"dtype": torch.float64, "backend": "reference"}


def give(module: Any, suffix: str, **vectors: Tensor) -> None:
    """To parameters `gain_xi`, `gain_xf`, ... the parts of the vector that is named `gain_x_ifgo`."""
    with torch.no_grad():
        for name, vector in vectors.items():
            begin, _, gates = name.rpartition("_")
            for gate, part in zip(gates, vector.split(HIDDEN), strict=True):
                getattr(module, f"{begin}{gate}{suffix}").copy_(part)


def test_weights_of_torchs_example() -> None:
    """benchmarks/fastrnns/custom_lstms.py in torch's repository, two layers of it."""
    ours = fastrnn.LayerNormLSTM(INPUT, HIDDEN, 2, variant="normalised_memory", **OPTIONS)
    x, states = random(TIME, BATCH, INPUT, grad=True), [random(2, BATCH, HIDDEN, grad=True) for _ in range(2)]
    y, finals, theirs = x, [], []
    for layer in range(2):
        w_ih, w_hh = getattr(ours, f"weight_ih_l{layer}"), getattr(ours, f"weight_hh_l{layer}")
        of_i, of_h, of_c = (random(2, rows * HIDDEN, grad=True) for rows in (4, 4, 1))
        give(ours, f"_l{layer}", gain_x_ifgo=of_i[0], gain_u_ifgo=of_h[0], bias__ifgo=of_i[1] + of_h[1])
        give(ours, f"_l{layer}", gain__c=of_c[0], bias__c=of_c[1])
        theirs += [of_i, of_h, of_c]
        (h, c), outputs = (state[layer] for state in states), []
        for x_t in y:
            of_x = F.layer_norm(x_t @ w_ih.T, (4 * HIDDEN,), *of_i)
            i, f, g, o = (of_x + F.layer_norm(h @ w_hh.T, (4 * HIDDEN,), *of_h)).chunk(4, 1)
            c = F.layer_norm(f.sigmoid() * c + i.sigmoid() * g.tanh(), (HIDDEN,), *of_c)
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        y = torch.stack(outputs)
        finals.append((h, c))
    got = tensors(ours(x, tuple(states)))
    expected = [y, *map(torch.stack, zip(*finals, strict=True))]
    assert_close(got, expected)
    shared = [x, *states, ours.weight_ih_l0, ours.weight_hh_l0, ours.weight_ih_l1, ours.weight_hh_l1]
    assert_close(gradients(got, shared), gradients(expected, shared))
    gains = torch.cat([getattr(ours, f"gain_u{gate}_l1") for gate in "ifgo"])
    assert gains.equal(theirs[4][0])


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_weights_of_haste(kind: str) -> None:
    """As its loop: gates i, g, f, o or z, r, n, weights transposed, no state given."""
    theirs, ours_order = ("igfo", "ifgo") if kind == "LSTM" else ("zrn", "rzn")
    ours = getattr(fastrnn, f"LayerNorm{kind}")(INPUT, HIDDEN, **OPTIONS)
    rows = len(theirs) * HIDDEN
    kernel, recurrent_kernel, gamma = random(INPUT, rows), random(HIDDEN, rows), random(2, rows)
    bias, recurrent_bias, gamma_h, beta_h = random(rows), random(rows), random(HIDDEN), random(HIDDEN)
    with torch.no_grad():
        for gate, *both in zip(theirs, kernel.T.split(HIDDEN), recurrent_kernel.T.split(HIDDEN), strict=True):
            for name, part in zip(("weight_ih_l0", "weight_hh_l0"), both, strict=True):
                ours.gate(name, gate).copy_(part)
    give(ours, "_l0", **{f"gain_x_{theirs}": gamma[0], f"gain_u_{theirs}": gamma[1]})
    if kind == "LSTM":
        give(ours, "_l0", bias__igfo=bias, gain__c=gamma_h, bias__c=beta_h)
    else:
        added = (bias + recurrent_bias)[: 2 * HIDDEN]
        give(ours, "_l0", bias__zr=added, bias_x_n=bias[-HIDDEN:], bias_u_n=recurrent_bias[-HIDDEN:])
    x = random(TIME, BATCH, INPUT)
    h, c, outputs = torch.zeros(BATCH, HIDDEN).double(), torch.zeros(BATCH, HIDDEN).double(), []
    for x_t in x:
        of_x = F.layer_norm(x_t @ kernel, (rows,), gamma[0]) + bias
        of_u = F.layer_norm(h @ recurrent_kernel, (rows,), gamma[1])
        if kind == "LSTM":
            i, g, f, o = (of_x + of_u).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * F.layer_norm(c, (HIDDEN,), gamma_h, beta_h).tanh()
        else:
            (x_z, x_r, x_n), (u_z, u_r, u_n) = of_x.chunk(3, 1), (of_u + recurrent_bias).chunk(3, 1)
            z, r = (x_z + u_z).sigmoid(), (x_r + u_r).sigmoid()
            h = z * h + (1 - z) * (x_n + r * u_n).tanh()
        outputs.append(h)
    assert ours.cell.x_gates == tuple(ours_order)
    assert_close(tensors(ours(x)), [torch.stack(outputs), h[None], *([c[None]] if kind == "LSTM" else [])])


@pytest.mark.parametrize("name", ["LayerNormLSTM", "LayerNormGRU"])
def test_how_they_begin(name: str) -> None:
    changed = "gain_xr" if name == "LayerNormGRU" else "bias_f"
    module = getattr(fastrnn, name)(INPUT, HIDDEN, bidirectional=True, init={changed: 3.0})
    named = dict(module.named_parameters())
    assert not any(key.startswith(("bias_ih", "bias_hh")) for key in named)
    own = {key: value for key, value in named.items() if not key.startswith("weight")}
    assert own.keys() == {f"{key}_l0{way}" for key in module.cell.parameters for way in ("", "_reverse")}
    for key, value in own.items():
        first = 3.0 if key.startswith(changed) else float(key.startswith("gain"))
        assert value.equal(torch.full((HIDDEN,), first)), key
    before = {key: value.clone() for key, value in own.items()}
    with torch.no_grad():
        for value in own.values():
            value.fill_(7.0)
    module.reset_parameters()
    assert all(own[key].equal(value) for key, value in before.items())


def test_products_have_biases_where_they_are_asked_for() -> None:
    module = fastrnn.LayerNormGRU(INPUT, HIDDEN, bias=True, num_heads=2)
    assert (module.bias_ih_l0.shape, module.bias_hh_l0.shape) == ((3 * HIDDEN,),) * 2
    assert repr(module) == f"LayerNormGRU(layer_norm_gru, {INPUT}, {HIDDEN}, num_heads=2)"


@pytest.mark.parametrize("variant", ["joint", "per_gate", "normalised_memory"])
def test_all_that_recurrent_can_do(variant: str) -> None:
    """It is that, with its cell; and copies and pickles are what it is."""
    options = {
        "num_layers": 2,
        "bidirectional": True,
        "batch_first": True,
        "num_heads": 2,
        "recurrent_dropout": 0.5,
        **OPTIONS,
    }
    module = fastrnn.LayerNormLSTM(INPUT, HIDDEN, variant=variant, **options)
    plain = fastrnn.Recurrent(module.cell, INPUT, HIDDEN, bias=False, **options)
    plain.load_state_dict(module.state_dict())
    x, resets = random(BATCH, TIME, INPUT), torch.rand(BATCH, TIME) < 0.3

    def called(module: Any) -> list[Tensor]:
        torch.manual_seed(0)
        return tensors(module(x, lengths=[TIME, 0, 3], resets=resets, return_states=True))

    for one in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(one) is fastrnn.LayerNormLSTM
        assert one.variant == variant
        assert_close(called(one), called(plain))


@pytest.mark.parametrize("backend", ["reference", *exhaustive("auto")])
def test_gradients_of_each_sample(backend: str) -> None:
    module = fastrnn.LayerNormLSTM(INPUT, HIDDEN, dtype=torch.float64, backend=backend)
    weights = {key: value.detach() for key, value in module.named_parameters()}
    x = random(TIME, BATCH, INPUT)

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(module, weights, (x,))[0].square().sum()

    each = vmap(grad(loss), (None, 1))(weights, x)
    for sample in range(BATCH):
        alone = grad(loss)(weights, x[:, sample])
        for key, value in alone.items():
            torch.testing.assert_close(each[key][sample], value)


@pytest.mark.parametrize("cell", [layer_norm_lstm, layer_norm_gru], ids=lambda cell: cell.name)
def test_a_single_step(cell: Any) -> None:
    options = {"bias": False, "init": first_values(cell), **OPTIONS}
    step, layer = (kind(cell, INPUT, HIDDEN, **options) for kind in (fastrnn.RecurrentCell, fastrnn.Recurrent))
    step.load_state_dict({key.removesuffix("_l0"): value for key, value in layer.state_dict().items()})
    x = random(1, BATCH, INPUT)
    assert_close([state[None] for state in tensors(step(x[0]))], tensors(layer(x)[1]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"variant": "ba"}, ValueError, "variant must be one of 'joint', 'per_gate', 'normalised_memory', got 'ba'"),
        ({"variant": ["joint"]}, ValueError, r"variant must be one of .*, got \['joint'\]"),
        ({"init": {"gain": 1.0}}, ValueError, "init names 'gain', the parameters of layer_norm_lstm are weight_ih, "),
        ({"init": 1.0}, TypeError, "init must be a mapping from parameters' names to functions or numbers, got float"),
        ({"num_heads": 4}, ValueError, "num_heads"),
    ],
)
def test_what_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fastrnn.LayerNormLSTM(INPUT, HIDDEN, **options)
    with pytest.raises(TypeError, match="keep_h"):
        fastrnn.LayerNormLSTM(INPUT, HIDDEN)(torch.randn(TIME, BATCH, INPUT), keep_h=1)  # type: ignore[call-arg]
