"""Random cells: each one's derivative against autograd, and what its contract promises.

`python -m tests.cells.random_cells --cells 2000 --seed 0` tries as many as it is told. A failing one is shrunk by
hypothesis and printed as the function that an author would have written. With --layers each is a layer by the kernels
of a backend: Numba takes some 10 seconds to compile them, a C++ compiler half a minute (cuda, which runs them on the
CPU), and Triton interprets them. A failing one is printed as it was found.
"""

from __future__ import annotations

import argparse
import linecache
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection
from functools import partial
from itertools import combinations
from types import FunctionType
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis import strategies as st

from fastrnn import backends, cells
from fastrnn.cells.author import traced
from fastrnn.cells.compiler.derivative import gradients
from fastrnn.cells.compiler.expression import OF_GATES, ZERO, Expression, below, leaf
from fastrnn.cells.compiler.program import Program
from fastrnn.cells.compiler.rules import is_bounded
from fastrnn.cells.compiler.text import read
from fastrnn.cells.contract import Cell
from fastrnn.cells.emit import pytorch
from tests.cells.gradients import arguments, assert_derivative

PRIMITIVES = (
    *(
        "{0} + {1}",
        "{0} - {1}",
        "{0} * {1}",
        "{0} / (1 + {1} * {1})",
        "-{0}",
        "2 - {0}",
        "0.123456789 * {0}",
        "where({0} <= {1}, 2, -0.5)",
        "{0} ** 3",
    ),
    *("sigmoid({0})", "tanh({0})", "relu({0})", "softplus({0})", "log_sigmoid({0})", "abs({0})", "exp(-abs({0}))"),
    *("log(1 + abs({0}))", "sqrt(1 + {0} * {0})", "minimum({0}, {1})", "maximum({0}, {1})", "stop_gradient({0})"),
    *("mean({0})", "rms_norm({0}, {1})", "layer_norm(({0}, {1}), {2})[1]"),
    *("mix({0}, {1}, {2})", "where({0} <= {1}, {2}, {3})", "where({0} < {1}, {2}, {3})"),
)
"""None leaves the numbers for which it is defined."""
MOST_PRIMITIVES = 15
NAMES = ("torch", "gx", "saved", "before", "inputs", "dx_n", "h_before", "c_after", "dh_after", "a_a", "x_b", "u_a")
NAMES += ("tanh_h", "t1", "saved0", "functions", "dv1", "float", "self")
"""What a function may call its values, and generated code as well."""
MOST_SEARCHED = 10
"""values of a step of which every subset is tried"""
LARGE = 1e6


@st.composite
def functions(draw: st.DrawFn) -> str:
    """The source of a cell's function: gates whose shares are added in some order, and primitives of what there is."""
    states = ["h", "c", "n"][: draw(st.integers(1, 3))]
    arguments = [*["p", "q"][: draw(st.integers(0, 2))], *["k"][: draw(st.integers(0, 1))]]
    values = [*states, *arguments]
    unused = values[1:]
    names = [*draw(st.lists(st.sampled_from(NAMES), max_size=3, unique=True)), *(f"v{n}" for n in range(100))]
    lines: dict[str, str] = {}

    def line(text: str) -> str:
        name = names.pop(draw(st.integers(0, 3)))
        lines[name] = text
        values.append(name)
        unused.append(name)
        return name

    def argument() -> str:
        """The newest of what nothing is made of yet, as a rule, so that little is left over."""
        if unused and draw(st.integers(0, 2)):
            return unused.pop()
        return draw(st.sampled_from(values[::-1]))

    for gate in "abcd"[: draw(st.integers(1, 4))]:
        kind = draw(st.sampled_from(["added", "added", "x", "u", "apart"]))
        if kind == "added":
            products = st.tuples(st.sampled_from(values), st.sampled_from(values)).map(" * ".join)
            line(_sum(draw, [f"x.{gate}", f"u.{gate}", *draw(st.lists(products, max_size=2))], line))
        else:
            shares = [f"{share}.{gate}" for share in {"apart": "xu"}.get(kind, kind)]
            values += shares
            unused += shares
    for _ in range(draw(st.integers(1, MOST_PRIMITIVES))):
        line(draw(st.sampled_from(PRIMITIVES)).format(*(argument() for _ in range(4))))
    after = [argument() for _ in states]

    used = _used(after, lines)
    if not any(name.startswith("x.") for name in used):
        after[0] += " + x.a"
    keywords = [f"{name}: {'Step' if name == 'k' else 'Any'}" for name in arguments if name in used]
    given_shares = ["x", "u"] if any(name.startswith("u.") for name in used) else ["x"]
    head = ", ".join([*given_shares, *states, *(["*", *keywords] if keywords else [])])
    body = [f"    {name} = {text}" for name, text in lines.items() if name in used]
    return "\n".join([f"def cell({head}):", *body, f"    return {', '.join(after)}"])


def _sum(draw: st.DrawFn, terms: list[str], line: Callable[[str], str]) -> str:
    """Of the terms, in any order and grouping; a part of it may have a name."""
    terms = draw(st.permutations(terms))
    while len(terms) > 1:
        place = draw(st.integers(0, len(terms) - 2))
        text = f"{terms[place]} + {terms[place + 1]}"
        is_named = len(terms) > 2 and draw(st.booleans())
        terms[place : place + 2] = [line(text) if is_named else f"({text})"]
    return terms[0][1:-1]


