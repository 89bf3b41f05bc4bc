"""A cell's program: its step and its derivative as expressions, and what passes between the two."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from fastrnn.cells.compiler.derivative import gradients
from fastrnn.cells.compiler.expression import OF_GATES, ZERO, Expression, below, leaf, leaves, replaced
from fastrnn.cells.compiler.layout import with_added_shares
from fastrnn.cells.compiler.names import free, variable
from fastrnn.cells.compiler.rules import is_bounded
from fastrnn.cells.compiler.saved import saved
from fastrnn.cells.compiler.text import written

ACTIVATIONS = ("sigmoid", "tanh", "relu")
"""What gates are known by."""


@dataclass(frozen=True, eq=False)
class Program:
    """All that is known of a cell; `fastrnn.cells.contract.Cell` tells what each group of names is.

    The step's expressions have leaves of the kinds x, pre, u, before, parameter and input; the derivative's have
    before, after, parameter, input, saved and arriving.
    """

    name: str
    gates: tuple[str, ...]
    states: tuple[str, ...]
    parameters: tuple[str, ...]
    inputs: tuple[str, ...]
    after: tuple[Expression, ...]
    """the states after the step"""
    blocks: tuple[Expression, ...]
    """leaves: what has a block of gradients. First x alone, then pre, then u alone, so that those of a product are a
    range; then parameters and inputs whose gradients only the recurrence can tell"""
    saved: Mapping[str, Expression]
    """what the derivative needs of the step beside the states, by name"""
    d_blocks: tuple[Expression, ...]
    """the derivative: the gradients of `blocks`"""
    d_before: tuple[Expression, ...]
    """the derivative: what reaches the states before the step, but for what the state's product brings"""
    d_after: tuple[Expression, ...]
    """all that reaches the states after the step, through other states as well"""
    d_outside: Mapping[Expression, Expression]
    """the gradients that follow from blocks, saved values and states, after the recurrence: of parameters and inputs,
    and of the blocks of u alone where those of x and pre tell them. By leaf, with leaves of the kind block"""
    names: Mapping[Expression, str]
    """what the step's values are called: by the author, in the order of the cell's lines; else as they are saved"""
    d_names: Mapping[Expression, str]
    """names for the derivative's values: d and the name of what it is the gradient of"""
    text: str
    """what it was made from, as `text.read` reads it"""

    @property
    def preactivations(self) -> list[Expression]:
        """The blocks that gates have, which come first: leaves of the step."""
        return [block for block in self.blocks if block.op in OF_GATES]

    @property
    def added(self) -> list[str]:
        """The gates whose two shares are only ever added."""
        return [str(block.value) for block in self.blocks if block.op == "pre"]

    def shares(self, kind: str) -> tuple[str, ...]:
        """The gates that have a share of the input's product ("x") or of the state's ("u"), in the order of `gates`."""
        have = {block.value for block in self.blocks if block.op in (kind, "pre")}
        return tuple(gate for gate in self.gates if gate in have)

    @property
    def unbounded(self) -> list[str]:
        """Of `saved`, what may be larger than a number of 16 bits."""
        return [name for name, e in self.saved.items() if not is_bounded(e)]

    @property
    def over_units(self) -> bool:
        """Whether a step, and so its derivative, looks at all units of a sequence: at a mean."""
        return any(e.op == "mean" for e in below(self.after))

    def read(self, kind: str, outputs: Iterable[Expression]) -> list[str]:
        """The states before ("before") or after the step ("after") that expressions are made of."""
        there = leaves(outputs, kind)
        return [state for state in self.states if state in there]


