"""accelerate and to_torch: all that a layer and a model keep; checkpoints, training and graphs across a conversion."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import fastrnn
from fastrnn.convert import Change
from tests.layers.test_module_utilities import CHANGES, SEED, Doubled, name_of, recurrent_weight
from tests.torch_parity import (
    BATCH,
    CELLS,
    HIDDEN,
    INPUT,
    MODULES,
    TIME,
    assert_close,
    assert_same_results,
    classes,
    initial_state,
    layers,
    modules,
    random,
    tensors,
)


def torchs(kind: str, **options: Any) -> nn.Module:
    """torch's module of a kind, the same weights each time."""
    torch.manual_seed(SEED)
    _, theirs, kind_options = classes(kind)
    return theirs(INPUT, HIDDEN, dtype=torch.float64, **kind_options, **options)


def arguments(kind: str, module: nn.Module) -> tuple[Tensor, Any]:
    """x (T, B, I) or for cells (B, I), and a nonzero hx."""
    rows = [BATCH] if kind in CELLS else [TIME, BATCH]
    return random(*rows, INPUT, grad=True), initial_state(kind, module)


def silently(convert: Callable[..., Any], model: nn.Module) -> list[Change]:
    changes: list[Change] = []
    assert convert(model, report=changes.append) is model
    return changes


def is_fastrnns(module: nn.Module, kind: str) -> bool:
    return isinstance(module, classes(kind)[0])


def is_torchs(module: nn.Module, kind: str) -> bool:
    return isinstance(module, classes(kind)[1])


@modules
def test_a_layer_becomes_fastrnns_and_torchs_again(kind: str, usual_way: list[str]) -> None:
    module, expected = torchs(kind).eval(), torchs(kind).eval()
    ours, theirs, _ = classes(kind)
    before, parameters = dict(vars(module)), list(module.parameters())
    (change,) = silently(fastrnn.accelerate, module)
    assert (type(module), change.names, change.before, change.after, change.note) == (ours, ("",), theirs, ours, "")
    assert str(change) == f"the model itself: torch.nn.{theirs.__name__} -> fastrnn.{ours.__name__}"
    assert vars(module) == before
    assert all(a is b for a, b in zip(module.parameters(), parameters, strict=True))
    assert str(module) == str(expected)
    given = arguments(kind, module)
    assert_same_results(module, expected, *given)
    assert usual_way

    usual_way.clear()
    (change,) = silently(fastrnn.to_torch, module)
    assert (type(module), change.before, change.after, change.note) == (theirs, ours, theirs, "")
    assert vars(module) == before
    assert_same_results(module, expected, *given)
    assert not usual_way


@pytest.mark.parametrize(
    "options",
    [
        {"num_layers": 2, "bidirectional": True, "batch_first": True},
        {"num_layers": 2, "bias": False, "dropout": 0.4},
        {"num_layers": 2, "proj_size": 2, "bidirectional": True},
    ],
    ids=lambda options: "-".join(options),
)
@layers
def test_options_are_kept(kind: str, options: dict[str, Any]) -> None:
    if "proj_size" in options and kind != "LSTM":
        pytest.skip("only LSTM has projections")
    module, expected = fastrnn.accelerate(torchs(kind, **options)), torchs(kind, **options)
    x = random(TIME, BATCH, INPUT, grad=True)
    for model in (module, fastrnn.to_torch(copy.deepcopy(module))):
        results = []
        for each in (model, expected):
            torch.manual_seed(SEED)  # of dropout
            results.append(tensors(each(x)))
        assert_close(*results)


