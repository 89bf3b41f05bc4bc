"""`accelerate` and `to_torch`: a model's recurrent layers become fastrnn's, or torch.nn's again, in place.

Both libraries' layers derive from the same bases and keep the same attributes, so that a layer is converted by giving
the object another class; `fastrnn.subclasses` has those for what users derived from torch's layers. It stays the same
object with the same parameters: whatever refers to one of them (hooks, optimizers, ties, another model) keeps what it
has.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import type_before_parametrizations

from fastrnn import nn as layers
from fastrnn.checks import _FLOATING
from fastrnn.layer_norm import LayerNormGRU, LayerNormLSTM
from fastrnn.recurrent import Recurrent, RecurrentCell
from fastrnn.subclasses import Twin, twin, why_none

Model = TypeVar("Model", bound=nn.Module)

_NAMES = ("RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell")
_TORCH: dict[type, str] = {getattr(nn, name): f"torch.nn.{name}" for name in _NAMES}
_FASTRNN: dict[type, str] = {getattr(layers, name): f"fastrnn.{name}" for name in _NAMES}
_OF_CELLS: dict[type, str] = {
    cls: f"fastrnn.{cls.__name__}" for cls in (Recurrent, RecurrentCell, LayerNormLSTM, LayerNormGRU)
}
_OPTIONS = ("num_heads", "recurrent_dropout", "backend", "recompute", "prepacked", "prepacked_weights")
"""What fastrnn's layers have and torch's have not. `num_heads` is 1 where they become torch's."""
_UNTOLD = ("num_heads", "prepacked_weights")
"""Of these, what is not named where it is lost: the second goes with `prepacked`."""


@dataclass(frozen=True)
class Change:
    """What became of one recurrent layer. `str()` of it is for people."""

    names: tuple[str, ...]
    """every name by which the model holds it, as `Module.get_submodule` takes them; "" for the model itself"""
    before: type[nn.Module]
    """its class, without what torch.nn.utils.parametrize adds"""
    after: type[nn.Module] | None
    """the class that it was given; None where it was left as it was"""
    note: str
    """why it was left, or what was lost on the way; else empty"""

    def __str__(self) -> str:
        names = ", ".join(name or "the model itself" for name in self.names)
        became = "left" if self.after is None else f"-> {_title(self.after)}"
        return f"{names}: {_title(self.before)} {became}{self.note and f' ({self.note})'}"


Report = Callable[[Change], object]


def accelerate(model: Model, report: Report | None = None) -> Model:
    """Makes every torch.nn.RNN, GRU, LSTM, RNNCell, GRUCell and LSTMCell in `model` fastrnn's, in place.

    The layers stay the same objects with the same Parameters, so that optimizers, hooks, parametrizations, pruning,
    tied weights, buffers, attributes and what `state_dict` gives are what they were. Results are torch's, but for two
    differences: under autocast GRUs and cells compute in the autocast dtype on the CPU too, and an output must not be
    changed in place before backward, which autograd reports.

    `isinstance(layer, torch.nn.LSTM)` is no longer true, though `isinstance(layer, torch.nn.RNNBase)` is. What knows
    torch's classes has to come first, or after `to_torch`: functions that initialise weights by class,
    torch.jit.script, torch.fx.symbolic_trace, quantization. Compile after conversion, not before it.

    Layers of classes derived from torch's, with methods of their own, get a class that derives from fastrnn's layer and
    from theirs: `isinstance` with their class, methods and `repr` are what they were, and pickles load where both can
    be imported. To torch.compile they remain layers of torch's, which break its graphs. Those that override `forward`,
    or anything else that a call depends on, are left: derive them from fastrnn's layers.

    Left as they are as well: `fastrnn.Recurrent` and `RecurrentCell`, which are fastrnn's already; layers whose
    `forward` was replaced on the instance; compiled, scripted and quantized ones; those whose parameters are not yet
    initialised, of a tensor subclass, or of a dtype other than float32, float64, bfloat16 and float16. Layers that the
    model does not hold as submodules, say in a plain list, are not seen.

    Args:
        model: any module; a layer itself, too.
        report: called with a `Change` for each recurrent layer found, once all are converted: `report=print` shows
            them, `report=changes.append` collects them. Without it, a warning names those that were left, or says that
            there are none; layers that are fastrnn's already count as found.

    Returns:
        `model` itself.

    Raises:
        TypeError: `model` is no module. Whatever is raised, here or by `report`, nothing has changed.

    Example::

        >>> import torch, fastrnn
        >>> model = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.LSTM(4, 5))
        >>> model = fastrnn.accelerate(model, report=print)
        1: torch.nn.LSTM -> fastrnn.LSTM
        >>> type(model[1]) is fastrnn.LSTM
        True
    """
    return _convert("accelerate", model, _TORCH, _FASTRNN, report)


