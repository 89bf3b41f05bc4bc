"""Modules with `num_heads`: as many layers side by side as there are heads, each of D units, that share the input."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

import fastrnn
import fastrnn.heads
from fastrnn.cells import CELLS
from fastrnn.cells.library import indrnn, peephole_lstm
from tests.selection import exhaustive
from tests.torch_parity import BATCH, HIDDEN, INPUT, LAYERS, TIME, assert_close, classes, gradients, random, tensors

HEADS = 3
WIDTH = HIDDEN // HEADS
OPTIONS: dict[str, Any] = {"num_heads": HEADS, "dtype": torch.float64, "backend": "reference"}
LENGTHS = torch.tensor([4, 5, 2])


def make(kind: str, **options: Any) -> Any:
    ours, _, own = classes(kind)
    return ours(INPUT, HIDDEN, **{**OPTIONS, **own, **options})


def recurrent(**options: Any) -> Any:
    """Of a cell with parameters of its own."""
    return fastrnn.Recurrent(peephole_lstm, INPUT, HIDDEN, **{**OPTIONS, **options})


def single(**options: Any) -> Any:
    """A step of the same."""
    return fastrnn.RecurrentCell(peephole_lstm, INPUT, HIDDEN, **{**OPTIONS, **options})


def head(parameter: Tensor, index: int) -> Tensor:
    """What a head has of one: a block of `weight_hh`, of all else the rows of its units, gate by gate."""
    if parameter.dim() == 3:
        return parameter[index]
    return parameter.unflatten(0, (-1, HEADS, WIDTH))[:, index].flatten(0, 1)


def side_by_side(parts: list[Tensor]) -> Tensor:
    """(..., directions·D) of each head -> (..., directions·H)."""
    return torch.stack([part.unflatten(-1, (-1, WIDTH)) for part in parts], -2).flatten(-3)


@pytest.mark.parametrize(
    ("kind", "backend"),
    [
        *((kind, "reference") for kind in LAYERS),
        *(pytest.param(kind, "auto", marks=() if kind == "GRU" else pytest.mark.exhaustive) for kind in LAYERS),
    ],
)
def test_a_head_is_torchs_layer_of_its_units(kind: str, backend: str) -> None:
    module, alone = make(kind, bidirectional=True, backend=backend), []
    for index in range(HEADS):
        _, theirs, options = classes(kind)
        alone.append(theirs(INPUT, WIDTH, bidirectional=True, dtype=torch.float64, **options))
        with torch.no_grad():
            for name, parameter in alone[-1].named_parameters():
                parameter.copy_(head(getattr(module, name), index))
    x, states = random(TIME, BATCH, INPUT, grad=True), [random(2, BATCH, HIDDEN, grad=True) for _ in range(2)]

    def packed(value: Tensor) -> Any:
        return pack_padded_sequence(value, LENGTHS, enforce_sorted=False)

    def run(module: Any, states: list[Tensor]) -> list[Tensor]:
        return tensors(module(packed(x), tuple(states) if kind == "LSTM" else states[0]))

    got = run(module, states)
    each = [run(one, [s.unflatten(-1, (HEADS, -1))[..., n, :] for s in states]) for n, one in enumerate(alone)]
    expected = [side_by_side(list(parts)) for parts in zip(*each, strict=True)]
    assert_close(got, expected)
    own = [dict(module.named_parameters())[name] for name, _ in alone[0].named_parameters()]
    given = [x, *states[: len(got) - 1]]
    *d_own, d_x, d_h = gradients(got, [*own, *given[:2]])
    theirs = gradients(expected, [*given[:2], *(p for one in alone for p in one.parameters())])
    assert_close([d_x, d_h], theirs[:2])
    for index in range(HEADS):
        mine = theirs[2 + index * len(own) : 2 + (index + 1) * len(own)]
        assert_close([head(d, index) for d in d_own], mine)


@pytest.mark.parametrize("make", [make, recurrent], ids=["torchs", "any cell"])
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_a_stack_of_them_is_one_of_dense_weights(make: Any, recompute: bool) -> None:
    kind = () if make is recurrent else ("LSTM",)
    module = make(*kind, num_layers=2, bidirectional=True, recompute=recompute)
    dense = fastrnn.heads.dense(module)
    assert (dense.num_heads, module.num_heads) == (1, HEADS)
    for name, parameter in dense.named_parameters():
        rows = parameter.shape[0]
        expected = getattr(module, name)
        if name.startswith("weight_hh"):
            assert parameter.shape == (rows, HIDDEN)
            outside = torch.ones(HEADS, HEADS).fill_diagonal_(0).bool()
            by_head = parameter.unflatten(1, (HEADS, WIDTH)).unflatten(0, (-1, HEADS, WIDTH)).movedim((1, 3), (0, 1))
            assert not by_head[outside].any()
            parameter = torch.stack([by_head[n, n].flatten(0, 1) for n in range(HEADS)])
        assert torch.equal(parameter, expected)
    x, states = random(TIME, BATCH, INPUT), tuple(random(4, BATCH, HIDDEN) for _ in range(2))
    resets = torch.rand(TIME, BATCH) < 0.3
    options = {"lengths": LENGTHS, "resets": resets, "return_states": True}
    assert_close(tensors(module(x, states, **options)), tensors(dense(x, states, **options)))


def test_dense_keeps_what_layers_share() -> None:
    module = recurrent(num_layers=3)
    module.weight_hh_l2 = module.weight_hh_l0
    dense = fastrnn.heads.dense(module)
    assert dense.weight_hh_l2 is dense.weight_hh_l0 is not dense.weight_hh_l1


def test_dense_refuses_what_it_cannot_make() -> None:
    with pytest.raises(TypeError, match=r"^dense: module must be one of fastrnn's layers with heads, got GRUCell$"):
        fastrnn.heads.dense(fastrnn.GRUCell(2, 2))
    module = nn.utils.parametrizations.weight_norm(make("GRU"), "weight_hh_l0")
    with pytest.raises(ValueError, match="dense: weight_hh_l0 is not a parameter but computed from others"):
        fastrnn.heads.dense(module)


@pytest.mark.parametrize("kind", ["GRU", "any cell"])
def test_parameters_begin_as_large_as_with_one_head(kind: str) -> None:
    """The sums of recurrent products: D of them are summed in place of H."""
    if kind == "GRU":
        module: Any = fastrnn.GRU(30, 64, num_layers=2, bidirectional=True, num_heads=16)
    else:
        module = fastrnn.Recurrent(peephole_lstm, 30, 64, num_heads=16, init={"p_i": 0.5})
    torch.manual_seed(0)
    module.reset_parameters()
    for name, parameter in module.named_parameters():
        bound = 64**-0.5
        if name.startswith("weight_hh"):
            bound = 4**-0.5
            assert parameter.shape == (16, parameter[0].numel() // 4, 4)
        if not name.startswith("p_i"):
            assert 0.9 * bound < parameter.abs().max() <= bound
    again = copy.deepcopy(module)
    torch.manual_seed(0)
    again.reset_parameters()
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))


class Zeros(fastrnn.GRU):
    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


def test_subclasses_begin_as_they_say() -> None:
    module = Zeros(INPUT, HIDDEN, bidirectional=True, num_heads=HEADS)
    assert module.weight_hh_l0_reverse.shape == (HEADS, 3 * WIDTH, WIDTH)
    assert not any(parameter.any() for parameter in module.parameters())
    assert module._flat_weights[1] is module.weight_hh_l0


def test_init_fills_one_head_after_another() -> None:
    module = recurrent(init={"weight_hh": nn.init.orthogonal_, "weight_ih": nn.init.zeros_})
    for weight in module.weight_hh_l0:
        assert_close(weight.T @ weight, torch.eye(WIDTH).double())
    assert not module.weight_ih_l0.any()


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"num_heads": 4}, ValueError, "hidden_size must be divisible by num_heads, got hidden_size=6 and num_heads=4"),
        ({"num_heads": 0}, ValueError, "num_heads must be greater than zero"),
        ({"num_heads": -1}, ValueError, "num_heads must be greater than zero"),
        ({"num_heads": 2.0}, TypeError, "num_heads should be of type int, got: float"),
    ],
)
def test_what_heads_cannot_be(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    for made in (lambda **given: make("RNN_TANH", **given), lambda **given: make("LSTM", **given), recurrent, single):
        with pytest.raises(kind) as caught:
            made(**options)
        assert str(caught.value) == message


def test_what_goes_without_heads() -> None:
    with pytest.raises(
        ValueError, match=r"^proj_size must be 0 where num_heads is .*, got proj_size=2 and num_heads=3$"
    ):
        make("LSTM", proj_size=2)
    with pytest.raises(ValueError, match=r"^Recurrent: indrnn has no gates of the state, num_heads must be 1, got 3$"):
        fastrnn.Recurrent(indrnn, INPUT, HIDDEN, num_heads=HEADS)


@pytest.mark.parametrize("warm", [False, True], ids=["first", "repeated"])
def test_attributes_that_were_changed(warm: bool) -> None:
    x = random(TIME, BATCH, INPUT)
    step = single()
    for module, message in (
        (make("GRU"), r"^GRU: input_size=4, .* proj_size=0 and num_heads={} are not the sizes of the parameters, whi"),
        (recurrent(), r"^Recurrent: num_heads={}, but the parameters are of 3$"),
        (step, r"^RecurrentCell: num_heads={}, but the parameters are of 3$"),
    ):
        given = x[0] if module is step else x
        with torch.no_grad():
            for _ in range(2 if warm else 0):
                module(given)
            for wrong in (4, None, 2):
                module.num_heads = wrong
                with pytest.raises(RuntimeError, match=message.format(wrong)):
                    module(given)
            module.num_heads = HEADS
            module(given)


@pytest.mark.parametrize("name", ["weight_hh_l0_reverse", "weight_hh_l1"])
def test_every_layer_and_direction_has_as_many(name: str) -> None:
    for make_one in (recurrent, lambda **options: make("GRU", **options)):
        module = make_one(num_layers=2, bidirectional=True)
        rows = module.weight_hh_l0[0].numel() // WIDTH * HEADS
        for shape in ((rows, HIDDEN), (2, rows // 2, HIDDEN // 2), (HIDDEN, rows // HIDDEN, 1)):
            setattr(module, name, nn.Parameter(random(*shape)))
            with pytest.raises(RuntimeError, match=rf"of layer {name[11]} must have shapes .*, got .*{shape[0]}, "):
                module(random(TIME, BATCH, INPUT))


def test_weights_of_another_number_of_heads_are_not_loaded() -> None:
    for module, alone in ((make("GRU"), make("GRU", num_heads=1)), (recurrent(), recurrent(num_heads=1))):
        rows = alone.weight_hh_l0.shape[0]
        sizes = rf"torch.Size\(\[{rows}, 6\]\) from checkpoint, .* torch.Size\(\[3, {rows // 3}, 2\]\)"
        with pytest.raises(RuntimeError, match=f"size mismatch for weight_hh_l0: copying a param with shape {sizes}"):
            module.load_state_dict(alone.state_dict())
        state = {"weight_hh_l0": module.weight_hh_l0.detach().reshape(2, -1, 3)}
        with pytest.raises(RuntimeError, match="size mismatch for weight_hh_l0"):
            module.load_state_dict(state, strict=False)


def test_gate_is_a_view_of_every_head() -> None:
    module = recurrent()
    with torch.no_grad():
        view = module.gate("weight_hh_l0", "f").fill_(7)
    assert view.shape == (HEADS, WIDTH, WIDTH)
    rows = module.weight_hh_l0.unflatten(1, (4, WIDTH))
    assert (rows[:, 1] == 7).all()
    assert not (rows[:, [0, 2, 3]] == 7).any()
    assert module.gate("bias_hh_l0", "f").shape == (HIDDEN,)


def test_repr_copies_and_pickles() -> None:
    assert repr(single(backend=None)) == "RecurrentCell(peephole_lstm, 4, 6, num_heads=3)"
    assert repr(make("GRU")) == "GRU(4, 6, num_heads=3, backend='reference')"
    x = random(TIME, BATCH, INPUT)
    for module in (make("GRU"), recurrent(bidirectional=True)):
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert_close(tensors(other(x)), tensors(module(x)))
            assert other.num_heads == HEADS
    old = recurrent(num_heads=1)
    del old.__dict__["num_heads"]  # as it was pickled before there were any
    assert_close(tensors(pickle.loads(pickle.dumps(old))(x)), tensors(old(x)))


def test_weights_on_a_gpu_are_not_brought_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which torch does for cuDNN, by the sizes of one head."""
    called: list[nn.Module] = []
    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", lambda self: called.append(self))
    make("GRU").to(torch.float32)
    assert not called
    make("GRU", num_heads=1)
    assert called


