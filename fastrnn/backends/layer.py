"""What an operator hands to a backend: one layer, in one or two directions, and the gradients it asks for.

The fields of `Layer` are the table of a layer's arguments: which there are, in what order, and what each is. The
operators' schemas, autograd's order, vmap's dimensions and what is checked follow from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import chain, islice
from typing import Annotated, Any, NamedTuple, get_type_hints

import torch
from torch import Tensor

from fastrnn.cells import Cell, projection
from fastrnn.cells.known import KNOWN

ShapeAndDtype = tuple[tuple[int, ...], torch.dtype]


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of states, gates and accumulation for tensors of `dtype`: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def gate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which gates are saved for tensors of `dtype`: `dtype` itself, but float16 for bfloat16.

    Nearly all of them lie in [-1, 1], where float16 has 3 bits more; bfloat16 would double the gradients' error.
    """
    return torch.float16 if dtype == torch.bfloat16 else dtype


def as_gates(values: Tensor, dtype: torch.dtype) -> Tensor:
    """What a cell saved, in `dtype`. What `Cell.unbounded` names may lie beyond float16's range: it stays finite."""
    if dtype == torch.float16 != values.dtype:
        largest = torch.finfo(dtype).max
        values = values.clamp(-largest, largest)
    return values.to(dtype)


INPUT, WEIGHTS, STATES = "input", "weights", "states"
"""Gradients that are asked for together: of what a step is fed with, of parameters, and, always, of states."""


@dataclass(frozen=True)
class Argument:
    """A row of the table."""

    shape: str = ""
    """of each of its tensors, in the letters of `Layer.sizes` and others; B is the batch"""
    called: str = ""
    """by users, in messages"""
    gradient: str | None = None
    """with which others its gradient is asked for; None where it has none"""
    dtype: torch.dtype | None = None
    """None is the storage dtype"""
    numbers: Callable[[Layer], tuple[int, ...]] = lambda _: (1,)
    """how many tensors a list may hold"""
    built_in: bool = True
    """whether the operators of built-in cells take it, too"""
    name: str = ""
    type: str = ""
    """in torch's schemas; both come from the field"""

    @cached_property
    def sizes(self) -> list[str]:
        """The letters of `shape`."""
        return re.findall(r"[^(), ]+", self.shape)

    @cached_property
    def batch(self) -> int | None:
        """Which dimension is the batch; None where there is none."""
        return self.sizes.index("B") if "B" in self.sizes else None


