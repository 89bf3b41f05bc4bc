"""`fastrnn.probe`: its figures against an unrolled loop in plain torch, and that it leaves everything as it was."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import fastrnn
from fastrnn.cells import CELLS
from fastrnn.module import watched
from fastrnn.probe_figures import shown
from tests.cells.zoo import ZOO
from tests.tools.unrolled import (
    SIGMOID,
    TANH,
    Model,
    Unrolled,
    assert_figures,
    assert_near,
    at_every_step,
    at_the_last_step,
)
from tests.torch_parity import (
    BATCH,
    HIDDEN,
    INPUT,
    TIME,
    assert_close,
    cells,
    clone,
    gradients,
    initial_state,
    layers,
    pair,
    random,
    tensors,
)

LENGTHS = torch.tensor([4, 3, 0])
RESETS = torch.tensor([[0, 1, 0, 0, 1], [0, 0, 0, 1, 1], [0, 0, 1, 0, 0]]).bool().T
ARGUMENTS: dict[str, dict[str, Tensor]] = {"plain": {}, "both": {"lengths": LENGTHS, "resets": RESETS}}


@layers
@pytest.mark.parametrize("given", ARGUMENTS.values(), ids=ARGUMENTS)
@pytest.mark.parametrize("loss", [at_every_step, at_the_last_step])
def test_figures_are_those_of_an_unrolled_loop(kind: str, given: dict[str, Tensor], loss: Any) -> None:
    module, _ = pair(kind, num_layers=2, bidirectional=True)
    x, hx = random(TIME, BATCH, INPUT), initial_state(kind, module)
    with fastrnn.probe(module, sigmoid=SIGMOID, tanh=TANH) as record:
        loss(module(x, hx, **given)[0]).backward()
    expected = Unrolled(kind, module, x, hx, **given)
    loss(expected.output).backward()
    (figures,) = record.values()
    assert figures.rows == ["layer 0", "layer 0 reverse", "layer 1", "layer 1 reverse"]
    assert_figures(figures, expected)


def test_figures_of_a_projected_layer() -> None:
    module, _ = pair("LSTM", proj_size=2, bidirectional=True)
    x, hx = random(TIME, BATCH, INPUT), initial_state("LSTM", module)
    with fastrnn.probe(module, sigmoid=SIGMOID, tanh=TANH) as record:
        at_every_step(module(x, hx, lengths=LENGTHS)[0]).backward()
    expected = Unrolled("LSTM", module, x, hx, lengths=LENGTHS)
    at_every_step(expected.output).backward()
    assert_figures(record["LSTM"], expected)


@layers
def test_the_states_of_all_steps_and_the_last_may_enter_the_loss(kind: str) -> None:
    module, _ = pair(kind, bidirectional=True)
    x, hx = random(TIME, BATCH, INPUT), initial_state(kind, module)
    with fastrnn.probe(module, sigmoid=SIGMOID, tanh=TANH) as record:
        _, finals, states = module(x, hx, return_states=True)
        sum(at_every_step(tensor) for tensor in (*tensors(finals), *tensors(states))).backward()
    expected = Unrolled(kind, module, x, hx)
    for number in range(len(tensors(states))):
        rows = [torch.stack([after[number] for after in row]) for row in expected.arriving]
        history, final = torch.stack(rows), torch.stack([rows[0][-1], rows[1][0]])
        (at_every_step(history) + at_every_step(final)).backward(retain_graph=True)
    assert_figures(record[type(module).__name__], expected)


@cells
def test_a_cells_calls_are_the_steps_of_a_layer(kind: str) -> None:
    cell, _ = pair(kind)
    layer, _ = pair(kind.removesuffix("_CELL"))
    layer.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
    x, hx = random(TIME, BATCH, INPUT), initial_state(kind, cell)
    with fastrnn.probe(nn.ModuleDict({"cell": cell, "layer": layer})) as record:
        state = hx
        for step in x:
            state = cell(step, state)
        tensors(state)[0].square().sum().backward()
        batched = tuple(s[None] for s in hx) if isinstance(hx, tuple) else hx[None]
        at_the_last_step(layer(x, batched)[0]).backward()
    got, expected = record["cell"], record["layer"]
    for name in ("gate_means", "saturation", "state_norms", "gradient_norms"):
        assert_close(list(getattr(got, name).values()), list(getattr(expected, name).values()))
    assert_near(got.gradient_gains, expected.gradient_gains)
    assert len(record.calls("cell")) == TIME


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_results_and_gradients_are_the_same(backend: str) -> None:
    model, x = Model(), random(TIME, BATCH, INPUT)
    results = []
    with fastrnn.use_backend(backend):
        for probed in (False, True):
            torch.manual_seed(1)
            if probed:
                with fastrnn.probe(model):
                    output = model(x)
                    found = gradients(output, [p for name, p in model.named_parameters() if "unused" not in name])
            else:
                output = model(x)
                found = gradients(output, [p for name, p in model.named_parameters() if "unused" not in name])
            results.append([output, *found])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_layers_of_a_model_by_name() -> None:
    model = Model()
    with fastrnn.probe(model) as record:
        at_the_last_step(model(random(TIME, BATCH, INPUT))).backward()
    assert list(record) == ["encoder.lstm", "decoder"]
    assert record["encoder.lstm"].gate_means["f"].shape == (2, TIME)
    assert record["decoder"].gradient_norms["h"].shape == (1, TIME)
    assert "unused: not called" in record.summary()
    with pytest.raises(KeyError, match="'unused' has not been called while it was probed"):
        record["unused"]
    with pytest.raises(KeyError, match="'nothing' is no recurrent layer of the probed module"):
        record["nothing"]


def test_packed_and_batch_first_input() -> None:
    module, _ = pair("GRU", batch_first=True)
    x, lengths = random(BATCH, TIME, INPUT), torch.tensor([2, 5, 3])
    with fastrnn.probe(module) as record:
        at_every_step(module(x, lengths=lengths)[0]).backward()
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        nn.utils.rnn.pad_packed_sequence(module(packed)[0], batch_first=True)[0].sum().backward()
    first, second = record.calls("GRU")
    assert_close(list(second.gate_means.values()), list(first.gate_means.values()))
    assert first.sequences.tolist() == second.sequences.tolist() == [3, 3, 2, 1, 1]


def test_calls_are_kept_apart_and_the_last_one_counts() -> None:
    module, _ = pair("LSTM")
    with fastrnn.probe(module) as record:
        at_every_step(module(random(TIME, BATCH, INPUT))[0]).backward()
        module(random(2, BATCH, INPUT))
    assert [call.gate_means["i"].shape for call in record.calls("LSTM")] == [(1, TIME), (1, 2)]
    assert [call.gradient_norms is None for call in record.calls("LSTM")] == [False, True]
    assert record["LSTM"].sequences.tolist() == [BATCH] * 2
    assert "no backward" in record.summary()


def test_the_last_backward_counts() -> None:
    module, _ = pair("GRU")
    with fastrnn.probe(module) as record:
        output = module(random(TIME, BATCH, INPUT))[0]
        at_every_step(output).backward(retain_graph=True)
        first = record["GRU"].gradient_norms["h"]
        (3 * at_every_step(output)).backward()
    assert_near(record["GRU"].gradient_norms["h"], 3 * first)


def test_checkpointed_layers() -> None:
    module, _ = pair("GRU")
    x = random(TIME, BATCH, INPUT, grad=True)
    with fastrnn.probe(module) as record:
        at_every_step(module(x)[0]).backward()
        at_every_step(checkpoint(lambda x: module(x)[0], x, use_reentrant=False)).backward()
    once, again = record.calls("GRU")
    assert_near(again.gradient_norms["h"], once.gradient_norms["h"])
    assert_near(again.gate_means["z"], once.gate_means["z"])


@pytest.mark.parametrize("no_gradients", [torch.no_grad, torch.inference_mode])
def test_without_gradients(no_gradients: Any) -> None:
    module, _ = pair("LSTM")
    with fastrnn.probe(module.eval()) as record, no_gradients():
        module(random(TIME, BATCH, INPUT))
    assert record["LSTM"].gradient_norms is None
    assert record["LSTM"].gradient_gains is None
    assert record["LSTM"].gate_means["i"].isfinite().all()


def test_remembered_calls_are_recorded() -> None:
    model = nn.ModuleList([fastrnn.GRU(INPUT, HIDDEN), fastrnn.GRUCell(INPUT, HIDDEN)])
    x = torch.randn(TIME, BATCH, INPUT)
    with torch.no_grad():
        for _ in range(3):
            before = model[0](x), model[1](x[0])
        with fastrnn.probe(model) as record:
            within = model[0](x), model[1](x[0])
        after = model[0](x), model[1](x[0])
    assert [len(record.calls(name)) for name in "01"] == [1, 1]
    assert_close(within, before, 1e-6)
    assert_close(after, before, 0)


def test_a_gradient_too_small_to_be_squared_is_not_lost() -> None:
    module = fastrnn.RNN(INPUT, HIDDEN)
    with fastrnn.probe(module) as record:
        (1e-30 * module(torch.randn(TIME, BATCH, INPUT))[0]).sum().backward()
    assert (record["RNN"].gradient_norms["h"] > 1e-31).all()


@pytest.mark.parametrize("sizes", [(0, BATCH), (TIME, 0)])
def test_no_steps_and_no_sequences(sizes: tuple[int, int]) -> None:
    module, _ = pair("LSTM", num_layers=2)
    with fastrnn.probe(module) as record:
        module(random(*sizes, INPUT))[0].sum().backward()
    figures = record["LSTM"]
    assert figures.gate_means["f"].shape == figures.gradient_gains.shape == (2, sizes[0])
    assert figures.gate_means["f"].isnan().all()
    assert figures.gradient_norms["h"].isnan().all()
    assert record.summary()


def test_autocast_is_seen_and_not_obeyed() -> None:
    """Figures are computed in float32 from what autocast gave, whatever it would do to their own products."""
    module = fastrnn.GRU(INPUT, HIDDEN)
    x = torch.randn(TIME, BATCH, INPUT).bfloat16().float()
    with fastrnn.probe(module) as record:
        with torch.autocast("cpu", torch.bfloat16):
            output = module(x)[0]
            output.float().sum().backward()
        wide = copy.deepcopy(module).to(torch.bfloat16)
    assert output.dtype == torch.bfloat16
    with fastrnn.probe(wide) as expected:
        wide(x.bfloat16())[0].float().sum().backward()
    for name in ("gate_means", "state_norms", "gradient_norms"):
        assert_close(list(getattr(record["GRU"], name).values()), list(getattr(expected["GRU"], name).values()), 0)


def test_torchs_kernels_make_room() -> None:
    module, _ = pair("LSTM", backend="aten")
    x = random(TIME, BATCH, INPUT)
    expected = module(x)[0]
    with fastrnn.probe(module) as record:
        assert_close(module(x)[0], expected)
    assert list(record) == ["LSTM"]


def state_of(module: nn.Module) -> Any:
    return {name: clone(value) if isinstance(value, Tensor) else repr(value) for name, value in vars(module).items()}


def test_nothing_is_left_behind() -> None:
    module, _ = pair("GRU", num_layers=2)
    x, before = random(TIME, BATCH, INPUT), state_of(module)
    with fastrnn.probe(module) as record:
        within = copy.deepcopy(module), pickle.loads(pickle.dumps(module))
        for other in within:
            at_every_step(other(x)[0]).backward()
        assert len(record) == 0
        output = module(x)[0]
        assert state_of(module) == before
    assert not watched
    at_every_step(output).backward()
    assert record["GRU"].gradient_norms is None
    module(x)
    assert len(record.calls("GRU")) == 1


def test_an_exception_ends_it_too() -> None:
    module, _ = pair("GRU")
    with fastrnn.probe(module) as record:
        with pytest.raises(RuntimeError):
            module(random(TIME, BATCH, INPUT + 1))
        assert record.calls("GRU") == []
    with pytest.raises(ZeroDivisionError), fastrnn.probe(module):
        raise ZeroDivisionError
    assert not watched


def test_what_cannot_be_probed() -> None:
    with (
        pytest.raises(TypeError, match=r"probe: module must be a torch.nn.Module, got function"),
        fastrnn.probe(random),
    ):
        pass
    model = nn.Sequential(nn.Linear(3, 3), nn.GRU(3, 3))
    hint = "Sequential holds none of fastrnn's recurrent layers; fastrnn.accelerate makes torch.nn's so: 1"
    with pytest.raises(ValueError, match=hint), fastrnn.probe(model):
        pass
    module = fastrnn.GRU(3, 3)
    for wrong in ({"sigmoid": (0.9, 0.1)}, {"sigmoid": (-1, 0.5)}, {"tanh": 1.5}):
        with pytest.raises(ValueError, match=f"probe: {next(iter(wrong))} must"), fastrnn.probe(module, **wrong):
            pass
    with fastrnn.probe(module):
        with pytest.raises(RuntimeError, match="'0' is being probed already"), fastrnn.probe(nn.Sequential(module)):
            pass
        assert module in watched


def test_torchs_layers_beside_fastrnns_are_named() -> None:
    model = nn.Sequential(fastrnn.GRU(3, 3), nn.LSTM(3, 3))
    with fastrnn.probe(model) as record:
        model[1](model[0](torch.zeros(2, 1, 3))[0])
    assert record.left_out == {"1": "torch.nn.LSTM"}
    assert "1: not recorded, a torch.nn.LSTM; fastrnn.accelerate(model) makes torch.nn's layers" in record.summary()


def test_what_it_cannot_look_into() -> None:
    module, _ = pair("GRU")
    x = random(TIME, BATCH, INPUT)
    with fastrnn.probe(module):
        with pytest.raises(RuntimeError, match=r"cannot look into torch.func's transforms"):
            torch.func.vmap(lambda x: module(x)[0])(x[None])
        with pytest.raises(RuntimeError, match="cannot look into a backward of many gradients at once"):
            torch.autograd.functional.jacobian(lambda x: module(x)[0], x, vectorize=True)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_models_run_eagerly_meanwhile() -> None:
    from torch._dynamo.testing import CompileCounter

    module, _ = pair("GRU")
    x = random(TIME, BATCH, INPUT)
    counter = CompileCounter()
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    expected = compiled(x)[0]
    with fastrnn.probe(module) as record:
        assert_close(compiled(x)[0], expected)
    assert len(record.calls("GRU")) == 1
    assert_close(compiled(x)[0], expected)
    assert len(record.calls("GRU")) == counter.frame_count == 1


def test_gates_are_shown_in_their_order_and_states_last() -> None:
    cells = CELLS | {name: ZOO[name] for name in ("mgu", "star", "indrnn", "slstm")}
    assert {name: list(shown(cell)) for name, cell in cells.items()} == {
        "rnn_tanh": ["h"],
        "rnn_relu": ["h"],
        "lstm": ["i", "f", "g", "o"],
        "gru": ["r", "z", "n"],
        "mgu": ["f", "n"],
        "star": ["k", "z", "h"],
        "indrnn": ["h"],
        "slstm": ["z", "o"],
    }
