"""Writes expressions as lines of source, in the names of the cell's author."""

from __future__ import annotations

import keyword
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fastrnn.cells.compiler.expression import Expression, below
from fastrnn.cells.compiler.names import free
from fastrnn.cells.compiler.program import Program

INFIX = {"add": ("+", 1), "subtract": ("-", 1), "multiply": ("*", 2), "divide": ("/", 2)}
"""Operators, and how strongly they bind."""
ATOM = 4
"""The strength of what needs no parentheses."""
WIDTH = 120
"""Columns of a line."""
DEEPEST = 24
"""Operations within one another, at most, before one becomes a variable: parsers of languages have limits."""


class Form(NamedTuple):
    """How an operation reads: a format of its arguments' texts."""

    text: str
    strength: int = ATOM
    """how strongly it binds"""
    needs: tuple[int, ...] = ()
    """how strongly each argument must bind to go without parentheses; by default they stand between commas"""


@dataclass(frozen=True)
class Language:
    """How a language says what an expression can be."""

    operations: Mapping[str, Form]
    """what is not said with an operator"""
    constant: Callable[[float], str]
    assignment: str = "{} = {}"
    special: Callable[[Writer, Expression], str | None] = lambda writer, e: None
    """what it says otherwise than by these, as one atom; None where it does not"""


class Writer:
    """Writes expressions over leaves that have texts, as assignments to variables (`lines`) and what `text` returns.

    Args:
        leaves: how leaves read.
        names: what values are called. Those, whatever is used twice, and what lies too deep become variables.
        outputs: all that will be asked for.
        taken: names that stand for something else.
    """

    def __init__(
        self,
        language: Language,
        leaves: Mapping[Expression, str],
        names: Mapping[Expression, str],
        outputs: Sequence[Expression],
        taken: Collection[str] = (),
    ) -> None:
        self._language, self._names = language, names
        self._texts = {e: (text, ATOM) for e, text in leaves.items()}
        self._taken = {*keyword.kwlist, *taken, *leaves.values()}  # dx of an x called el is not del
        self._uses: dict[Expression, int] = {}
        self._numbered = 0
        self.lines: list[str] = []
        made_of = below(outputs, leaves.keys())
        self.made_of: Sequence[Expression] = made_of
        """all that will be written, arguments first, and leaves"""
        arguments = [a for e in made_of if e not in leaves for a in e.args]
        for e in (*outputs, *arguments):
            self._uses[e] = self._uses.get(e, 0) + 1
        depths: dict[Expression, int] = {}
        for e in made_of:
            depths[e] = 0 if e in leaves else 1 + max((depths[a] for a in e.args), default=-1)
        self._deep = {e for e, depth in depths.items() if depth and depth % DEEPEST == 0}
        for e in (*(e for e in made_of if e in self._deep), *names):
            if e in self._uses:
                self.text(e)

    def text(self, e: Expression, strength: int = 0) -> str:
        """An expression, in parentheses where what surrounds it binds more strongly than it does itself."""
        if e not in self._texts:
            self._texts[e] = self._written(e)
        text, own = self._texts[e]
        return text if own >= strength else f"({text})"

    def variable(self, e: Expression) -> str:
        """An expression as a variable's name, or as short as that."""
        text = self.text(e)
        if self._texts[e][1] < ATOM or "(" in text:
            self._texts[e] = self._assigned(e, text), ATOM
        return self._texts[e][0]

    def _written(self, e: Expression) -> tuple[str, int]:
        text, strength = self._operation(e)
        if e in self._texts:  # it was assigned together with others
            return self._texts[e]
        if e.op != "constant" and (e in self._names or e in self._deep or self._uses[e] > 1):
            return self._assigned(e, text), ATOM
        return text, strength

    def assign_together(self, expressions: Sequence[Expression], text: str) -> None:
        """Assigns a tuple, as what `text` says gives it, to variables for these expressions."""
        names = [self._free_name(e) for e in expressions]
        self.lines.append(self._language.assignment.format(tuple_of(names, True), text))
        self._texts |= {e: (name, ATOM) for e, name in zip(expressions, names, strict=True)}

    def _assigned(self, e: Expression, text: str) -> str:
        name = self._free_name(e)
        self.lines.append(self._language.assignment.format(name, text))
        return name

    def _free_name(self, e: Expression) -> str:
        name = free(self._names.get(e) or self._found_name(e), self._taken)
        self._taken.add(name)
        return name

    def _found_name(self, e: Expression) -> str:
        """tanh_c for what is a function of a c with a name; else a number."""
        if len(e.args) == 1 and (of := self.text(e.args[0])).isidentifier():
            return f"{e.op}_{of.removesuffix('_after').removesuffix('_before')}"
        self._numbered += 1
        return f"t{self._numbered}"

    def _operation(self, e: Expression) -> tuple[str, int]:
        language = self._language
        if e.op == "constant":
            assert isinstance(e.value, float)
            return language.constant(e.value), ATOM
        special = language.special(self, e)
        if special is not None:
            return special, ATOM
        if e.op in INFIX:
            sign, strength = INFIX[e.op]
            left, right = self.text(e.args[0], strength), self.text(e.args[1], strength + 1)
            return f"{left} {sign} {right}", strength
        form = language.operations[e.op]
        needs = form.needs or (0,) * len(e.args)
        repeated = [form.text.count(f"{{{place}}}") > 1 for place in range(len(e.args))]
        texts = [
            self.variable(a) if again else self.text(a, need)
            for a, again, need in zip(e.args, repeated, needs, strict=True)
        ]
        return form.text.format(*texts), form.strength

    def stays_inside(self, e: Expression) -> bool:
        """Whether an expression has no variable, so that what surrounds it may say it in its own way."""
        return e not in self._texts and e not in self._names and self._uses[e] == 1


def tuple_of(texts: Sequence[str], left: bool = False) -> str:
    """A tuple; on the left of an assignment one of several goes without parentheses."""
    joined = ", ".join(texts) + "," * (len(texts) == 1)
    return joined if left and len(texts) > 1 else f"({joined})"


def sum_of_shares(p: Program, preactivation: Expression) -> str:
    """What a gate's pre-activation is of gx and gh, the gates' shares in their order."""
    kinds = {"gx": ("x", "pre"), "gh": ("u", "pre")}
    return " + ".join(
        f"{name}[{p.shares(kind).index(str(preactivation.value))}]"
        for name, (kind, both) in kinds.items()
        if preactivation.op in (kind, both)
    )