@dataclass  # frozen ones take longer to make
class Layer:
    """The arguments of one layer, which stay as they are. Lists hold one tensor for each direction, the forward first.

    All floating tensors share one dtype, the storage dtype. Checked before it reaches a backend: shapes, dtypes,
    devices, and on the CPU the range of `lengths`. Any tensor may be non-contiguous. The cell has Gx gates with a share
    of the input's product and Gu with one of the state's, which may be none: then `w_hh` and b_hh have no rows.

    Each annotated field is an argument of the operators, in this order. A new one is one more of them, with a default:
    backends that do not know it say so in `supports`. Its gradient is a field of `Backward`.
    """

    cell_name: str
    """as in `fastrnn.cells.known.KNOWN`"""
    x: Annotated[Tensor, Argument("(T, B, I)", "the input", INPUT)]
    w_ih: Annotated[list[Tensor], Argument("(Gx·H, I)", "weight_ih", WEIGHTS, numbers=lambda _: (1, 2))]
    w_hh: Annotated[
        list[Tensor], Argument("(N, Gu·D, K)", "weight_hh", WEIGHTS, numbers=lambda layer: (layer.directions,))
    ]
    """each head's rows are gate by gate, D = H / N; K = D, with a projection N = 1 and K = P"""
    biases: Annotated[
        list[Tensor], Argument("(rows,)", "a bias", WEIGHTS, numbers=lambda layer: (0, 2 * layer.directions))
    ]
    """b_ih (Gx·H,), b_hh (Gu·H,) for each direction, or nothing at all"""
    extras: Annotated[
        list[Tensor],
        Argument(
            "(P, H)",
            "weight_hr",
            WEIGHTS,
            numbers=lambda layer: (0, layer.directions) if layer.may_project else (0,),
        ),
    ]
    """a cell's further parameters for each direction: w_hr of a projected LSTM, else nothing"""
    states0: Annotated[
        list[Tensor],
        Argument("(directions, B, F)", "the initial state", STATES, numbers=lambda layer: (len(layer.cell.states),)),
    ]
    """F is P or H for h, H for each other state"""
    lengths: Annotated[Tensor | None, Argument("(B,)", "lengths", dtype=torch.int64)]
    resets: Annotated[Tensor | None, Argument("(T, B)", "resets", dtype=torch.bool)]
    reverse: Annotated[bool, Argument()]
    """of a single direction: whether it runs from the end. Two directions are forward and reverse."""
    recurrent_mask: Annotated[Tensor | None, Argument("(directions, B, P)", "the recurrent dropout's mask")] = None
    """by what h is multiplied where it enters the recurrent product, and nowhere else, the same in all steps"""
    parameters: Annotated[
        list[Tensor],
        Argument(
            "(H,)",
            "a parameter of the cell",
            WEIGHTS,
            numbers=lambda layer: (layer.directions * len(layer.cell.parameters),),
            built_in=False,
        ),
    ] = field(default_factory=list)
    """of each direction those that `Cell.parameters` names"""
    inputs: Annotated[
        list[Tensor],
        Argument(
            "(directions, T, B, H)",
            "an input of the steps",
            INPUT,
            numbers=lambda layer: (len(layer.cell.inputs),),
            built_in=False,
        ),
    ] = field(default_factory=list)
    """those that `Cell.inputs` names"""

    def arguments(self) -> tuple[Any, ...]:
        """Those that its operators take: `Layer(layer.cell_name, *layer.arguments())` is the layer again."""
        return tuple([getattr(self, name) for name in (_NAMES if self.cell.program else _BUILT_IN)])

    def groups(self) -> dict[str, Sequence[Tensor]]:
        """The tensors of each argument that is not a flag: many, one or none."""
        values = [getattr(self, name) for name in _TENSORS]
        values = [() if v is None else v if isinstance(v, (list, tuple)) else (v,) for v in values]
        return dict(zip(_TENSORS, values, strict=True))

    def tensors(self) -> list[Tensor]:
        """All that there are, one after another in the order of the table."""
        found: list[Tensor] = []
        for name in _TENSORS:
            value = getattr(self, name)
            if isinstance(value, Tensor):
                found.append(value)
            elif value is not None:
                found += value
        return found

    def parts(self) -> tuple[Outline, list[Tensor]]:
        """Its tensors, and what is left without them."""
        groups = self.groups().values()
        outline = _outline(self.cell_name, tuple(map(len, groups)), tuple([getattr(self, name) for name in _FLAGS]))
        return outline, [*chain.from_iterable(groups)]

    def with_tensors(self, function: Callable[[Tensor], Tensor]) -> Layer:
        """The same layer of what `function` gives for every tensor."""
        outline, tensors = self.parts()
        return outline.layer([function(tensor) for tensor in tensors])

    @property
    def sizes(self) -> dict[str, int]:
        """By the letters of `Argument.shape`, but for those whose meaning is not the same everywhere."""
        steps, batch, inputs = self.x.shape
        hidden, rows = self.hidden_size, self.w_ih[0].shape[0]
        sizes = {"T": steps, "B": batch, "I": inputs, "H": hidden, "P": self.output_size, "Gx·H": rows}
        return {**sizes, "directions": self.directions}

    @property
    def cell(self) -> Cell:
        return KNOWN[self.cell_name]

    @property
    def directions(self) -> int:
        return len(self.w_ih)

    @property
    def hidden_size(self) -> int:
        return self.w_ih[0].shape[0] // len(self.cell.x_gates)

    @property
    def output_size(self) -> int:
        """P with a projection, else H."""
        return self.states0[0].shape[-1]

    @property
    def heads(self) -> int:
        return self.w_hh[0].shape[0]

    @property
    def may_project(self) -> bool:
        return self.cell_name in projection.CELLS

    @property
    def projected(self) -> bool:
        return len(self.extras) > 0  # not bool(), which compilers before torch 2.13 do not trace

    @property
    def state_dtype(self) -> torch.dtype:
        return state_dtype(self.x.dtype)

    @property
    def gate_dtype(self) -> torch.dtype:
        return gate_dtype(self.x.dtype)

    @property
    def history_forms(self) -> list[ShapeAndDtype]:
        """Of every state's history, as in `Forward.states`."""
        steps, batch = self.x.shape[:2]
        wide = (steps, batch, self.directions * self.hidden_size)
        others: list[ShapeAndDtype] = [(wide, self.state_dtype)] * (len(self.cell.states) - 1)
        return [((steps, batch, self.directions * self.output_size), self.x.dtype), *others]

    @property
    def saved_forms(self) -> list[ShapeAndDtype]:
        """Of what a cell saves, as in `Forward.saved`."""
        steps, batch = self.x.shape[:2]
        saves = len(self.cell.saved)
        return [((self.directions, steps, batch, saves * self.hidden_size), self.gate_dtype)] if saves else []

    def reversed(self, direction: int) -> bool:
        return self.reverse or direction == 1

    def parameters_of(self, direction: int) -> list[Tensor]:
        """(H,) each, as `Cell.parameters` names them."""
        count = len(self.cell.parameters)
        return self.parameters[count * direction : count * (direction + 1)]