def to_torch(model: Model, report: Report | None = None) -> Model:
    """Makes every fastrnn.RNN, GRU, LSTM, RNNCell, GRUCell and LSTMCell in `model` torch.nn's, in place.

    The reverse of `accelerate`, under the same conditions: a model that went there and back is what it was. Left are
    classes that were derived from fastrnn's layers, whose methods would be lost, and `fastrnn.Recurrent` and
    `RecurrentCell`, since torch.nn has no layers of other cells; and layers with `num_heads`, since it has no heads:
    `fastrnn.heads.dense` makes a layer of one that computes the same, with more weights. The options `backend`,
    `recompute`, `prepacked` and `recurrent_dropout` are lost, which the report notes. Calls with `lengths`, `resets` or
    `return_states`, which torch's layers do not take, remain for the caller to change. A model that is saved whole, by
    `torch.save(model, file)`, can be loaded without fastrnn afterwards; a `state_dict` can in any case.

    Args:
        model, report: as in `accelerate`. Without a report, what was lost is warned of, too.

    Returns:
        `model` itself.

    Raises:
        TypeError: `model` is no module. Whatever is raised, here or by `report`, nothing has changed.

    Example::

        >>> import torch, fastrnn
        >>> model = torch.nn.Sequential(fastrnn.GRU(4, 5, backend="reference"))
        >>> model = fastrnn.to_torch(model, report=print)
        0: fastrnn.GRU -> torch.nn.GRU (without backend='reference')
        >>> type(model[0]) is torch.nn.GRU
        True
    """
    return _convert("to_torch", model, _FASTRNN, _TORCH, report)


def _convert(
    operator: str, model: Model, sources: dict[type, str], targets: dict[type, str], report: Report | None
) -> Model:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{operator}: model must be a torch.nn.Module, got {type(model).__name__}")
    plan = _plan(model, sources, targets)
    changed: list[tuple[nn.Module, type, dict[str, Any]]] = []
    try:
        for module, change in plan:
            if change.after is not None:
                options = {name: module.__dict__[name] for name in _OPTIONS if name in module.__dict__}
                changed.append((module, type(module), options))
                _give_class(module, change.after)
        if report is None:
            _warn(operator, [change for _, change in plan], targets)
        else:
            for _, change in plan:
                report(change)
    except BaseException:
        for module, cls, options in changed:
            module.__class__ = cls
            module.__dict__.update(options)
        raise
    return model


def _plan(model: nn.Module, sources: dict[type, str], targets: dict[type, str]) -> list[tuple[nn.Module, Change]]:
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    compiled = {inner for outer in names if _is_compiled(outer) for inner in outer.modules()}
    by_name = {title.rpartition(".")[2]: target for target, title in targets.items()}
    plan = []
    for module, its_names in names.items():
        if not _is_recurrent(module):
            continue
        source = type_before_parametrizations(module)
        target = _target(source, sources, targets, by_name)
        if target is None:
            note = _why_foreign(module, source, sources, targets, by_name)
        else:
            note = _why_not(module, source, target, module in compiled)
        after = None if note else target
        plan.append((module, Change(tuple(its_names), source, after, note or _what_is_lost(module))))
    return plan


def _target(
    source: type[nn.Module], sources: dict[type, str], targets: dict[type, str], by_name: dict[str, type]
) -> type[nn.Module] | None:
    """The class that objects of `source` get; None where they are left."""
    if source in sources:
        return by_name[source.__name__]
    if issubclass(source, Twin):
        return source.twin_of if targets is _TORCH else None
    if sources is not _TORCH or issubclass(source, tuple(targets)):
        return None
    for base in source.__mro__:
        if base in sources:
            ours = by_name[base.__name__]
            return None if why_none(source, base, ours) else twin(source, ours)
    return None


def _is_compiled(module: nn.Module) -> bool:
    """By `torch.compile(module)`, which wraps it, or by `module.compile()`."""
    return "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None