def _used(texts: list[str], lines: dict[str, str]) -> set[str]:
    """The names and shares of gates that `texts` are made of."""
    used: set[str] = set()
    waiting = list(texts)
    while waiting:
        found = set(re.findall(r"[xu]\.\w+|\w+", waiting.pop())) - used
        used |= found
        waiting += [lines[name] for name in found if name in lines]
    return used


def program(source: str) -> Program:
    linecache.cache["<cell>"] = (len(source), None, source.splitlines(keepends=True), "<cell>")
    namespace: dict[str, Any] = {name: getattr(cells, name) for name in cells.__all__} | {"Any": Any}
    exec(compile(source, "<cell>", "exec"), namespace)
    function = namespace["cell"]
    assert isinstance(function, FunctionType)
    return traced(function, None)


def program_or_nothing(source: str) -> Program:
    """As `program`, for hypothesis: x - x and the like may leave nothing of a gate."""
    try:
        return program(source)
    except cells.CellError as error:
        assume("is never used" not in str(error) and "no gate has a share" not in str(error))
        raise


def check(source: str) -> None:
    """All that is promised of the cell of this function."""
    made = program_or_nothing(source)
    namespace: dict[str, Any] = {}
    code = pytorch.module([made], "")
    assert pytorch.module([read(made.text)], "") == code
    exec(code, namespace)
    cell: Cell = namespace["CELLS"]["cell"]
    for places in (cell.dgx, cell.dgh):
        assert sorted(places) == list(range(min(places, default=0), min(places, default=0) + len(places)))
    check_saved(made)
    torch.manual_seed(0)
    given = arguments(cell)
    after, saved = cell.step(given.gx, given.gh, given.before, given.parameters, given.inputs)
    assume(all(bool((state.abs() < LARGE).all()) for state in (*after, *saved)))
    assert_derivative(cell, given)


def check_saved(p: Program) -> None:
    """Every saved value is used, none follows from the others and what is at hand, none is the same for all units, and
    fewer would not do."""
    read = below([*p.d_blocks, *p.d_before, *p.d_after, *p.d_outside.values()])
    assert {leaf("saved", name) for name in p.saved} <= set(read)
    saved = set(p.saved.values())
    for e in saved:
        assert not e.is_uniform
        assert not _follows([e], {*p.after, *saved} - {e})
    total = gradients((e, leaf("arriving", state)) for e, state in zip(p.after, p.states, strict=True))
    others = [leaf("parameter", name) for name in p.parameters] + [leaf("input", name) for name in p.inputs]
    shares = [e for e in below(p.after) if e.op in OF_GATES]
    wanted = [total.get(e, ZERO) for e in (*shares, *(leaf("before", state) for state in p.states), *p.after, *others)]
    assert _follows(wanted, {*p.after, *saved})
    candidates = [e for e in below(p.after) if e not in p.after and not e.is_uniform and not _follows([e], set())]
    if len(candidates) <= MOST_SEARCHED:
        costs = {len(some) + _unbounded(some) / 100 for some in _enough(candidates, wanted, p)}
        assert len(saved) + _unbounded(saved) / 100 == min(costs)


def _enough(candidates: list[Expression], wanted: list[Expression], p: Program) -> list[tuple[Expression, ...]]:
    """The smallest subsets that tell the derivative."""
    for count in range(len(candidates) + 1):
        found = [some for some in combinations(candidates, count) if _follows(wanted, {*p.after, *some})]
        if found:
            return found
    raise AssertionError("all values together do not tell the derivative")


def _unbounded(values: Collection[Expression]) -> int:
    return sum(not is_bounded(e) for e in values)


def _follows(wanted: list[Expression], known: set[Expression]) -> bool:
    """Whether the expressions can be computed from those that are known, states, parameters and inputs."""
    return all(e in known or e.op not in OF_GATES for e in below(wanted, known))


repeatable = settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))


def run(count: int, number: int, check: Callable[[str], None] = check, shrinks: bool = True) -> Counter[str]:
    """Tries `count` cells; tells of what they were made."""
    met: Counter[str] = Counter()

    @seed(number)
    @settings(
        repeatable,
        derandomize=False,
        max_examples=count,
        print_blob=False,
        phases=[Phase.generate, *([Phase.shrink] if shrinks else [])],
    )
    @given(functions())
    def cells_keep_their_promises(source: str) -> None:
        check(source)
        met.update(["cells", *{e.op for e in below(program(source).after)}])

    cells_keep_their_promises()
    return met


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.cells.random_cells", description=__doc__)
    parser.add_argument("--cells", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", choices=("numba", "triton", "cuda"), help="layers by this backend's kernels")
    options = parser.parse_args()
    begin = time.perf_counter()
    if options.layers:
        from tests.cells import cuda_layers, kernel_layers

        with tempfile.TemporaryDirectory() as directory:  # nobody needs these kernels again
            os.environ |= {"FASTRNN_CACHE_DIR": directory, "TRITON_INTERPRET": "1"}
            of_backend = partial(kernel_layers.check_layer, backend=backends.module(options.layers))
            check_layer = cuda_layers.check_layer if options.layers == "cuda" else of_backend
            met = run(options.cells, options.seed, check_layer, shrinks=False)
    else:
        met = run(options.cells, options.seed)
    print(f"{met.pop('cells')} cells, {time.perf_counter() - begin:.0f} s; of them with")
    print(", ".join(f"{op} {count}" for op, count in met.most_common()))


if __name__ == "__main__":
    main()
