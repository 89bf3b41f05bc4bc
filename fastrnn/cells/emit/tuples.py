"""What the emitters for PyTorch and Triton share: functions from tuples of values to tuples of values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from fastrnn.cells.compiler.expression import Expression, below, leaf
from fastrnn.cells.compiler.names import variable, variables
from fastrnn.cells.compiler.program import Program
from fastrnn.cells.emit.writer import Language, Writer, tuple_of

Values = Sequence[Expression]


def arguments(p: Program) -> dict[str, Values]:
    """The arguments of a step and its derivative, but for gates' shares: of which leaves each is a tuple."""
    return {
        "before": [leaf("before", state) for state in p.states],
        "after": [leaf("after", state) for state in p.states],
        "d_after": [leaf("arriving", state) for state in p.states],
        "saved": [leaf("saved", name) for name in p.saved],
        "blocks": [leaf("block", variable(block)) for block in p.blocks],
        "parameters": [leaf("parameter", name) for name in p.parameters],
        "inputs": [leaf("input", name) for name in p.inputs],
    }


def body(
    language: Language,
    taken: Collection[str],
    given: Mapping[str, Values],
    names: Mapping[Expression, str],
    results: Sequence[Values],
    output: Callable[[Writer, Expression, str], str],
    like: str,
) -> list[str]:
    """A function's lines: it returns a tuple for each of `results`.

    `taken` is what no value may be called, `names` what values are called, and `output` writes one that is returned,
    with the shape and dtype of `like`.
    """
    outputs = [e for values in results for e in values]
    leaves = variables((e for e in below(outputs) if e.is_leaf), taken)
    write = Writer(language, leaves, names, outputs, taken)
    returned = ", ".join(tuple_of([output(write, e, like) for e in values]) for values in results)
    unpacked = [line for source, values in given.items() for line in _unpacked(source, values, leaves)]
    return [*unpacked, *write.lines, f"return {returned}"]


def _unpacked(source: str, values: Values, leaves: Mapping[Expression, str]) -> list[str]:
    """Lines that assign the variables of those values that have one, from the tuple of all."""
    if values and leaves.keys() >= set(values):
        return [f"{tuple_of([leaves[e] for e in values], True)} = {source}"]
    return [f"{leaves[e]} = {source}[{place}]" for place, e in enumerate(values) if e in leaves]


def chosen(write: Writer, e: Expression, text: str) -> str | None:
    """A choice between two numbers, which libraries take for float32 whatever is compared; None of all else.

    `text` is a format of both that are compared, the sign, both numbers, and the one compared that has a dtype.
    """
    if not e.op.startswith("where") or {a.op for a in e.args[2:]} != {"constant"}:
        return None
    a, b, then, otherwise = map(write.variable, e.args)
    typed = b if e.args[0].op == "constant" else a
    return text.format(a=a, b=b, sign="<=" if e.op == "where_le" else "<", then=then, otherwise=otherwise, typed=typed)
