"""What the commands of this package share: exit statuses, what their options accept, and where their tables go."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.cases import DEFAULT_MODES, MODULES, Case, parse_shapes

OK, FAILURE, USAGE_ERROR, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses: everything was measured; it was, and is not as it should be; the command line was wrong; Ctrl-C."""
PLAIN_WIDTH = 240
"""Columns that a table may take in a file or a pipe: the widest row fits."""


class UsageError(Exception):
    """What is wrong with the command line."""


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def positive_float(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def probability(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 0 and below 1, got {text}")
    return value


def listed(values: Iterable[str]) -> list[str]:
    """What a list option names, given with spaces, with commas or both, without repeats."""
    return list(dict.fromkeys(part for value in values for part in value.split(",") if part))


def known(what: str, names: list[str], choices: Iterable[str]) -> list[str]:
    """`names`; raises UsageError for one that is not among `choices`, or if there is none."""
    choices = list(choices)
    for name in names:
        if name not in choices:
            raise UsageError(f"unknown {what} {name!r}; expected one of {', '.join(choices)}")
    if not names:
        raise UsageError(f"no {what} given; expected some of {', '.join(choices)}")
    return names


def known_backends(names: list[str]) -> list[str]:
    """`names`; raises UsageError for one that fastrnn does not have or that cannot run on this machine."""
    from fastrnn import backends

    for name in known("backend", names, backends.NAMES):
        reason = None if name == "auto" else backends.module(name).ready()
        if reason is not None:
            raise UsageError(f"backend {name!r} cannot run here: {reason}")
    return names


def add_cases(
    parser: argparse.ArgumentParser, cells: Sequence[str], modes: Sequence[str], shapes: Sequence[str]
) -> None:
    """Adds --cells, --modes and --shapes, which `cases` reads, with these defaults."""
    add = parser.add_argument
    add("--cells", nargs="+", default=cells, metavar="CELL", help=f"of {', '.join(MODULES)}")
    add("--modes", nargs="+", default=modes, metavar="MODE", help=f"of {', '.join(DEFAULT_MODES)}")
    add("--shapes", nargs="+", default=shapes, metavar="SHAPE", help=f"TxBxH or TxBxIxH; default: {', '.join(shapes)}")


def cases(options: argparse.Namespace) -> list[Case]:
    """By cell, mode and shape. Raises UsageError or ValueError."""
    cells, modes = known("cell", listed(options.cells), MODULES), known("mode", listed(options.modes), DEFAULT_MODES)
    shapes = parse_shapes(listed(options.shapes))
    return [Case(cell, mode, shape) for cell in cells for mode in modes for shape in shapes]


def check_output(option: str, path: Path | None) -> None:
    """Raises UsageError, before minutes go by, for what could not be written in the end."""
    if path is None:
        return
    target = path if path.exists() else path.parent
    if path.is_dir() or not target.exists() or not os.access(target, os.W_OK):
        raise UsageError(f"{option}: cannot write {path}")


def console_for_tables(width: int = PLAIN_WIDTH) -> Console:
    """Standard output, with `width` columns where it is no terminal."""
    console = Console()
    if not console.is_terminal:
        console.width = width
    return console
