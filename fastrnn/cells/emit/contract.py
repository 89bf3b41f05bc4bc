"""A program's contract, as Python: what a `Cell` is made with."""

from __future__ import annotations

from collections.abc import Sequence

from fastrnn.cells.compiler.expression import leaf
from fastrnn.cells.compiler.names import variable
from fastrnn.cells.compiler.program import ACTIVATIONS, Program
from fastrnn.cells.emit.writer import tuple_of


def passes_states_on(p: Program) -> bool:
    """Whether a state after the step enters another one."""
    return any(d is not leaf("arriving", state) for d, state in zip(p.d_after, p.states, strict=True))


def literal(p: Program) -> str:
    """The assignment of a `Cell` to a variable, LSTM for a cell named lstm, whose functions are there."""
    step = [*p.after, *p.saved.values()]
    backward = [*p.d_blocks, *p.d_before, *p.d_outside.values()]
    values = [*p.saved.items(), *zip(p.states, p.after, strict=True)]
    activations = ", ".join(f'"{name}": "{e.op}"' for name, e in values if e.op in ACTIVATIONS)
    functions = ["step", "step_backward"]
    functions += ["d_states"] if passes_states_on(p) else []
    functions += ["gradients_outside"] if p.d_outside else []
    fields = {
        "name": f'"{p.name}"',
        "x_gates": _strings(p.shares("x")),
        "u_gates": _strings(p.shares("u")),
        "states": _strings(p.states),
        "parameters": _strings(p.parameters),
        "inputs": _strings(p.inputs),
        "blocks": _strings([variable(e) for e in p.blocks]),
        "saved": _strings(list(p.saved)),
        "unbounded": _strings(p.unbounded),
        "activations": f"{{{activations}}}",
        "step_reads": _strings(p.read("before", step)),
        "reads_before": _strings(p.read("before", backward)),
        "reads_after": _strings(p.read("after", backward)),
        "outside": _strings([variable(e) for e in p.d_outside]),
        **{name: f"{p.name}_{name}" for name in functions},
        **({"over_units": "True"} if p.over_units else {}),
    }
    lines = [f"    {field}={text}," for field, text in fields.items()]
    return "\n".join([f"{p.name.upper()} = Cell(", *lines, ")"])


def _strings(names: Sequence[str]) -> str:
    return tuple_of([f'"{name}"' for name in names])
