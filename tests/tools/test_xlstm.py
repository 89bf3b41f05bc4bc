"""xLSTM's sLSTM: a `Recurrent` layer of heads beside loops that are written from the paper's equations, and weights in
the layouts of its authors' package."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastrnn
import fastrnn.xlstm
from fastrnn.cells.library import mgu, slstm
from fastrnn.xlstm import from_xlstm, to_xlstm
from tests.selection import exhaustive
from tests.torch_parity import assert_close, random, tensors

TIME, BATCH, INPUT, HEADS, WIDTH = 5, 3, 4, 4, 3
HIDDEN = HEADS * WIDTH
GATES = "ifzo"


def step(gates: dict[str, Tensor], c: Tensor, n: Tensor, m: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The paper's equations 8 to 17, of any shape: pre-activations by their gates' names and states -> h, c, n, m.

    Where n is 0 nothing was remembered, and m follows from the input gate alone.
    """
    log_f = F.logsigmoid(gates["f"])
    after = torch.where(n == 0, gates["i"], torch.maximum(log_f + m, gates["i"]))
    i, f = torch.exp(gates["i"] - after), torch.exp(log_f + m - after)
    f = torch.where(n == 0, 0.0, f)
    c, n = f * c + i * torch.tanh(gates["z"]), f * n + i
    return torch.sigmoid(gates["o"]) * c / n, c, n, after


def states() -> list[Tensor]:
    """h, c, n > 0 and m, (1, B, H) each."""
    h, c, m = (random(1, BATCH, HIDDEN) for _ in range(3))
    return [state.requires_grad_() for state in (h, c, torch.rand_like(h) + 0.5, m)]


@pytest.mark.parametrize("backend", ["reference", *exhaustive("auto")])
@pytest.mark.parametrize("given", [False, True], ids=["from zeros", "from states"])
def test_a_layer_of_heads_is_the_papers(given: bool, backend: str) -> None:
    """Head by head, each with matrices of its own."""
    layer = fastrnn.Recurrent(slstm, INPUT, HIDDEN, num_heads=HEADS, dtype=torch.float64, backend=backend)
    x, hx = random(TIME, BATCH, INPUT, grad=True), states()
    got = tensors(layer(x, tuple(hx) if given else None))
    before = [state[0] if given else torch.zeros_like(state[0]) for state in hx]
    h, c, n, m = (list(state.chunk(HEADS, -1)) for state in before)
    outputs = []
    for t in range(TIME):
        for head in range(HEADS):
            units = slice(head * WIDTH, (head + 1) * WIDTH)
            gates = {}
            for place, gate in enumerate(GATES):
                rows = slice(place * HIDDEN + units.start, place * HIDDEN + units.stop)
                w, b, b_h = layer.weight_ih_l0[rows], layer.bias_ih_l0[rows], layer.bias_hh_l0[rows]
                r = layer.weight_hh_l0[head, place * WIDTH : (place + 1) * WIDTH]
                gates[gate] = x[t] @ w.T + b + h[head] @ r.T + b_h
            h[head], c[head], n[head], m[head] = step(gates, c[head], n[head], m[head])
        outputs.append(torch.cat(h, -1))
    expected = [torch.stack(outputs), *(torch.cat(parts, -1)[None] for parts in (h, c, n, m))]
    assert_close(got, expected)
    # m is a constant to the layer's gradient, which h does not depend on: only h is compared.
    wanted = [x, *layer.parameters(), *(hx if given else [])]
    weights = torch.randn(TIME, BATCH, HIDDEN, dtype=torch.float64)
    gradients = [torch.autograd.grad((y[0] * weights).sum(), wanted, allow_unused=True) for y in (got, expected)]
    assert_close(*gradients)


