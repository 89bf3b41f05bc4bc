"""A cell's program as text: it comes back the same, and what is none is refused."""

from __future__ import annotations

import json
import pickle
import random
from contextlib import suppress
from typing import Any

import pytest

import fastrnn
from fastrnn.cells import CELLS, Cell, known, tanh
from fastrnn.cells.compiler.text import read
from fastrnn.cells.emit.backends import EMITTERS
from tests.cells.zoo import ZOO


def assert_same(cell: Cell) -> None:
    """Code of every backend, and the contract."""
    assert cell.program is not None
    again = known.of_text(cell.program.text)
    assert again.program is not None
    assert again.program.text == cell.program.text
    for emitter in EMITTERS.values():
        assert emitter.text(again.program) == emitter.text(cell.program)


@pytest.mark.parametrize("cell", ZOO.values(), ids=ZOO)
def test_a_program_comes_back_the_same(cell: Cell) -> None:
    assert_same(cell)


def test_a_cell_that_is_read_is_the_one_that_is_known() -> None:
    star = ZOO["star"]
    assert star.program is not None
    assert known.of_text(star.program.text) is known.known(star)


def test_cells_of_one_name_are_told_apart() -> None:
    def made(scale: float) -> Cell:
        @fastrnn.cell
        def leaky(x: Any, u: Any, h: Any) -> Any:
            return scale * h + tanh(x.a + u.a)

        return leaky

    one, again, other = made(0.5), made(0.5), made(0.25)
    assert one.key == again.key != other.key
    assert known.known(one) is known.known(again)
    assert not {one.key, other.key} & CELLS.keys()


def test_a_cell_that_no_module_shows_is_pickled_as_its_program() -> None:
    @fastrnn.cell
    def hidden(x: Any, u: Any, h: Any) -> Any:
        return tanh(x.a + u.a)

    again = pickle.loads(pickle.dumps(hidden))
    assert again.key == hidden.key
    assert pickle.loads(pickle.dumps(again)) is again
    assert pickle.loads(pickle.dumps(ZOO["mgu"])) is ZOO["mgu"]


def changed(**parts: Any) -> str:
    program = ZOO["mgu"].program
    assert program is not None
    return json.dumps({**json.loads(program.text), **parts})


WRONG = {
    "no JSON": "{",
    "no program": "[1, 2]",
    "nothing": "{}",
    "another version": changed(version=2),
    "a name that is code": changed(name="f():\n    import os\ndef g"),
    "a keyword": changed(gates=["f", "if"]),
    "an author's name that is code": changed(names=[[0, "x; y"]]),
    "an unknown operation": changed(nodes=[["x", "f"], ["system", 0]], after=[1], names=[]),
    "one that has no gradient": changed(
        nodes=[["x", "f"], ["system", 0], ["stop_gradient", 1]], after=[2], names=[], gates=["f"]
    ),
    "too many arguments": changed(nodes=[["x", "f"], ["tanh", 0, 0]], after=[1], names=[]),
    "an expression to come": changed(nodes=[["x", "f"], ["tanh", 1]], after=[1], names=[]),
    "from the end": changed(nodes=[["x", "f"], ["tanh", -1]], after=[1], names=[]),
    "a gate that is none": changed(nodes=[["x", "q"]], after=[0], names=[]),
    "a leaf of the derivative": changed(nodes=[["after", "h"]], after=[0], names=[]),
    "no states": changed(states=[], after=[]),
    "a state too many": changed(after=[0, 0]),
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_what_is_no_program_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="this is no program of a cell: "):
        read(text)


def test_text_that_is_changed_raises_nothing_else() -> None:
    program = ZOO["slstm"].program
    assert program is not None
    text, dice = program.text, random.Random(0)
    for _ in range(200):
        place = dice.randrange(len(text))
        broken = text[:place] + dice.choice(['"', "1", "[", "]", ",", "-", "x", ""]) + text[place + 1 :]
        with suppress(ValueError):  # or another program, of a longer number, say
            read(broken)
