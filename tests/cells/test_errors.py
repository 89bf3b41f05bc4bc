"""What the compiler refuses: the message names the cell, the file, the line, and what to write instead."""

from __future__ import annotations

import functools
import linecache
import math
import random
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch

import fastrnn
from fastrnn import cells
from fastrnn.cells import CellError, sigmoid, tanh

FILE = "cells.py"


def made(body: str, head: str = "x, u, h", gates: str = "", **names: Any) -> Any:
    """The cell `f` of these lines; what they return is line 3."""
    source = f"@fastrnn.cell{gates}\ndef f({head}):\n" + "".join(f"    {line}\n" for line in body.split("\n"))
    linecache.cache[FILE] = (len(source), None, source.splitlines(keepends=True), FILE)
    namespace = {name: getattr(cells, name) for name in cells.__all__} | {"fastrnn": fastrnn} | names
    exec(compile(source, FILE, "exec"), namespace)
    return namespace["f"]


STEP = "return tanh(x.i + u.i) + h"
IF = "a step is the same for all values: in place of `if`, `and`, `or`, `not`, max() and min() use where(), maximum() "
IF += "and minimum() of fastrnn.cells"
KNOWN = "+, -, *, /, comparisons, and of fastrnn.cells abs, exp, layer_norm, log, log_sigmoid, maximum, mean, minimum, "
KNOWN += "mix, relu, rms_norm, sigmoid, softplus, sqrt, stop_gradient, tanh, where"
EQUAL = "== and != are not known: two computed values are hardly ever equal; use where(a <= b, ...)"
MATH = "a symbol has no value yet: use the functions of fastrnn.cells, not those of math"
ITERATED = "a symbol stands for one unit of one sequence: there is nothing to iterate over or to sum"
PARAMETER = "is no constant of a cell: what differs by unit is a parameter, an argument after *"
STATES = "it must return the states after the step, h, got"
CHANGES = "two calls of the function gave two different steps: it must depend on nothing that changes"
ARGUMENTS = (
    "the arguments are x, then u if the state is multiplied by weights, then the states, the output first, as in "
)
ARGUMENTS += "(x, u, h, c); got"