def theirs(layout: str, convolves: bool = True) -> dict[str, Tensor]:
    """A state dict of an `sLSTMLayer`, whose recurrence has the kernel (N, D, 4, D) and the bias (N, 4, D)."""
    kernel, bias = random(HEADS, WIDTH, 4, WIDTH), random(HEADS, 4, WIDTH)
    if layout == "vanilla":
        kernel, bias = kernel.permute(0, 2, 3, 1).reshape(HEADS, -1, WIDTH), bias.transpose(0, 1).reshape(-1)
    elif layout == "cuda":
        kernel, bias = kernel.reshape(HEADS, WIDTH, -1), bias.reshape(-1)
    state = {f"{name}gate.weight": random(HEADS, WIDTH, WIDTH) for name in GATES}
    state |= {"slstm_cell._recurrent_kernel_": kernel, "slstm_cell._bias_": bias, "group_norm.weight": random(HIDDEN)}
    return state | ({"conv1d.conv.weight": random(HIDDEN, 1, 4)} if convolves else {})


def in_their_layout(kernel: Tensor, bias: Tensor, shares: list[Tensor], before: Tensor) -> tuple[Tensor, Tensor]:
    """The outputs (B, T, H), and the states after the last step (4, B, H), of a loop over their tensors.

    kernel (N, D, 4, D), bias (N, 4, D), the gates' shares of the input (B, T, N, D), in the order of the gates.
    """
    h, c, n, m = before.unflatten(-1, (HEADS, WIDTH))
    outputs = []
    for t in range(shares[0].shape[1]):
        raw = torch.einsum("bnd,ndge->bnge", h, kernel) + bias
        gates = {gate: raw[:, :, place] + shares[place][:, t] for place, gate in enumerate(GATES)}
        h, c, n, m = step(gates, c, n, m)
        outputs.append(h.flatten(1))
    return torch.stack(outputs, 1), torch.stack([state.flatten(1) for state in (h, c, n, m)])


@pytest.mark.parametrize("layout", ["vanilla", "cuda", "exchanged"])
@pytest.mark.parametrize("convolves", [False, True], ids=["x alone", "convolved"])
def test_the_authors_layer_and_ours(layout: str, convolves: bool) -> None:
    state = theirs(layout, convolves)
    layer = from_xlstm(state, backend="reference")
    kernel, bias = state["slstm_cell._recurrent_kernel_"], state["slstm_cell._bias_"]
    if layout == "vanilla":
        kernel = kernel.reshape(HEADS, 4, WIDTH, WIDTH).permute(0, 3, 1, 2)
        bias = bias.reshape(4, HEADS, WIDTH).transpose(0, 1)
    kernel, bias = kernel.reshape(HEADS, WIDTH, 4, WIDTH).requires_grad_(), bias.reshape(HEADS, 4, WIDTH)
    x, convolved = (random(BATCH, TIME, HIDDEN, grad=True) for _ in range(2))
    seen = {"i": convolved, "f": convolved, "z": x, "o": x} if convolves else dict.fromkeys(GATES, x)
    # What they call fgate makes the input gate, and igate the forget gate.
    feeding = {"i": "fgate", "f": "igate", "z": "zgate", "o": "ogate"}
    shares = [
        torch.einsum("btnd,nod->btno", seen[gate].unflatten(-1, (HEADS, WIDTH)), state[f"{feeding[gate]}.weight"])
        for gate in GATES
    ]
    for before in (torch.zeros(4, BATCH, HIDDEN).double(), torch.cat(states()).detach()):
        expected, after = in_their_layout(kernel, bias, shares, before)
        given = torch.cat((convolved, x), -1) if convolves else x
        output, final = layer(given, tuple(before.unsqueeze(1)))
        assert_close([output, torch.cat(final)], [expected, after])
        d_x, d_hh = torch.autograd.grad(output.square().sum(), [x, layer.weight_hh_l0])
        d_x_theirs, d_kernel = torch.autograd.grad(expected.square().sum(), [x, kernel], retain_graph=True)
        assert_close([d_x, d_hh.reshape(HEADS, 4, WIDTH, WIDTH)], [d_x_theirs, d_kernel.permute(0, 2, 3, 1)])