@pytest.mark.parametrize("backend", ["reference", *exhaustive("auto")])
def test_a_single_step_is_the_layers(backend: str) -> None:
    layer, step = recurrent(), single(backend=backend)
    step.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})
    x, hx = random(BATCH, INPUT), tuple(random(BATCH, HIDDEN) for _ in range(2))
    got, expected = step(x, hx), [state[0] for state in layer(x[None], tuple(state[None] for state in hx))[1]]
    assert_close(list(got), expected)
    assert_close(gradients(got, step.parameters()), gradients(expected, layer.parameters()))


def test_transforms_and_functional_calls() -> None:
    module, x = make("GRU"), random(3, TIME, BATCH, INPUT)
    parameters = {name: value.detach() for name, value in module.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(module, parameters, (x,))[0].square().sum()

    got = vmap(grad(loss), (None, 0))(parameters, x)
    for index in range(3):
        expected = torch.autograd.grad(module(x[index])[0].square().sum(), list(module.parameters()))
        assert_close([got[name][index] for name in parameters], list(expected))
    output, hn = fastrnn.functional.gru(x[0], None, module.all_weights)
    assert_close([output, hn], tensors(module(x[0])))


@pytest.mark.parametrize("name", ["GRU", *exhaustive("any cell")])
def test_compiled_and_exported(name: str, fresh_compiler: None) -> None:
    module = make("GRU") if name == "GRU" else recurrent()
    x = random(TIME, BATCH, INPUT)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    parameters = list(module.parameters())
    assert_close(gradients(compiled(x), parameters), gradients(module(x), parameters))
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("T")},))
    other = random(TIME + 2, BATCH, INPUT)
    assert_close(tensors(program.module()(other)), tensors(module(other)))
    table = torch.export.default_decompositions() | fastrnn.export.decompositions(unroll=True)
    with torch.no_grad():
        fixed = torch.export.export(module.eval(), (x,)).run_decompositions(table)
    assert_close(tensors(fixed.module()(x)), tensors(module(x)))