class Model(nn.Module):
    """Recurrent layers in every kind of container, one of them twice, parameters of two of them tied."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(INPUT, INPUT), nn.ModuleDict({"rnn": nn.RNN(INPUT, HIDDEN)}))
        self.stack = nn.ModuleList([nn.LSTM(INPUT, HIDDEN), nn.GRU(INPUT, HIDDEN)])
        self.cell = nn.LSTMCell(INPUT, HIDDEN)
        self.again = self.stack[0]
        self.tied = nn.LSTM(INPUT, HIDDEN)
        self.tied.weight_hh_l0 = self.stack[0].weight_hh_l0
        self.unseen = [nn.GRU(INPUT, HIDDEN)]

    def forward(self, x: Tensor) -> list[Tensor]:
        """x (T, B, I)"""
        x = self.encoder[0](x)
        outputs = [rnn(x)[0] for rnn in (self.encoder[1]["rnn"], *self.stack, self.again, self.tied, *self.unseen)]
        return [*outputs, self.cell(x[0])[0]]


def test_every_layer_of_a_model_once_whatever_its_names() -> None:
    model = Model().double()
    model.unseen[0].double()
    expected, before = copy.deepcopy(model), list(model.named_parameters())
    changes = silently(fastrnn.accelerate, model)
    assert [str(change) for change in changes] == [
        "encoder.1.rnn: torch.nn.RNN -> fastrnn.RNN",
        "stack.0, again: torch.nn.LSTM -> fastrnn.LSTM",
        "stack.1: torch.nn.GRU -> fastrnn.GRU",
        "cell: torch.nn.LSTMCell -> fastrnn.LSTMCell",
        "tied: torch.nn.LSTM -> fastrnn.LSTM",
    ]
    assert all(type(model.get_submodule(name)) is change.after for change in changes for name in change.names)
    assert model.again is model.stack[0]
    assert model.tied.weight_hh_l0 is model.stack[0].weight_hh_l0
    assert type(model.unseen[0]) is nn.GRU
    for (name, parameter), (name_before, parameter_before) in zip(model.named_parameters(), before, strict=True):
        assert (name, parameter is parameter_before) == (name_before, True)
    assert_same_results(model, expected, random(TIME, BATCH, INPUT, grad=True))
    assert len(silently(fastrnn.to_torch, model)) == 5
    assert str(model) == str(expected)


@modules
@pytest.mark.parametrize("change", CHANGES, ids=name_of)
def test_parametrized_pruned_and_normalised_layers(kind: str, change: Callable[[nn.Module, str], Any]) -> None:
    pair = []
    for _ in range(2):
        module = torchs(kind).eval()
        change(module, recurrent_weight(kind))
        pair.append(module)
    module, expected = pair
    names, parameters = list(module.state_dict()), list(module.parameters())
    given = arguments(kind, module)
    for convert, is_right in ((fastrnn.accelerate, is_fastrnns), (fastrnn.to_torch, is_torchs)):
        (report,) = silently(convert, module)
        assert is_right(module, kind)
        assert report.before.__name__ == report.after.__name__ == MODULES[kind][0]  # type: ignore[union-attr]
        assert str(module) == str(expected)
        assert list(module.state_dict()) == names
        assert all(a is b for a, b in zip(module.parameters(), parameters, strict=True))
        with torch.no_grad():  # what is computed from these has to be computed anew
            for parameter in [*parameters, *expected.parameters()]:
                parameter.mul_(0.75)
        assert_same_results(module, expected, *given)


@modules
def test_parametrizations_go_on_to_be_added_cached_and_removed(kind: str) -> None:
    module, expected = torchs(kind), torchs(kind)
    name = recurrent_weight(kind)
    for each in (module, expected):
        parametrize.register_parametrization(each, name, Doubled())
    fastrnn.accelerate(module)
    given = arguments(kind, module)
    other = name.replace("weight_hh", "bias_ih")
    for each in (module, expected):
        parametrize.register_parametrization(each, other, Doubled())
    with parametrize.cached():
        assert_same_results(module, expected, *given)
    for each in (module, expected):
        parametrize.remove_parametrizations(each, name)
        parametrize.remove_parametrizations(each, other)
    assert type(module) is classes(kind)[0]
    assert_same_results(module, expected, *given)


@modules
def test_a_copy_of_a_parametrized_layer_is_not_converted_with_it(kind: str) -> None:
    module = parametrizations.weight_norm(torchs(kind), recurrent_weight(kind))
    other = copy.deepcopy(module)
    assert type(other) is type(module)
    fastrnn.accelerate(module)
    assert is_torchs(other, kind)
    assert is_fastrnns(copy.deepcopy(module), kind)
    assert_same_results(copy.deepcopy(module), other, *arguments(kind, module))


@modules
def test_all_kinds_of_hooks_are_kept(kind: str) -> None:
    module, seen = torchs(kind), []

    def hook(name: str) -> Callable[..., None]:
        return lambda *_: seen.append(name)

    module.register_forward_pre_hook(hook("forward pre"))
    module.register_forward_hook(hook("forward"))
    module.register_full_backward_pre_hook(hook("backward pre"))
    module.register_full_backward_hook(hook("backward"))
    module.register_state_dict_pre_hook(hook("state_dict pre"))
    module.register_state_dict_post_hook(hook("state_dict"))
    module.register_load_state_dict_pre_hook(hook("load pre"))
    module.register_load_state_dict_post_hook(hook("load"))
    next(module.parameters()).register_hook(hook("gradient"))
    given, runs = arguments(kind, module), []
    for convert in (lambda module: None, fastrnn.accelerate, fastrnn.to_torch):
        convert(module)
        seen.clear()
        tensors(module(*given))[0].sum().backward()
        module.load_state_dict(module.state_dict())
        runs.append(sorted(seen))
    assert runs[0] == runs[1] == runs[2]
    assert len(runs[0]) == 9


@modules
def test_attributes_buffers_children_and_flags_are_kept(kind: str) -> None:
    module = torchs(kind).eval()
    module.note, module.child = "mine", nn.Linear(2, 2)
    module.register_buffer("count", torch.ones(()))
    weight = getattr(module, recurrent_weight(kind)).requires_grad_(False)
    before = dict(vars(module))
    for convert in (fastrnn.accelerate, fastrnn.to_torch):
        convert(module)
        assert vars(module) == before
        assert (module.note, module.training, weight.requires_grad) == ("mine", False, False)


@modules
@pytest.mark.parametrize("options", [{"device": "meta"}, {"dtype": torch.bfloat16}, {"dtype": torch.float16}], ids=str)
def test_other_devices_and_dtypes(kind: str, options: dict[str, Any]) -> None:
    module = fastrnn.accelerate(classes(kind)[1](INPUT, HIDDEN, **MODULES[kind][1], **options))
    x = torch.zeros(*[BATCH] if kind in CELLS else [TIME, BATCH], INPUT, **options)
    output = tensors(module(x))[0]
    assert (output.device, output.dtype) == (x.device, x.dtype)


@modules
@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "torch.save"])
def test_converted_layers_are_copied_and_saved(kind: str, copied: str) -> None:
    def copy_of(module: nn.Module) -> nn.Module:
        if copied == "deepcopy":
            return copy.deepcopy(module)
        if copied == "pickle":
            return pickle.loads(pickle.dumps(module))  # type: ignore[no-any-return]
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        return torch.load(file, weights_only=False)  # type: ignore[no-any-return]

    module, given = torchs(kind), arguments(kind, torchs(kind))
    for convert, is_right in ((fastrnn.accelerate, is_fastrnns), (fastrnn.to_torch, is_torchs)):
        module = copy_of(convert(module))
        assert is_right(module, kind)
        assert_same_results(module, torchs(kind), *given)


@modules
def test_calls_that_are_remembered_see_what_happened_between(kind: str) -> None:
    """Without gradients, a module's call that is like the one before skips most of the way."""
    module, given = fastrnn.accelerate(torchs(kind)), arguments(kind, torchs(kind))
    with torch.no_grad():
        for _ in range(3):
            module(*given)
        fastrnn.to_torch(module)
        module.load_state_dict({name: 2 * value for name, value in module.state_dict().items()})
        setattr(module, recurrent_weight(kind), nn.Parameter(-getattr(module, recurrent_weight(kind))))
        expected = module(*given)
        assert_close(tensors(fastrnn.accelerate(module)(*given)), tensors(expected))


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, INPUT)
        self.rnn = nn.LSTM(INPUT, HIDDEN, num_layers=2, bidirectional=True)
        self.cell = nn.GRUCell(2 * HIDDEN, HIDDEN)
        self.out = nn.Linear(HIDDEN, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        """(T, B) -> (T, B, 3)"""
        outputs, h = [], None
        for x in self.rnn(self.embedding(tokens))[0]:
            h = self.cell(x, h)
            outputs.append(h)
        return self.out(torch.stack(outputs))


def tagger(normed: bool) -> nn.Module:
    torch.manual_seed(SEED)
    model = Tagger().double()
    if normed:
        parametrizations.weight_norm(model.rnn, "weight_hh_l1")
        parametrizations.orthogonal(model.cell, "weight_hh")
    return model


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(7, (TIME, BATCH), generator=generator)
        optimizer.zero_grad()
        model(tokens).log_softmax(-1)[..., 0].mean().neg().backward()
        optimizer.step()


@pytest.mark.parametrize("normed", [False, True])
def test_an_optimizer_goes_on_after_conversion(normed: bool) -> None:
    def trained(between: Callable[[nn.Module, torch.optim.Optimizer], Any]) -> dict[str, Tensor]:
        model = tagger(normed)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        train(model, optimizer, range(2))
        between(model, optimizer)
        train(model, optimizer, range(2, 4))
        return model.state_dict()

    expected = trained(lambda model, optimizer: None)
    forgetful = trained(lambda model, optimizer: optimizer.state.clear())
    converted = trained(lambda model, optimizer: fastrnn.accelerate(model))
    back = trained(lambda model, optimizer: fastrnn.to_torch(fastrnn.accelerate(model)))
    assert expected.keys() == converted.keys()
    tolerance = 1e-7  # Adam divides by gradients near zero, which enlarges rounding
    assert_close([*converted.values()], [*expected.values()], tolerance)
    assert_close([*back.values()], [*expected.values()], tolerance)
    with pytest.raises(AssertionError):
        assert_close([*forgetful.values()], [*expected.values()], tolerance)


@pytest.mark.parametrize("normed", [False, True])
def test_checkpoints_load_both_ways(normed: bool) -> None:
    tokens = torch.randint(7, (TIME, BATCH))
    accelerated, plain = fastrnn.accelerate(tagger(normed)), tagger(normed)
    for source, target in ((accelerated, plain), (plain, accelerated)):
        optimizers = [torch.optim.Adam(model.parameters(), lr=0.05) for model in (source, target)]
        train(source, optimizers[0], range(2))
        file = io.BytesIO()
        torch.save({"model": source.state_dict(), "optimizer": optimizers[0].state_dict()}, file)
        file.seek(0)
        checkpoint = torch.load(file, weights_only=True)
        target.load_state_dict(checkpoint["model"], strict=True)
        optimizers[1].load_state_dict(checkpoint["optimizer"])
        for model, optimizer in zip((source, target), optimizers, strict=True):
            train(model, optimizer, range(2, 4))
        assert_close(target(tokens), source(tokens), tolerance=1e-7)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_after_conversion_in_one_graph() -> None:
    model, tokens = fastrnn.accelerate(tagger(False)), torch.randint(7, (TIME, BATCH))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert_close(compiled(tokens), tagger(False)(tokens))


@pytest.mark.usefixtures("fresh_compiler")
def test_a_graph_from_before_conversion_that_is_out_of_sight_is_not_used_again(usual_way: list[str]) -> None:
    model = nn.Sequential(nn.GRU(INPUT, HIDDEN, dtype=torch.float64))
    compiled, x = torch.compile(model, backend="eager"), random(TIME, BATCH, INPUT)
    expected = compiled(x)[0]
    fastrnn.accelerate(model)
    assert_close(compiled(x)[0], expected)
    assert usual_way