def _table() -> Iterator[Argument]:
    types = {Tensor: "Tensor", list[Tensor]: "Tensor[]", Tensor | None: "Tensor?", bool: "bool"}
    for name, hint in get_type_hints(Layer, include_extras=True).items():
        for row in getattr(hint, "__metadata__", ()):
            yield replace(row, name=name, type=types[hint.__origin__])


ARGUMENTS = tuple(_table())
DIFFERENTIABLE = tuple([row for row in ARGUMENTS if row.gradient])
_NAMES = tuple([row.name for row in ARGUMENTS])
_BUILT_IN = tuple([row.name for row in ARGUMENTS if row.built_in])
_FLAGS = tuple([row.name for row in ARGUMENTS if row.type == "bool"])
_TENSORS = tuple([row.name for row in ARGUMENTS if row.type != "bool"])


@dataclass(frozen=True)
class Outline:
    """A layer without its tensors. It knows which of them, one after another, is what."""

    cell_name: str
    counts: tuple[int, ...]
    """how many tensors each argument has that is not a flag"""
    flags: tuple[bool, ...]

    def layer(self, tensors: Sequence[Tensor]) -> Layer:
        """Of these tensors, in the order of `Layer.tensors`; what follows them is left alone."""
        values: list[Any] = [
            list(tensors[pick]) if type(pick) is slice else tensors[pick] if type(pick) is int else pick
            for pick in self._picks
        ]
        return Layer(self.cell_name, *values)

    @cached_property
    def _picks(self) -> list[slice | int | bool | None]:
        """Of every argument where its tensors are, or what it is without them."""
        first, counts, flags = 0, iter(self.counts), iter(self.flags)
        picks: list[slice | int | bool | None] = []
        for row in ARGUMENTS:
            if row.type == "bool":
                picks.append(next(flags))
                continue
            count = next(counts)
            picks.append(slice(first, first + count) if row.type == "Tensor[]" else first if count else None)
            first += count
        return picks

    @cached_property
    def rows(self) -> list[Argument]:
        """Of every tensor the argument that it belongs to."""
        rows = [row for row in ARGUMENTS if row.type != "bool"]
        return [row for row, count in zip(rows, self.counts, strict=True) for _ in range(count)]

    @cached_property
    def filled(self) -> list[int]:
        """The places of tensors that hold something where no size is 0: of a cell without gates of the state not those
        of its product."""
        rows = self.rows
        if KNOWN[self.cell_name].u_gates:
            return [*range(len(rows))]
        first = next((place for place, row in enumerate(rows) if row.name == "biases"), 0)
        empty = {place for place, row in enumerate(rows) if row.name == "biases" and (place - first) % 2}
        return [place for place, row in enumerate(rows) if row.name != "w_hh" and place not in empty]

    def needs(self, gradient: str, asked: Sequence[bool]) -> bool:
        """Whether one of the gradients that are asked for is of this kind; `asked` has a flag for every tensor."""
        return any(map(asked.__getitem__, self._places[gradient]))

    @cached_property
    def _places(self) -> dict[str, list[int]]:
        return {
            gradient: [place for place, row in enumerate(self.rows) if row.gradient == gradient]
            for gradient in (INPUT, WEIGHTS, STATES)
        }

    def in_order(self, gradients: Backward) -> list[Tensor | None]:
        """The gradient of every tensor, None where it was not asked for or where there is none."""
        flat: list[Tensor | None] = []
        for name, count in self._present:
            flat += [*getattr(gradients, name, ())] or [None] * count
        return flat

    @cached_property
    def _present(self) -> list[tuple[str, int]]:
        return [(name, count) for name, count in zip(_TENSORS, self.counts, strict=True) if count]