def program(
    name: str,
    gates: Sequence[str],
    states: Sequence[str],
    parameters: Sequence[str],
    inputs: Sequence[str],
    after: Sequence[Expression],
    names: Mapping[Expression, str],
) -> Program:
    """The program of a step: `after` are the states after it, in terms of leaves of the kinds x, u, before, parameter
    and input; `names` what the author called its values."""
    groups = {"gates": gates, "states": states, "parameters": parameters, "inputs": inputs}
    text = written(name, groups, after, names)
    rewritten = with_added_shares(after, gates, list(names))
    named = dict(zip(rewritten[len(after) :], names.values(), strict=True))
    after = rewritten[: len(after)]
    blocks = [leaf(kind, gate) for kind in OF_GATES for gate in gates if gate in leaves(after, kind)]
    arriving = [leaf("arriving", state) for state in states]
    total = gradients(zip(after, arriving, strict=True))
    before = [leaf("before", state) for state in states]
    others = [leaf(kind, name) for kind, group in (("parameter", parameters), ("input", inputs)) for name in group]
    wanted = [total.get(e, ZERO) for e in (*blocks, *before, *after, *others)]

    kept = _named(_by_block(saved(after, wanted, blocks), blocks), named, [*states, *parameters, *inputs])
    at_hand = {e: leaf("after", state) for e, state in zip(after, states, strict=True) if e.args or e in blocks}
    at_hand |= {e: leaf("saved", name) for name, e in kept.items()}
    derivative = dict(zip((*blocks, *before, *after, *others), replaced(wanted, at_hand), strict=True))
    d_outside = {}
    # The simplest first: a gain's gradient follows from its bias's.
    simplest = sorted(others, key=lambda e: len(below([derivative[e]])))
    for e in [e for e in blocks if e.op == "u"] + simplest:
        telling = [block for block in blocks if e.op != "u" or block.op in ("x", "pre")]
        known = {derivative[block]: leaf("block", variable(block)) for block in telling}
        (outside,) = replaced([derivative[e]], {d: block for d, block in known.items() if d.args})
        if not leaves([outside], "arriving"):
            d_outside[e] = outside
        elif e in others:
            blocks.append(e)
    d_outside = {e: d_outside[e] for e in (*blocks, *others) if e in d_outside}
    d_names = {d: f"d{variable(e)}" for e, d in derivative.items() if e in blocks}
    for e, its in [*named.items(), *zip(after, states, strict=True)]:
        again, d = replaced([e, total.get(e, ZERO)], at_hand)
        d_names.setdefault(again, its)
        d_names.setdefault(d, f"d{its}")
    return Program(
        name,
        tuple(gates),
        tuple(states),
        tuple(parameters),
        tuple(inputs),
        tuple(after),
        tuple(blocks),
        kept,
        tuple(derivative[e] for e in blocks),
        tuple(derivative[e] for e in before),
        tuple(derivative[e] for e in after),
        d_outside,
        {e: name for e, name in [*named.items(), *((e, name) for name, e in kept.items())] if e.args},
        {d: name for d, name in d_names.items() if d.args},
        text,
    )


def _gate_of(e: Expression) -> str | None:
    """The gate whose activation this is, if it is one: other gates may enter by way of their own activations."""
    others = {other for other in below(e.args) if other.op in ACTIVATIONS}
    gates = {str(other.value) for other in below(e.args, others) if other.op in OF_GATES}
    return gates.pop() if e.op in ACTIVATIONS and len(gates) == 1 else None


def _by_block(values: Sequence[Expression], blocks: Sequence[Expression]) -> list[Expression]:
    """What is saved, in the order of the first block that each comes from, not through another saved value."""

    def place(e: Expression) -> int:
        made_of = below([e], {other for other in values if other is not e})
        return min(blocks.index(block) for block in made_of if block in blocks)

    return sorted(values, key=place)


def _named(
    values: Sequence[Expression], names: Mapping[Expression, str], taken: Collection[str]
) -> dict[str, Expression]:
    """What is saved by its author's names, or by others where it has none, no two alike and none of `taken`."""
    made: dict[str, Expression] = {}
    for e in values:
        name = variable(e) if e.is_leaf else names.get(e) or _gate_of(e) or f"saved{len(made)}"
        made[free(name, {*taken, *made})] = e
    return made
