"""What a planted fault is, and how it gets into a tree and out of it again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import cache_from_source
from pathlib import Path
from typing import NamedTuple


class Fault(NamedTuple):
    """A change of one place in one file that some test must find."""

    name: str
    """for the command line"""
    file: str
    """relative to the repository"""
    old: str
    """occurs in it once"""
    new: str
    """takes its place"""
    why: str
    """what it breaks"""


class Misplaced(Exception):
    """A fault has no place, or more than one, in the source as it is now."""


def planted_text(fault: Fault, text: str) -> str:
    """A file's text with the fault in it. Raises Misplaced."""
    found = text.count(fault.old)
    if found != 1:
        raise Misplaced(f"{fault.name}: its text must stand once in {fault.file}, it stands there {found} times")
    return text.replace(fault.old, fault.new)


@contextmanager
def planted(fault: Fault, tree: Path) -> Iterator[None]:
    """Within it, the fault is in the tree. Raises Misplaced."""
    path = tree / fault.file
    healthy = path.read_text()
    _write(path, planted_text(fault, healthy))
    try:
        yield
    finally:
        _write(path, healthy)


def _write(path: Path, text: str) -> None:
    """Bytecode goes: Python takes it for that of a source of the same size that was written in the same second."""
    path.write_text(text)
    Path(cache_from_source(str(path))).unlink(missing_ok=True)