_outline = cache(Outline)


def grouped(values: Iterable[Any], counts: Iterable[int]) -> list[list[Any]]:
    """Consecutive values in lists of so many."""
    each = iter(values)
    return [list(islice(each, count)) for count in counts]


class Forward(NamedTuple):
    """What a backend's `forward` returns. No tensor here shares memory with another or with an argument."""

    states: list[Tensor]
    """h of every step (T, B, directions·P or directions·H) in the storage dtype, zero at t >= length; then, if
    `history` was asked for, the cell's other states (T, B, directions·H) in the state dtype, unspecified but finite
    at t >= length"""
    finals: list[Tensor]
    """as `states0`: every state after the last step, in the storage dtype"""
    saved: list[Tensor]
    """if `gates` was asked for and the cell saves any: one tensor (directions, T, B, S·H) in the gate dtype, the S
    blocks that `Cell.saved` names side by side, unspecified but finite at t >= length"""

    @staticmethod
    def counts(cell: Cell, *, history: bool, gates: bool) -> tuple[int, int, int]:
        """How many tensors each list holds."""
        states = len(cell.states)
        return states if history else 1, states, int(gates and len(cell.saved) > 0)


class Backward(NamedTuple):
    """What a backend's `backward` returns: gradients in the dtype of what they belong to, none of them aliasing.

    Its fields are the arguments that have gradients, `DIFFERENTIABLE`.
    """

    x: list[Tensor]
    """one (T, B, I), or nothing where it was not asked for"""
    w_ih: list[Tensor]
    w_hh: list[Tensor]
    biases: list[Tensor]
    extras: list[Tensor]
    """for each direction as in `Layer`; all empty where the weights' gradients were not asked for"""
    states0: list[Tensor]
    parameters: Sequence[Tensor] = ()
    """as in `Layer`, empty where the weights' gradients were not asked for"""
    inputs: Sequence[Tensor] = ()
    """as in `Layer`, empty where the input's gradient was not asked for"""


assert Backward._fields == tuple(row.name for row in DIFFERENTIABLE)


@dataclass(frozen=True)
class Gradients:
    """What reaches a backward: gradients of the outputs (None is zero) and which results are needed."""

    states: list[Tensor | None]
    """as `Forward.states`; shorter where histories were not asked for"""
    finals: list[Tensor | None]
    need_x: bool = True
    need_weights: bool = True

    def wants(self, row: Argument) -> bool:
        """Whether the gradient of this argument is asked for."""
        return {INPUT: self.need_x, WEIGHTS: self.need_weights, STATES: True, None: False}[row.gradient]


@dataclass(frozen=True)
class Residuals:
    """What forward kept for backward, in the layout of `Forward`; `gates` is empty where they are to be recomputed."""

    states: list[Tensor]
    gates: list[Tensor] = field(default_factory=list)
