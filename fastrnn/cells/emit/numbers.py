"""Numbers among tensors and tiles."""

from __future__ import annotations

from fastrnn.cells.compiler.expression import Expression
from fastrnn.cells.emit.writer import Writer


def chosen(write: Writer, e: Expression, text: str) -> str | None:
    """A choice between two numbers, which libraries take for float32 whatever is compared; None of all else.

    `text` is a format of both that are compared, the sign, both numbers, and the one compared that has a dtype.
    """
    if not e.op.startswith("where") or {a.op for a in e.args[2:]} != {"constant"}:
        return None
    a, b, then, otherwise = map(write.variable, e.args)
    typed = b if e.args[0].op == "constant" else a
    return text.format(a=a, b=b, sign="<=" if e.op == "where_le" else "<", then=then, otherwise=otherwise, typed=typed)