def _is_recurrent(module: nn.Module) -> bool:
    """Whether one may expect a report on it."""
    if isinstance(module, torch.jit.ScriptModule):
        return getattr(module, "original_name", None) in _NAMES
    return isinstance(module, (nn.RNNBase, nn.RNNCellBase, *_OF_CELLS)) or (
        _is_quantized(module) and type(module).__name__ in _NAMES
    )


def _is_quantized(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.ao.")


def _why_foreign(
    module: nn.Module, source: type, sources: dict[type, str], targets: dict[type, str], by_name: dict[str, type]
) -> str:
    """Why a layer of a class that has no target is left."""
    if isinstance(module, torch.jit.ScriptModule):
        return f"TorchScript of {module.original_name}"
    if _is_quantized(module):
        return "quantized"
    if isinstance(module, (Recurrent, RecurrentCell)):
        return "already" if sources is _TORCH else f"torch.nn has none of the cell {module.cell.name}"
    for cls in source.__mro__:
        if cls in targets:
            return "already" if cls is source else f"already: a subclass of {_title(cls)}"
        if cls in sources and sources is _TORCH:
            ours = by_name[cls.__name__]
            reason = why_none(source, cls, ours)
            return f"a subclass of {_title(cls)} {reason}: derive it from {_title(ours)} instead"
        if cls in sources:
            return f"a subclass of {_title(cls)}, whose methods would be lost"
    return "of a class that the other library has not"


def _why_not(module: nn.Module, source: type, target: type, compiled: bool) -> str:
    """Why a layer of the right class is left all the same; empty if it is not."""
    if compiled:
        return "compiled: convert the model first, then compile it"
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance"
    if getattr(module, "num_heads", 1) != 1 and issubclass(target, tuple(_TORCH)):
        return f"num_heads={module.num_heads}, and torch.nn has no heads: fastrnn.heads.dense(layer) can be converted"
    for name, parameter in module.named_parameters():
        kind: type = type(parameter)
        if issubclass(kind, UninitializedParameter):
            return f"its parameter {name} is not initialised yet"
        if kind is not nn.Parameter:
            return f"its parameter {name} is a {kind.__name__}"
        if parameter.dtype not in _FLOATING:
            return f"its parameter {name} is {parameter.dtype}".replace("torch.", "")
    own = {*module.__dict__, *module._parameters, *module._buffers, *module._modules}
    taken = sorted(own & (set(dir(target)) - set(dir(source))))
    return f"its own attribute {taken[0]} would be taken for one of {_title(target)}" if taken else ""


def _what_is_lost(module: nn.Module) -> str:
    """Of a layer's options, on the way to torch."""
    options = {name: getattr(module, name, None) for name in _OPTIONS}
    lost = [f"{name}={value!r}" for name, value in options.items() if value and name not in _UNTOLD]
    return f"without {' and '.join(lost)}" if lost else ""


def _give_class(module: nn.Module, target: type) -> None:
    cls = type(module)
    if cls is not type_before_parametrizations(module):
        # Copies of a parametrized layer share the class that torch made for it: it is made anew on the other base.
        target = type(cls.__name__, (target,), dict(vars(cls)))
    module.__class__ = target
    for name in _OPTIONS:
        module.__dict__.pop(name, None)
    if isinstance(module, nn.RNNBase):
        # Does nothing but for torch's layers on a GPU, whose weights it brings together, as torch's constructor does.
        module.flatten_parameters()


def _warn(operator: str, changes: list[Change], targets: dict[type, str]) -> None:
    if not changes:
        warnings.warn(f"fastrnn.{operator}: the model has no recurrent layer to convert", stacklevel=4)
        return
    done = (*targets, *(_OF_CELLS if targets is _FASTRNN else ()))
    noted = [change for change in changes if change.note and (change.after or not issubclass(change.before, done))]
    if noted:
        lines = "".join(f"\n  {change}" for change in noted)
        warnings.warn(f"fastrnn.{operator}: not every recurrent layer was converted as it was:{lines}", stacklevel=4)


def _title(cls: type) -> str:
    if issubclass(cls, Twin):
        return f"{_title(cls.twin_of)} on {_title(cls.on)}"
    return (_TORCH | _FASTRNN | _OF_CELLS).get(cls) or f"{cls.__module__}.{cls.__qualname__}"