EXPRESSIONS = {
    "x.i if h else u.i": IF,
    "h and x.i": IF,
    "not h": IF,
    "max(x.i, u.i)": IF,
    "x.i if h > 0 else u.i": IF,
    "where(0 < h < 1, x.i, u.i)": IF,
    "x.i == u.i": EQUAL,
    "x.i != 0": EQUAL,
    "(x.i > 0) == True": EQUAL,
    "h in [x.i]": EQUAL,
    "sum(x.i)": ITERATED,
    "[v for v in h]": ITERATED,
    "{h}": "a symbol cannot be in a set or the key of a dict: it has no value yet",
    "len(h)": "a symbol stands for one unit of one sequence: it has no length",
    "h[0]": "a symbol stands for one unit of one sequence: it has no elements",
    "math.tanh(x.i)": MATH,
    "float(h)": MATH,
    "round(h)": MATH,
    "int(h)": MATH,
    "np.tanh(x.i)": "numpy.tanh knows no symbols, only numbers: call tanh() of fastrnn.cells",
    "np.arctan2(x.i, h)": f"numpy.arctan2 knows no symbols, only numbers: use {KNOWN}",
    "np.ones(3) * x.i": f"an ndarray {PARAMETER}",
    "x.i * np.ones(3)": f"an ndarray {PARAMETER}",
    "np.array(h)": "NumPy's arrays hold numbers, not symbols",
    "torch.tanh(x.i)": "torch.tanh knows no symbols, only numbers: call tanh() of fastrnn.cells",
    "torch.atan(x.i)": f"torch.atan knows no symbols, only numbers: use {KNOWN}",
    "torch.nn.functional.silu(x.i)": f"torch.silu knows no symbols, only numbers: use {KNOWN}",
    "torch.ones(3) * x.i": f"a Tensor {PARAMETER}",
    "x.i * torch.ones(3)": f"a Tensor {PARAMETER}",
    "torch.maximum(torch.ones(3), x.i)": f"a Tensor {PARAMETER}",
    "tanh(torch.ones(3))": f"a Tensor {PARAMETER}",
    "x.i.mean()": "a symbol has no 'mean': call mean() of fastrnn.cells",
    "torch.mean(x.i)": "torch.mean knows no symbols, only numbers: call mean() of fastrnn.cells",
    "x.i.sigmoid()": "a symbol has no 'sigmoid': call sigmoid() of fastrnn.cells",
    "x.i.shape": f"a symbol has no 'shape': use {KNOWN}",
    "x.i // 2": f"this operator is not known to cells: use {KNOWN}",
    "2 ** x.i": f"this operator is not known to cells: use {KNOWN}",
    "x.i @ u.i": f"this operator is not known to cells: use {KNOWN}",
    "x.i ** 0.5": "** 0.5: powers are positive integers; use sqrt(), 1 / x, or exp(p * log(x))",
    "x.i ** -1": "** -1: powers are positive integers; use sqrt(), 1 / x, or exp(p * log(x))",
    "where((h > 0) & (h < 1), x.i, u.i)": "comparisons are not combined by & and |: put one where() into another",
    "where(h, x.i, u.i)": "where() takes a comparison first, such as x > 0, not a Symbol",
    "h + (h > 0)": "a comparison is no number: use where(condition, a, b)",
    "x.i + 'a'": "a str is neither a symbol nor a number",
    "x.i + 1j": "a complex is neither a symbol nor a number",
    "tanh(None)": "None is neither a symbol nor a number",
    "h * math.nan": "NaN is no constant of a cell",
    "log(0) + x.i": "this has no value: math domain error",
    "1 / (0 * h)": "this has no value: float division by zero",
    "exp(1000)": "this has no value: math range error",
    "maximum(math.inf, 0) - math.inf": "this has no value: it is not a number",
    "torch.stack([x.i])": f"torch.stack knows no symbols, only numbers: use {KNOWN}",
    "x + 1": "x has a value for each gate: name one, as in x.i",
    "h * u": "u has a value for each gate: name one, as in u.i",
    "tanh(x)": "x has a value for each gate: name one, as in x.i",
    "-x": "x has a value for each gate: name one, as in x.i",
    "x > 0": "x has a value for each gate: name one, as in x.i",
    "h > x": "x has a value for each gate: name one, as in x.i",
    "x ** 2": "x has a value for each gate: name one, as in x.i",
    "x == 0": "x has a value for each gate: name one, as in x.i",
    "x['i']": "x[...]: gates have names, as in x.i",
    "x._i": "x._i: a gate's name must not begin with _",
    "getattr(x, 'i j')": "'i j' cannot be the name of a gate: it is none of Python's",
    "getattr(u, '0')": "'0' cannot be the name of a gate: it is none of Python's",
    "getattr(x, 'in')": "'in' cannot be the name of a gate: it is none of Python's",
    "h * 10 ** 400": "this is no constant of a cell: int too large to convert to float",
    "helper(x.i, h)": IF,
}


RESULTS = {
    "(x.i, h)": f"{STATES} 2 values",
    "()": f"{STATES} 0 values",
    "None": f"{STATES} None",
    "[tanh(x.i + u.i)]": f"{STATES} a list",
    "0.0": f"{STATES} a float",
    "x": f"{STATES} x",
    "h > 0": f"{STATES} a Condition",
    "h": "no gate has a share of the input: a cell must use x",
    "u.i * h": "no gate has a share of the input: a cell must use x",
    "tanh(x.i + u.i) + 0 * x.j": "the gate 'j' is never used",
    "x.i * random.random()": CHANGES,
    "mix(sigmoid(x.i), math.inf, math.inf)": "its derivative has no value: it is not a number",
    "h + x.i + u.j": "the parameter 'p' is never used",
}
"""Told once the function has returned, of its first line."""


def helper(a: Any, b: Any) -> Any:
    """An author's own: it is the line of the cell's function that is named."""
    return a if b else b


