"""What is otherwise for one call and then as before: what both compute meanwhile, or must refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import fastrnn
from tests.torch.state_machine import calls
from tests.torch.state_machine.calls import Form
from tests.torch.state_machine.changes import apply, names, own, plain
from tests.torch.state_machine.twins import Twins, Values
from tests.torch_parity import tensors

Visit = Callable[[Twins, Form, int], None]

VISITS: dict[str, Visit] = {}
APPLIES: dict[str, Callable[[Twins], bool]] = {}


def visit(applies: Callable[[Twins], bool] = lambda twins: True) -> Callable[[Visit], Visit]:
    """Enters a visit in the table, by the function's name."""

    def entered(function: Visit) -> Visit:
        name = function.__name__.strip("_").replace("_", " ")
        VISITS[name], APPLIES[name] = function, applies
        return function

    return entered


def simple(twins: Twins, form: Form) -> Form:
    """The form as far as torch.nn's module takes it, without modes."""
    shown = form.shown if form.shown == "packed" else "padded"
    return calls.possible(twins, replace(form, shown=shown, backward="once", context="none", where="here"))


@contextmanager
def attribute(twins: Twins, name: str, value: Callable[[Any], Any]) -> Iterator[None]:
    """An attribute of both is another."""
    before = getattr(twins.theirs, name)
    try:
        for module in twins.modules:
            setattr(module, name, value(before))
        yield
    finally:
        for module in twins.modules:
            setattr(module, name, before)


WRONG: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    ("bidirectional", lambda value: not value),
    ("num_layers", lambda value: value + 1),
    ("bias", lambda value: not value),
    ("input_size", lambda value: value + 1),
)


def refused(twins: Twins, form: Form, seed: int, name: str, value: Callable[[Any], Any]) -> None:
    """fastrnn raises where an attribute is another, and torch.nn, where it looks, which oneDNN's LSTM does not, too."""
    form = simple(twins, replace(form, hx="none", shown="padded"))
    mine, theirs = (calls.given(twins, form, seed, own) for own in (True, False))
    with attribute(twins, name, value):
        got = calls.outcome(twins, form, [mine], seed, calls.ours_of)
        assert got.error is not None, name
        if twins.kind.name != "LSTM" or twins.dtype == torch.float64:
            expected = calls.outcome(twins, form, [theirs], seed, calls.oracle_of)
            assert type(got.error) is type(expected.error), f"{got.error!r} in place of {expected.error!r}"


@visit(lambda twins: not twins.kind.cell)
def _wrong_attribute(twins: Twins, form: Form, seed: int) -> None:
    refused(twins, form, seed, *Values(seed).one_of(WRONG))


@visit(lambda twins: twins.kind.cell)
def _wrong_size_of_a_cell(twins: Twins, form: Form, seed: int) -> None:
    refused(twins, form, seed, "hidden_size", lambda value: value + 1)


@visit(plain)
def _freed_parameter(twins: Twins, form: Form, seed: int) -> None:
    """torch.nn may end the process: fastrnn alone is asked."""
    parameter = Values(seed).one_of(list(twins.ours.parameters()))
    storage, before = parameter.untyped_storage(), parameter.detach().clone()
    if not storage.resizable():  # somebody else's memory is not given back
        return
    size = storage.nbytes()
    mine = calls.given(twins, form := simple(twins, form), seed, True)
    storage.resize_(0)
    try:
        error = calls.outcome(twins, form, [mine], seed, calls.ours_of).error
    finally:
        storage.resize_(size)
        parameter.data.copy_(before)
    assert isinstance(error, RuntimeError), error


@visit()
def _freed_argument(twins: Twins, form: Form, seed: int) -> None:
    form = simple(twins, replace(form, hx=form.hx if form.hx != "returned" else "plain", shown="padded"))
    mine = calls.given(twins, form, seed, True)
    leaf = Values(seed).one_of(mine.leaves)
    with torch.inference_mode(leaf.is_inference()):
        leaf.untyped_storage().resize_(0)
    error = calls.outcome(twins, form, [mine], seed, calls.ours_of).error
    assert isinstance(error, RuntimeError), error