def test_autocast() -> None:
    module, x = make("LSTM", dtype=torch.float32), torch.randn(TIME, BATCH, INPUT)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = module(x)
    assert output.dtype == torch.bfloat16
    assert_close(output.float(), module(x)[0], 0.02)


@pytest.mark.parametrize("cell", CELLS)
def test_operations_are_those_of_the_blocks(cell: str) -> None:
    name, options = {"rnn_tanh": ("RNN_TANH", {}), "rnn_relu": ("RNN_RELU", {})}.get(cell, (cell.upper(), {}))
    module, counted = make(name, **options), []
    with torch.no_grad():
        for one in (module, fastrnn.heads.dense(module)):
            with FlopCounterMode(display=False) as counter:
                one(random(TIME, BATCH, INPUT))
            rows = one.weight_ih_l0.shape[0]
            counted.append(counter.get_total_flops() - 2 * TIME * BATCH * rows * INPUT)
    assert counted[1] == HEADS * counted[0] > 0


def test_explain_tells_of_heads() -> None:
    found = fastrnn.explain(make("GRU"), random(TIME, BATCH, INPUT))
    assert found.reasons["aten"] == "cannot: torch's kernels have no heads"


def test_a_probe_sees_what_it_sees_of_dense_weights() -> None:
    module, records = make("LSTM", bidirectional=True), []
    x = random(TIME, BATCH, INPUT)
    for one in (module, fastrnn.heads.dense(module)):
        with fastrnn.probe(one) as record:
            one(x, lengths=LENGTHS)[0].square().sum().backward()
        records.append(record.summary())
    assert records[0] == records[1]