@pytest.mark.parametrize("layout", ["vanilla", "cuda", "exchanged"])
def test_weights_go_there_and_back(layout: str) -> None:
    state, like = theirs(layout), {name: value.float() for name, value in theirs(layout).items()}
    layer = from_xlstm(state)
    assert (layer.num_heads, layer.hidden_size, layer.input_size) == (HEADS, HIDDEN, 2 * HIDDEN)
    back = to_xlstm(layer, state)
    assert list(back) == list(state)
    assert all(torch.equal(back[name], value) for name, value in state.items())
    assert all(back[name].is_contiguous() for name in state)
    other = to_xlstm(layer, like)
    assert {value.dtype for value in other.values()} == {torch.float32}
    assert torch.equal(other["igate.weight"], state["igate.weight"].float())
    assert other["group_norm.weight"] is like["group_norm.weight"]


@pytest.mark.parametrize("layout", ["vanilla", "cuda", "exchanged"])
def test_a_cell_alone_takes_the_gates_shares(layout: str) -> None:
    whole = theirs(layout, convolves=False)
    state = {name.split(".")[1]: value for name, value in whole.items() if name.startswith("slstm_cell.")}
    layer, cell = from_xlstm(whole, backend="reference"), from_xlstm(state, batch_first=False, backend="reference")
    x = random(BATCH, TIME, HIDDEN)
    shares = F.linear(x, layer.weight_ih_l0).transpose(0, 1)
    assert_close(cell(shares)[0].transpose(0, 1), layer(x)[0])
    back = to_xlstm(cell, state)
    assert all(torch.equal(back[name], value) for name, value in state.items())


def test_one_head_has_torchs_shape() -> None:
    state = {"_recurrent_kernel_": random(1, 5, 4, 5), "_bias_": random(1, 4, 5)}
    layer = from_xlstm(state)
    assert layer.weight_hh_l0.shape == (20, 5)
    assert all(torch.equal(value, state[name]) for name, value in to_xlstm(layer, state).items())


def changed(name: str, value: Any) -> dict[str, Tensor]:
    return {**theirs("cuda"), name: value}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weight": torch.zeros(2)}, "xlstm's sLSTMLayer or sLSTMCell has _recurrent_kernel_, got weight"),
        ({"slstm_cell._recurrent_kernel_": torch.zeros(2, 3, 4, 3)}, "has slstm_cell._bias_, got slstm_cell._rec"),
        (changed("slstm_cell._recurrent_kernel_", torch.zeros(4, 3, 9)), r"must be \(N, D, 4, D\), .*got \(4, 3, 9\)"),
        (changed("slstm_cell._bias_", torch.zeros(4, 4, 3)), r"slstm_cell._bias_ must be \(48,\), got \(4, 4, 3\)"),
        (changed("fgate.weight", torch.zeros(4, 3, 2)), r"fgate.weight must be \(4, 3, 3\), got \(4, 3, 2\)"),
    ],
)
def test_other_state_dicts_are_refused(state: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_xlstm(state)


def test_other_layers_are_refused() -> None:
    state = theirs("cuda")
    layer = from_xlstm(state)
    with torch.no_grad():
        layer.weight_ih_l0[0, -1] = 1
    with pytest.raises(ValueError, match="weight_ih_l0 must be 0 outside of the projections' blocks"):
        to_xlstm(layer, state)
    with pytest.raises(TypeError, match=r"layer must be a fastrnn\.Recurrent, got Linear"):
        to_xlstm(torch.nn.Linear(2, 2), state)  # type: ignore[arg-type]
    for other in (
        fastrnn.Recurrent(mgu, HIDDEN, HIDDEN),
        fastrnn.Recurrent(slstm, HIDDEN, HIDDEN, bidirectional=True, num_heads=HEADS),
    ):
        with pytest.raises(ValueError, match="must be one layer of slstm in one direction, with biases, got Recurrent"):
            to_xlstm(other, state)
    for inputs, heads in ((24, 2), (12, 4), (5, 4)):
        other = fastrnn.Recurrent(slstm, inputs, HIDDEN, num_heads=heads)
        with pytest.raises(ValueError, match=rf"is of 4 heads of 3 units, and of 24 inputs, got .*{inputs}, 12, "):
            to_xlstm(other, state)