LIBRARIES = {"np": np, "torch": torch, "math": math, "random": random, "helper": helper}


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_what_cannot_be_computed(text: str) -> None:
    with pytest.raises(CellError) as caught:
        made(f"y = 0\nreturn {text}", **LIBRARIES)
    assert str(caught.value) == f"f: {EXPRESSIONS[text]}\n  {FILE}, line 4: return {text}"


@pytest.mark.parametrize("text", RESULTS)
def test_what_is_no_result(text: str) -> None:
    head = "x, u, h" if "'p'" not in RESULTS[text] else "x, u, h, *, p"
    with pytest.raises(CellError) as caught:
        made(f"return {text}", head, **LIBRARIES)
    assert str(caught.value) == f"f: {RESULTS[text]}\n  {FILE}, line 2: def f({head}):"


SIGNATURES = {
    "x, u": f"{ARGUMENTS} (x, u)",
    "x": f"{ARGUMENTS} (x)",
    "": f"{ARGUMENTS} ()",
    "u, h": f"{ARGUMENTS} (u, h)",
    "h, x": f"{ARGUMENTS} (h, x)",
    "u, x, h": f"{ARGUMENTS} (u, x, h)",
    "x, h, u": f"{ARGUMENTS} (x, h, u)",
    "x, h, *, u": f"{ARGUMENTS} (x, h)",
    "x, u, *states": "*states: every argument of a cell must have a name",
    "x, u, h, **others": "**others: every argument of a cell must have a name",
    "x, u, h, *, p=1.0": "p has a default: a layer gives every argument a value",
    "x, u, h=0": "h has a default: a layer gives every argument a value",
    "x, u, _h": "_h: a name of a cell must not begin with _",
    "x, u, h, *, weight_ih": "weight_ih is what layers call one of their own: choose another name",
    "x, u, h, *, lengths": "lengths is what layers call one of their own: choose another name",
    "x, u, h, *, forward": "forward is what layers call one of their own: choose another name",
    "x, u, h, *, double": "double is what layers call one of their own: choose another name",
    "x, u, h, *, i": "'i' is both a gate and an argument: give one of them another name",
    "x, u, h, *, x_i": "'x_i' is a share of the gate 'i': give the argument another name",
    "x, u, h, *, k: Step": "the input of a step 'k' is never used",
}


@pytest.mark.parametrize("head", SIGNATURES)
def test_what_is_no_signature(head: str) -> None:
    name = head.split()[-1] if "*, " in head else "1"
    use = f"{name} + " if head.endswith("i") else ""
    with pytest.raises(CellError) as caught:
        made(f"return {use}tanh(x.i + u.i) + h", head)
    assert str(caught.value) == f"f: {SIGNATURES[head]}\n  {FILE}, line 2: def f({head}):"


GATES = {
    "'ii'": "the gate 'i' is given twice",
    "'i j'": "gates must be names, as in gates='ifgo' or gates=('reset', 'update'), got ' '",
    "('_i',)": "gates must be names, as in gates='ifgo' or gates=('reset', 'update'), got '_i'",
    "('in',)": "gates must be names, as in gates='ifgo' or gates=('reset', 'update'), got 'in'",
    "(1,)": "gates must be names, as in gates='ifgo' or gates=('reset', 'update'), got 1",
    "4": "gates must be names, as in gates='ifgo' or gates=('reset', 'update'), got 4",
    "'ij'": "the gate 'j' is never used",
}


@pytest.mark.parametrize("gates", GATES)
def test_what_are_no_gates(gates: str) -> None:
    with pytest.raises(CellError) as caught:
        made(STEP, gates=f"(gates={gates})")
    assert str(caught.value) == f"f: {GATES[gates]}\n  {FILE}, line 2: def f(x, u, h):"


def test_letters_that_python_takes_for_one_are_one() -> None:
    """It reads the micro sign as a Greek letter."""
    cell = made("return tanh(x.\u00b5 + getattr(u, '\u00b5'))", gates="(gates='\u00b5')")
    assert cell.x_gates == cell.u_gates == ("\u03bc",)


def test_a_gate_may_have_any_other_name() -> None:
    assert made("return tanh(x.no_number + u.type)").x_gates == ("no_number",)