@visit()
def _hooks(twins: Twins, form: Form, seed: int) -> None:
    """That change what comes in and goes out."""

    def scaled(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value * 3
        return type(value)(map(scaled, value)) if type(value) in (tuple, list) else value

    handles = [
        handle
        for module in twins.modules
        for handle in (
            module.register_forward_pre_hook(lambda _, inputs: (scaled(inputs[0]), *inputs[1:])),
            module.register_forward_hook(lambda _, inputs, results: scaled(results)),
        )
    ]
    try:
        calls.check(twins, simple(twins, form), seed)
    finally:
        for handle in handles:
            handle.remove()


@visit(plain)
def _functional_call(twins: Twins, form: Form, seed: int) -> None:
    """With other parameters, which gradients are for."""
    form = calls.savable(simple(twins, form))
    outcomes = []
    for module in twins.modules:
        values, arguments = Values(seed), calls.given(twins, form, seed, module is twins.ours)
        chosen = names(module)[:: 1 + seed % 2]
        parameters = {name: values.like(getattr(module, name)).requires_grad_() for name in chosen}
        given = [arguments.x] if form.hx == "none" else [arguments.x, arguments.hx]
        torch.manual_seed(seed)  # of dropout
        with torch.inference_mode() if form.mode == "inference" else torch.set_grad_enabled(form.mode == "grad"):
            results = tensors(torch.func.functional_call(module, parameters, tuple(given)))
        wanted = list(parameters.values()) if form.mode == "grad" else []
        outcomes.append((results, calls.gradients_of(form, results, wanted)))
    (ours, mine), (theirs, others) = outcomes
    tolerance = calls.TOLERANCE[twins.dtype]
    calls.compare(ours, theirs, tolerance)
    calls.compare(mine, others, tolerance)


@visit(own)
def _parameters_of_inference_mode(twins: Twins, form: Form, seed: int) -> None:
    """Whose changes nothing counts."""
    before = [dict(module.named_parameters(recurse=False)) for module in twins.modules]
    try:
        with torch.inference_mode():
            for module in twins.modules:
                values = Values(seed)
                for name in names(module):
                    setattr(module, name, nn.Parameter(values.like(getattr(module, name)), requires_grad=False))
        form = replace(simple(twins, form), mode="inference", x_grad=False, hx_grad=False)
        for round in range(3):
            calls.check(twins, form, seed + round)
        with torch.inference_mode():
            for module in twins.modules:
                values = Values(seed + 1)
                for parameter in module.parameters():
                    parameter.copy_(values.like(parameter))
        calls.check(twins, form, seed + 3)
    finally:
        for module, parameters in zip(twins.modules, before, strict=True):
            for name, parameter in parameters.items():
                setattr(module, name, parameter)


@visit(own)
def _parameter_of_another_dtype(twins: Twins, form: Form, seed: int) -> None:
    name = Values(seed).one_of([name for name in names(twins.theirs) if "weight_ih" not in name])
    before = getattr(twins.ours, name)
    data = before.data
    other = torch.float32 if twins.dtype == torch.float64 else torch.float64
    mine = calls.given(twins, form := simple(twins, form), seed, True)
    try:
        if seed % 2 and twins.dtype == torch.float64 and before.is_contiguous() and not before.is_neg():
            before.data = data.view(-1).view(other)[: data.numel()].view(data.shape)  # the same memory and shape
        else:
            setattr(twins.ours, name, nn.Parameter(data.to(other)))
        error = calls.outcome(twins, form, [mine], seed, calls.ours_of).error
    finally:
        before.data = data
        setattr(twins.ours, name, before)
    assert isinstance(error, RuntimeError), error


@visit(lambda twins: own(twins) and twins.kind.cell and twins.kind.bias)
def _no_biases(twins: Twins, form: Form, seed: int) -> None:
    before = [(module.bias_ih, module.bias_hh) for module in twins.modules]
    try:
        for module in twins.modules:
            module.bias_ih = module.bias_hh = None
        calls.check(twins, form, seed)
        calls.check(twins, form, seed + 1)
    finally:
        for module, biases in zip(twins.modules, before, strict=True):
            module.bias_ih, module.bias_hh = biases


@visit(lambda twins: plain(twins) and not (twins.kind.dropout and twins.kind.layers > 1))
def _vmap(twins: Twins, form: Form, seed: int) -> None:
    """Over the inputs; torch.nn's module is called with one after the other."""
    form = simple(twins, replace(form, shown="padded", hx="none", x="plain", mode="no_grad"))
    inputs = [calls.given(twins, form, seed + number, True).x.detach() for number in range(2)]
    with torch.no_grad():
        got = tensors(torch.vmap(lambda x: tuple(tensors(twins.ours(x))))(torch.stack(inputs)))
        each = [tensors(twins.theirs(x)) for x in inputs]
    calls.compare(got, [torch.stack(group) for group in zip(*each, strict=True)], calls.TOLERANCE[twins.dtype])


@visit(lambda twins: plain(twins) and not (twins.kind.dropout and twins.kind.layers > 1))
def _func_grad(twins: Twins, form: Form, seed: int) -> None:
    """By torch.func, of the input."""
    form = simple(twins, replace(form, shown="padded", hx="none", x="plain"))
    x = calls.given(twins, form, seed, True).x.detach()
    got = torch.func.grad(lambda x: tensors(twins.ours(x))[0].square().sum())(x)
    leaf = x.clone().requires_grad_()
    expected = torch.autograd.grad(tensors(twins.theirs(leaf))[0].square().sum(), leaf)
    calls.compare([got.detach()], [one.detach() for one in expected], calls.TOLERANCE[twins.dtype])


@visit()
def _deterministic_algorithms(twins: Twins, form: Form, seed: int) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        calls.check(twins, form, seed)
    finally:
        torch.use_deterministic_algorithms(False)


@visit()
def _probed(twins: Twins, form: Form, seed: int) -> None:
    """While somebody is told of every step."""
    with fastrnn.probe(twins.ours):
        calls.check(twins, simple(twins, form), seed)


@visit()
def _frozen(twins: Twins, form: Form, seed: int) -> None:
    """Gradients are wanted of arguments alone, after calls of which none were."""
    before = [[parameter.requires_grad for parameter in module.parameters()] for module in twins.modules]
    form = calls.savable(replace(simple(twins, form), mode="grad"))
    form = replace(form, hx="plain" if form.hx == "none" else form.hx)
    try:
        for module in twins.modules:
            module.requires_grad_(False)
        for x_grad, hx_grad in ((False, False), (False, False), (False, False), (False, True), (True, False)):
            calls.check(twins, replace(form, x_grad=x_grad, hx_grad=hx_grad), seed)
    finally:
        for module, flags in zip(twins.modules, before, strict=True):
            for parameter, flag in zip(module.parameters(), flags, strict=True):
                parameter.requires_grad_(flag)


@visit(own)
def _prepacked(twins: Twins, form: Form, seed: int) -> None:
    """Weights that are laid out once, and then changed."""
    form = replace(simple(twins, form), mode="no_grad")
    twins.ours.prepack()
    for time in range(3):
        calls.check(twins, form, seed + time)
    apply(twins, Values(seed).one_of(("sgd", "fused adam", "copy in place", "write data", "set data")), seed)
    calls.check(twins, form, seed)
    twins.ours.prepack(False)


@visit(lambda twins: not twins.kind.cell)
def _batch_first(twins: Twins, form: Form, seed: int) -> None:
    """Exchanged, of an input that has one shape either way."""
    form = replace(simple(twins, form), steps=3, batch=3)
    for time in range(3):
        calls.check(twins, form, seed + time)
    with attribute(twins, "batch_first", lambda value: not value):
        calls.check(twins, form, seed)
