"""Programs as CUDA C++ over registers: the classes of csrc/cells.cuh, as csrc/cell.cuh says what they are."""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from fastrnn.cells.compiler.expression import Expression, below, leaf
from fastrnn.cells.compiler.names import free, variable
from fastrnn.cells.compiler.program import Program
from fastrnn.cells.emit.writer import ATOM, WIDTH, Form, Language, Writer, sum_of_shares


def _number(value: float) -> str:
    """A float's nearest to a constant."""
    single = ctypes.c_float(value).value
    if single in (float("inf"), float("-inf")):
        return f"{'-' if single < 0 else ''}INFINITY"
    return f"{value:.0f}.f" if value == int(value) and abs(value) < 1e7 else f"{value!r}f"


_FUNCTIONS = ("sigmoid", "tanh", "relu", "exp", "log", "softplus", "sqrt", "abs")
LANGUAGE = Language(
    operations={
        **{name: Form(f"Element::{name}({{0}})") for name in _FUNCTIONS},
        **{name: Form(f"Element::{name}({{0}}, {{1}})") for name in ("maximum", "minimum")},
        "neg": Form("-{0}", 1, (3,)),
        "where_le": Form("{0} <= {1} ? {2} : {3}", 0, (1, 1, 1, 0)),
        "where_lt": Form("{0} < {1} ? {2} : {3}", 0, (1, 1, 1, 0)),
        "mix": Form("{2} + {0} * ({1} - {2})", 1, (2, 1, ATOM)),
        "stop_gradient": Form("{0}", needs=(ATOM,)),
    },
    constant=_number,
    assignment="const float {} = {};",
)
_ARGUMENTS = ("pre", "before", "after", "saved", "parameters", "inputs", "dafter", "dblocks", "dbefore")
_WORDS = """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char char16_t char32_t class compl const
    const_cast constexpr continue decltype default delete do double dynamic_cast else enum explicit export extern false
    float for friend goto if inline int long mutable namespace new noexcept not not_eq nullptr operator or or_eq private
    protected public register reinterpret_cast return short signed sizeof static static_assert static_cast struct switch
    template this thread_local throw true try typedef typeid typename union unsigned using virtual void volatile wchar_t
    while xor xor_eq char8_t co_await co_return co_yield concept consteval constinit requires Element DEVICE KERNEL
    INFINITY NAN NULL EOF errno
"""
"""C++'s own, those of C++20 included, what functions apply, and macros."""
TAKEN = frozenset((*_ARGUMENTS, *_WORDS.split()))
"""What no value may be called."""


_LIST = """\
// Which cells there are: the class in cells.cuh and the name of each. setup.py reads this line, too: it compiles every
// source in cluster/ and grid/ once for each cell, whose class is then FASTRNN_CELL. What takes longest comes first.
// {about}
#pragma once

#define FASTRNN_CELLS(X) {cells}
"""
_CLASSES = """\
// clang-format off
// The cells' classes, of which cell.cuh says what they are.
// {about}
#pragma once

#include "cell.cuh"

namespace fastrnn {{

{classes}
}}  // namespace fastrnn
"""


class _Array(NamedTuple):
    """An argument of a cell's functions."""

    name: str
    size: str
    """the constant that says how many values it has"""
    leaves: Sequence[Expression] = ()
    """of one that is read: what each value is"""
    values: Sequence[Expression] | None = None
    """of one that is written"""


def class_name(cell: str) -> str:
    """RnnTanh for a cell named rnn_tanh."""
    return "".join(part[:1].upper() + part[1:] for part in _ascii(cell).split("_"))


def names(programs: Sequence[Program], about: str) -> str:
    """csrc/cells.h: the list of the cells, what takes longest to compile first."""
    longest_first = sorted(programs, key=lambda program: -len(program.shares("u")))
    cells = " ".join(f"X({class_name(program.name)}, {_ascii(program.name)})" for program in longest_first)
    return _LIST.format(about=about, cells=cells)


def classes(programs: Sequence[Program], about: str) -> str:
    """csrc/cells.cuh: a class for each cell."""
    return _CLASSES.format(about=about, classes="\n".join(map(_class, programs)))


def _class(p: Program) -> str:
    parts = [_constants(p), _preactivations(p), _step(p), _derivative(p)]
    lines = [f"  {line}" if line else "" for part in parts for line in (*part, "")]
    return "\n".join([f"struct {class_name(p.name)} {{", *lines[:-1], "};", ""])


def _constants(p: Program) -> list[str]:
    u_gates = [str(block.value) for block in p.preactivations if block.op != "x"]

    def counted(name: str, what: Sequence[str]) -> str:
        return f"int {name} = {len(what)};{_remark(what)}"

    def bits(name: str, group: Sequence[str], having: Sequence[str]) -> str:
        number = sum(1 << place for place, one in enumerate(group) if one in having)
        return f"unsigned {name} = {f'0b{number:b}' if number else '0'};{_remark(having)}"

    def read(name: str, kind: str, outputs: Collection[Expression]) -> str:
        return bits(name, p.states, p.read(kind, outputs))

    derivative = [*p.d_blocks, *p.d_before]
    lines = [
        f"CellKind KIND = CellKind::k{class_name(p.name)};",
        counted("X_GATES", p.shares("x")),
        counted("U_GATES", p.shares("u")),
        counted("BLOCKS", [variable(block) for block in p.blocks]),
        f"int PREACTIVATIONS = {len(p.preactivations)};",
        counted("SAVED", list(p.saved)),
        counted("STATES", p.states),
        counted("PARAMETERS", p.parameters),
        counted("INPUTS", p.inputs),
        f"bool ADDS = {str(len(p.added) == len(p.preactivations)).lower()};",
        f"uint64_t U_ORDER = {_order(u_gates, p.shares('u'))};",
        f"bool FINITE = {str(_is_finite(p)).lower()};",
        bits("UNBOUNDED", list(p.saved), p.unbounded),
        read("SAVED_READ", "before", list(p.saved.values())),
        read("READS_BEFORE", "before", derivative),
        read("READS_AFTER", "after", derivative),
    ]
    return [f"static constexpr {line}" for line in lines]


