"""One call of a cell's function with symbols: what it names, on which lines, and how it is told what is wrong."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import CodeType, FrameType
from typing import Any, NoReturn

from fastrnn.cells.compiler.expression import Expression


class CellError(TypeError):
    """A cell's function cannot be turned into kernels. The message names the cell, the line, and what to write."""


_current: ContextVar[Trace | None] = ContextVar("_current", default=None)


class Trace:
    """A call of the function with this code; `name` is the cell's."""

    def __init__(self, name: str, code: CodeType) -> None:
        self.name, self._code = name, code
        self.names: dict[Expression, str] = {}
        """what the function called its values, in the order in which it made them"""

    def variables(self) -> Mapping[str, Any]:
        """The function's own, where it is now."""
        frame = self._frame()
        return {} if frame is None else frame.f_locals

    def _frame(self) -> FrameType | None:
        """The function's own, if it is what calls."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code is not self._code:
            frame = frame.f_back
        return frame

    def refuse(self, reason: str) -> NoReturn:
        """Raises `CellError` at the line where the function is, or at its first one if it does not run."""
        frame = self._frame()
        line = self._first_line() if frame is None else frame.f_lineno
        raise CellError(f"{self.name}: {reason}\n  {self._code.co_filename}, line {line}: {self._source(line)}")

    def _first_line(self) -> int:
        """Where `def` stands, below the decorators."""
        first, last = self._code.co_firstlineno, max(line for *_, line in self._code.co_lines() if line is not None)
        return next((line for line in range(first, last + 1) if self._source(line).startswith("def ")), first)

    def _source(self, line: int) -> str:
        return linecache.getline(self._code.co_filename, line).strip()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Whose functions are called without a symbol, `current` tells."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)


def current() -> Trace:
    """The trace at work in this thread.

    Raises:
        CellError: there is none.
    """
    trace = _current.get()
    if trace is None:
        raise CellError("the functions of fastrnn.cells are for the function of a cell: see fastrnn.cell")
    return trace