def test_a_gate_that_is_misspelt() -> None:
    with pytest.raises(CellError) as caught:
        made("return tanh(x.i + u.l)", gates="(gates='ij')")
    assert str(caught.value) == f"f: u.l: the cell has no gate 'l', only i, j\n  {FILE}, line 3: return tanh(x.i + u.l)"


class Callable:
    def __call__(self, x: Any, h: Any) -> Any:
        return tanh(x.a)


@pytest.mark.parametrize(
    ("thing", "kind"),
    [
        (Callable(), "a Callable"),
        (Callable, "a type"),
        (Callable().__call__, "a method"),
        (len, "a builtin_function_or_method"),
        (functools.partial(helper), "a partial"),
        ("ifgo", "a str: the gates are a keyword, gates=..."),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_function(thing: Any, kind: str) -> None:
    with pytest.raises(CellError) as caught:
        fastrnn.cell(thing)
    assert str(caught.value) == f"a cell is made from a function, got {kind}"


def test_a_function_without_a_name() -> None:
    with pytest.raises(CellError) as caught:
        fastrnn.cell(lambda x, h: tanh(x.a))  # a lambda
    file, line = __file__, (lambda: 0).__code__.co_firstlineno - 1
    assert str(caught.value) == (
        "<lambda>: a cell has the name of its function: write def name(x, u, h): ... in place of a lambda"
        f"\n  {file}, line {line}: fastrnn.cell(lambda x, h: tanh(x.a))  # a lambda"
    )


@pytest.mark.parametrize(("kept", "use"), [("h", "found[0]"), ("h > 0", "where(found[0], h, x.i)")])
def test_a_symbol_of_another_cell(kept: str, use: str) -> None:
    found: list[Any] = []
    made(f"found.append({kept})\nreturn tanh(x.i + u.i) + h", found=found)
    line = f"return tanh(x.i + u.i) + {use}"
    with pytest.raises(CellError) as caught:
        made(line, found=found)
    assert str(caught.value) == (
        "f: a symbol of another call is used: a cell's function must keep nothing between calls"
        f"\n  {FILE}, line 3: {line}"
    )


def test_what_changes_between_calls() -> None:
    numbers = count()
    with pytest.raises(CellError, match=CHANGES):
        made("return x.i * next(numbers)", numbers=numbers)


def test_functions_outside_a_cell() -> None:
    with pytest.raises(CellError) as caught:
        sigmoid(1.0)
    assert str(caught.value) == "the functions of fastrnn.cells are for the function of a cell: see fastrnn.cell"


def test_the_authors_own_exceptions_pass() -> None:
    error = KeyError("mine")

    def fails() -> None:
        raise error

    with pytest.raises(KeyError) as caught:
        made("fails()\nreturn h", fails=fails)
    assert caught.value is error
    with pytest.raises(CellError, match="are for the function of a cell"):
        tanh(1.0)  # the call is over, whatever became of it


def test_numbers_of_every_kind_are_constants() -> None:
    text = "return tanh(x.i + u.i) * np.float32(2) + np.float64(3) * h + np.int64(2) - h / True + {} ** np.int64(2)"
    one = made(text.format("h"), np=np).program
    other = made("return tanh(x.i + u.i) * 2.0 + 3 * h + 2 - h / 1 + h ** 2").program
    assert one.after == other.after


@pytest.mark.parametrize("sign", ["<", "<=", ">", ">="])
def test_numbers_of_numpy_are_compared_from_the_left(sign: str) -> None:
    one, other = (made(f"return where({number} {sign} x.a, h, 0)", "x, h", np=np) for number in ("np.float64(2)", "2"))
    assert one.program.after == other.program.after


@pytest.mark.parametrize("annotation", ["Step", "cells.Step", "'Step'", "Other", "absent.Step"])
def test_inputs_of_a_step_by_any_spelling(annotation: str) -> None:
    cell = made("return x.a + k * p", f"x, h, *, k: {annotation}, p: absent", cells=cells, Other=cells.Step)
    assert (cell.inputs, cell.parameters) == (("k",), ("p",))