def _order(blocks: Sequence[str], gates: Sequence[str]) -> str:
    """Of which of `gates` each block is, a hexadecimal digit each, the last one's first."""
    return "0x" + "".join(f"{gates.index(gate):x}" for gate in reversed(blocks)) if blocks else "0"


def _is_finite(p: Program) -> bool:
    """Whether finite numbers give finite states and saved values, whatever they are."""
    return not any(e.op in ("divide", "log", "exp", "sqrt") for e in below([*p.after, *p.saved.values()]))


def _remark(names: Sequence[str]) -> str:
    return f"  // {', '.join(names)}" if names else ""


def _preactivations(p: Program) -> list[str]:
    lines = [f"pre[{place}] = {sum_of_shares(p, block)};" for place, block in enumerate(p.preactivations)]
    arguments = [
        _argument("gx", "X_GATES", reads=True, used=bool(p.shares("x"))),
        _argument("gh", "U_GATES", reads=True, used=bool(p.shares("u"))),
        _argument("pre", "PREACTIVATIONS", reads=False, used=True),
    ]
    return _function("preactivations", arguments, lines)


def _step(p: Program) -> list[str]:
    return _computing(
        "step",
        [
            _Array("pre", "PREACTIVATIONS", p.preactivations),
            *_given(p, "before"),
            _Array("after", "STATES", values=p.after),
            _Array("saved", "SAVED", values=list(p.saved.values())),
        ],
        p.names,
    )


def _derivative(p: Program) -> list[str]:
    return _computing(
        "derivative",
        [
            _Array("dafter", "STATES", [leaf("arriving", state) for state in p.states]),
            _Array("saved", "SAVED", [leaf("saved", name) for name in p.saved]),
            *_given(p, "before", "after"),
            _Array("dblocks", "BLOCKS", values=p.d_blocks),
            _Array("dbefore", "STATES", values=p.d_before),
        ],
        p.d_names,
    )


def _given(p: Program, *states: str) -> list[_Array]:
    """What a step and its derivative both read."""
    return [
        *(_Array(name, "STATES", [leaf(name, state) for state in p.states]) for name in states),
        _Array("parameters", "PARAMETERS", [leaf("parameter", name) for name in p.parameters]),
        _Array("inputs", "INPUTS", [leaf("input", name) for name in p.inputs]),
    ]


def _computing(name: str, arrays: Sequence[_Array], called: Mapping[Expression, str]) -> list[str]:
    """A function that writes the arrays which have values, from those which have leaves."""
    outputs = [e for array in arrays for e in array.values or ()]
    read = {e for e in below(outputs) if e.is_leaf}
    leaves: dict[Expression, str] = {}
    lines, arguments = [], []
    for array in arrays:
        unpacked = []
        for place, e in enumerate(array.leaves):
            if e in read:
                leaves[e] = free(_ascii(variable(e)), {*TAKEN, *leaves.values()})
                unpacked.append(f"{leaves[e]} = {array.name}[{place}]")
        lines += _filled("const float ", unpacked, ";", "    ") if unpacked else []
        used = bool(unpacked or array.values)
        arguments.append(_argument(array.name, array.size, reads=array.values is None, used=used))
    write = Writer(LANGUAGE, leaves, {e: _ascii(own) for e, own in called.items()}, outputs, TAKEN)
    assigned = [
        f"{array.name}[{place}] = {write.text(e)};" for array in arrays for place, e in enumerate(array.values or ())
    ]
    return ["template <class Element>", *_function(name, arguments, [*lines, *write.lines, *assigned])]


def _argument(name: str, size: str, *, reads: bool, used: bool) -> str:
    kind = f"{'const ' if reads else ''}Values<{size}>&"
    return f"{kind} {name}" if used else kind


def _function(name: str, arguments: Sequence[str], lines: Sequence[str]) -> list[str]:
    head = f"static DEVICE void {name}("
    return [*_filled(head, arguments, ") {", " " * len(head)), *(f"  {line}" for line in lines), "}"]


def _filled(first: str, parts: Sequence[str], last: str, indent: str) -> list[str]:
    """`first`, the parts with commas between them, and `last`, in lines as long as they may be within a class."""
    lines, line = [], first
    for place, part in enumerate(parts):
        end = last if place == len(parts) - 1 else ","
        if line not in (first, indent) and len(line) + len(f" {part}{end}") > WIDTH - 4:
            lines.append(line)
            line = indent
        line += f"{'' if line in (first, indent) else ' '}{part}{end}"
    return [*lines, line]


def _ascii(name: str) -> str:
    """What every compiler takes for a name."""
    return "".join(letter if letter.isascii() else f"u{ord(letter):x}" for letter in name)
