"""The parameters of modules for any cell: what `Recurrent` and `RecurrentCell` share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastrnn import checks, heads
from fastrnn.binding.checked import Weights
from fastrnn.cells import Cell
from fastrnn.cells.known import known
from fastrnn.dropping import raw
from fastrnn.zoneout import Zoneout, rates_of, step_input

Init = Mapping[str, Callable[[Tensor], Any] | float]
"""How parameters begin, by their names without layer and direction: a function that fills one in place, as those of
`torch.nn.init` do, of several heads' `weight_hh` one after another, or a number."""
PRODUCTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
"""The names of the parameters that a cell has for its gates."""


class CellParameters(nn.Module):
    """Parameters of a cell, once for each suffix of their names.

    `weight_ih` (Gx·H, I), of Gx gates with a share of the input's product, `weight_hh` (Gu·H, H), of Gu gates with one
    of the state's, biases (Gx·H,) and (Gu·H,), and what the cell itself names, (H,) each. Of a cell without gates of
    the state there are no `weight_hh` and `bias_hh`; with N heads of D units `weight_hh` is (N, Gu·D, D).
    """

    num_heads: int = 1
    training: bool
    zoneout: Zoneout = None
    """the rate, or the rates, of the inputs of the steps that a call draws itself"""

    def __init__(
        self,
        cell: Any,
        sizes: Sequence[tuple[str, int]],
        hidden_size: int,
        bias: bool,
        init: Any,
        num_heads: int,
        zoneout: Any,
        **like: Any,
    ) -> None:
        """`sizes` are suffixes, each with the size of the input there; `like` are `device` and `dtype`."""
        label = type(self).__name__
        _check_cell(label, cell)
        checks.types(int, input_size=sizes[0][1], hidden_size=hidden_size)
        checks.types(bool, bias=bias)
        if init is not None and not isinstance(init, Mapping):
            got = type(init).__name__
            raise TypeError(
                f"{label}: init must be a mapping from parameters' names to functions or numbers, got {got}"
            )
        if hidden_size <= 0:
            raise ValueError("hidden_size must be greater than zero")
        heads.width(num_heads, hidden_size)
        if num_heads > 1 and not cell.u_gates:
            raise ValueError(f"{label}: {cell.name} has no gates of the state, num_heads must be 1, got {num_heads}")
        super().__init__()
        self.cell: Cell = cell
        self.input_size, self.hidden_size, self.bias = sizes[0][1], hidden_size, bias
        rates_of(label, cell, zoneout)
        self.zoneout = tuple(zoneout) if isinstance(zoneout, Sequence) else zoneout
        self.num_heads, self.init = num_heads, dict(init or {})
        wrong = [name for name in self.init if name not in self._each()]
        if wrong:
            expected = ", ".join(self._each())
            raise ValueError(f"{label}: init names {wrong[0]!r}, the parameters of {cell.name} are {expected}")
        for name, how in self.init.items():
            if not callable(how) and not isinstance(how, (int, float)):
                raise TypeError(f"{label}: init of {name} must be a function or a number, got {type(how).__name__}")
        for suffix, width in sizes:
            for name, shape in self._shapes(width).items():
                self.register_parameter(name + suffix, nn.Parameter(torch.empty(shape, **like)))
        self.reset_parameters()

    def _each(self) -> tuple[str, ...]:
        """The parameters' names without suffixes."""
        names = PRODUCTS if self.bias else PRODUCTS[:2]
        return (*(name for name in names if self.cell.u_gates or name.endswith("ih")), *self.cell.parameters)

    def _shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        hidden, N = self.hidden_size, self.num_heads
        of_x, of_u = len(self.cell.x_gates) * hidden, len(self.cell.u_gates) * hidden
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (of_x, inputs), "bias_ih": (of_x,), "bias_hh": (of_u,)}
        shapes["weight_hh"] = (of_u, hidden) if N == 1 else (N, of_u // N, hidden // N)
        return {name: shapes.get(name, (hidden,)) for name in self._each()}

    def reset_parameters(self) -> None:
        """Gives the parameters their first values again: as `init` says, `weight_hh` uniform within ±1/√D, the others
        within ±1/√H."""
        with torch.no_grad():
            for suffix in self._suffixes():
                for name in self._each():
                    parameter, how = raw(self, name + suffix), self.init.get(name)
                    if how is None:
                        bound = (parameter.shape[-1] if name == "weight_hh" else self.hidden_size) ** -0.5
                        parameter.uniform_(-bound, bound)
                    elif callable(how):
                        for one in (
                            parameter if parameter.dim() == 3 else (parameter,)
                        ):  # each head's, by rows and columns
                            how(one)
                    else:
                        parameter.fill_(how)

    def _suffixes(self) -> list[str]:
        """Of each layer and direction."""
        raise NotImplementedError

    def _names(self) -> list[list[str]]:
        """Of the parameters of each layer and direction."""
        each = self._each()
        return [[name + suffix for name in each] for suffix in self._suffixes()]

    def _weights(self) -> Weights:
        """As `Stack.weights`: where the state has no gates, its product's parameters have no rows."""
        groups = [[getattr(self, name) for name in names] for names in self._names()]
        if self.cell.u_gates:
            return groups
        for group in groups:
            w_ih = group[0]
            group.insert(1, w_ih.new_empty((0, self.hidden_size)))
            if self.bias:
                group.insert(3, w_ih.new_empty((0,)))
        return groups

    def gate(self, name: str, gate: str) -> Tensor:
        """The rows of one gate: a view of the parameter `name`, (H, I), (H, H) or by heads (N, D, D), or (H,), that may
        be changed in place.

        Raises:
            AttributeError: there is no parameter of that name.
            ValueError: it has no rows of that gate.

        Example::

            >>> import torch, fastrnn
            >>> from fastrnn.cells.lstm import lstm
            >>> layer = fastrnn.Recurrent(lstm, 3, 4)
            >>> with torch.no_grad():
            ...     layer.gate("bias_ih_l0", "f").fill_(1.0).shape
            torch.Size([4])
        """
        parameter = raw(self, name)
        kind = next((kind for kind in PRODUCTS if name.startswith(kind)), None)
        gates = () if kind is None else self.cell.x_gates if kind.endswith("ih") else self.cell.u_gates
        if gate not in gates:
            have = f"has the gates {', '.join(gates)}" if gates else "has no gates"
            raise ValueError(f"{self.cell.name}: {name} {have}, got {gate!r}")
        by_head = parameter.dim() == 3
        size = parameter.shape[2] if by_head else self.hidden_size
        return parameter.narrow(int(by_head), gates.index(gate) * size, size)

    def _inputs(self, given: Mapping[str, Any], input: Any, draws: bool = True) -> tuple[Any, ...]:
        """The inputs of the steps in the cell's order, of a call's keywords and of what zoneout draws beside `input`;
        without `draws`, its expectation in place of that."""
        names, label = self.cell.inputs, type(self).__name__
        rates = rates_of(label, self.cell, self.zoneout)
        for name in given:
            if name not in names:
                raise TypeError(f"{label}.forward() got an unexpected keyword argument {name!r}")
            if name in rates:
                raise TypeError(f"{label}.forward() got {name!r}, which the module draws: its zoneout is not None")
        missing = [name for name in names if name not in given and name not in rates]
        if missing:
            raise TypeError(
                f"{label}.forward() needs {', '.join(missing)}: the cell {self.cell.name} takes "
                f"{'it' if len(missing) == 1 else 'them'} in every step"
            )
        sizes = self._step_sizes(input) if rates and draws and self.training else None
        drawn = {name: step_input(rate, input, sizes) for name, rate in rates.items()}
        return tuple(drawn[name] if name in drawn else given[name] for name in names)

    def _step_sizes(self, input: Any) -> tuple[int, ...] | None:
        """Of an input of the steps without anything to broadcast, as `input` lies; None if that is none."""
        raise NotImplementedError

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "cell":
            _check_cell(type(self).__name__, value)
            self._cell_name = known(value).key
        super().__setattr__(name, value)

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._cell_name = known(self.cell).key

    def _zoneout_shown(self) -> list[str]:
        return [] if self.zoneout is None else [f"zoneout={self.zoneout}"]

    def _options(self) -> list[str]:
        """What else is not as by default, for `repr`."""
        return []

    def extra_repr(self) -> str:
        """The cell, the sizes, and what is not as by default."""
        sizes = f"{self.input_size}, {self.hidden_size}"
        return ", ".join([self.cell.name, sizes, *["bias=False"] * (not self.bias), *self._options()])


def _check_cell(label: str, cell: Any) -> None:
    if not isinstance(cell, Cell):
        hint = ": write @fastrnn.cell above it" if callable(cell) else ""
        raise TypeError(f"{label}: cell must be what fastrnn.cell makes of a function, got {type(cell).__name__}{hint}")
