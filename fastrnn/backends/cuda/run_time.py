"""Kernels of cells that are not built in: the extension's sources and the cell's class, compiled when they are needed.

A cell's *tables*, its kernels as the extension's planner knows them, come first: NVRTC lays them out from the same
source (`csrc/run_time.cuh`), without compiling a kernel. Of the kernels only those are compiled that the planner takes.
They are kept on disk, in files that are named by a hash of all that they depend on.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from fastrnn import extension, trust
from fastrnn.backends.cuda import nvrtc
from fastrnn.backends.cuda.driver import Kernel
from fastrnn.backends.notices import notice, say
from fastrnn.cache import base, fallback, read_sealed, write_sealed
from fastrnn.cells.emit import cuda as emit
from fastrnn.cells.known import KNOWN
from fastrnn.first_use import undisturbed

SOURCES = next(
    (path for path in (extension.PACKAGE / "csrc", extension.PACKAGE.parent / "csrc") if path.is_dir()), None
)
"""Of the extension: in the package where it is installed, beside it in a checkout."""
NAME_LENGTH = 16
"""digits of the hash that a file is named by"""
ELEMENTS = {"bfloat16": "Bfloat16", "float16": "Float16", "tf32": "Tf32"}
"""The classes of csrc/elements.cuh by the planner's names."""
TABLES = "run_time.cuh"
HOST = "host/"
"""Of the sources, what only a compiler for the CPU includes."""

_ABOUT = "Of a cell that is not built in."
_TYPES = """\
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long int64_t;
typedef unsigned long uint64_t;
typedef unsigned long uintptr_t;
#define INFINITY __int_as_float(0x7f800000)
"""
"""What the sources take from the standard's headers, of which NVRTC has none, on systems of 64 bits but Windows."""
_INCLUDE = re.compile(r'^\s*#include\s+(?:"(.+)"|<.+>)')
_TABLE = re.compile(r"\.const \.align \d+ \.b8 (\w+)\[(\d+)\] = \{([\d, ]+)\}")
_ASSERTION = re.compile(r'static assertion failed with "(.+)"')


def why_missing() -> str | None:
    """Why no kernel can be compiled here, as a clause, or None."""
    if SOURCES is None:
        return "fastrnn is installed without its CUDA sources"
    return nvrtc.why_missing()


def why_not(cell: str, element: str, sizes: tuple[int, int, int, int], device: int) -> str | None:
    """Why no kernel of a cell serves a recurrence in both operations, as a clause, or None.

    Args:
        cell: the cell's key.
        element: as the planner names it.
        sizes: units of a head, batch, heads, directions.
        device: the device's number.

    Raises:
        RuntimeError: CUDA fails.
    """
    missing = why_missing()
    if missing is not None:
        return f"its kernels for cells that are not built in are compiled at run time: {missing}"
    architecture = _architecture(device)
    if int(architecture.rstrip("a")) not in nvrtc.architectures():
        return f"NVRTC {nvrtc.version()} does not compile for sm_{architecture}"
    found = tables(cell)
    if isinstance(found, str):
        return found
    for operation in ("forward", "backward"):
        rows = found[f"{operation}_{element}"]
        reason: str | None = extension.load().why_none_of(rows, architecture, operation, element, *sizes, device)
        if reason is not None:
            return reason
    return None


def launch(operation: str, cell: str, element: str, values: Mapping[str, Any], device: int, stream: int) -> None:
    """Starts the kernel that serves a recurrence.

    Args:
        operation, cell, element, device: as in `why_not`.
        values: the kernel's arguments by the names of csrc/arguments.h.
        stream: where, as the driver knows it.

    Raises:
        ValueError: none serves it.
        CompileError: NVRTC refuses it.
        RuntimeError: the driver refuses it.
    """
    found, architecture = tables(cell), _architecture(device)
    if isinstance(found, str):
        raise ValueError(found)
    rows = found[f"{operation}_{element}"]
    start = extension.load().launch_for(rows, architecture, operation, element, values, device)
    number = start.pop("chosen")
    way = "grid" if start["cluster"] is None else "cluster"
    _loaded(cell, way, operation, element, number, architecture, device).launch(stream=stream, **start)


@cache
def tables(cell: str) -> dict[str, bytes] | str:
    """The geometries of a cell's kernels, by operation and element as in forward_bfloat16, each as the planner takes
    them; or why there are none, as a clause: the kernels do not take the cell, or what NVRTC says where it fails."""
    own = _class(cell)
    lines = [f"FASTRNN_TABLES({own}, fastrnn::{one}, {name})" for name, one in ELEMENTS.items()]
    try:
        text = undisturbed(lambda: nvrtc.ptx("\n".join([_source(cell, TABLES), *lines, ""]), f"tables of {cell}"))
    except nvrtc.CompileError as error:
        # Returned, so that it is remembered: every question about a layer of the cell would compile again.
        refused = _ASSERTION.search(str(error))
        return f"its kernels do not take such a cell: {refused[1]}" if refused else str(error)
    return {
        name: bytes(map(int, numbers.split(","))).ljust(int(size), b"\0")
        for name, size, numbers in _TABLE.findall(text)
    }


def compiled(cell: str, way: str, operation: str, element: str, number: int, architecture: str) -> nvrtc.Compiled:
    """A kernel, from disk where it is there; `number` is its row in the cell's table.

    Raises:
        CompileError: NVRTC refuses it, or did so before.
    """
    made = _compiled(cell, way, operation, element, number, architecture)
    if isinstance(made, str):
        raise nvrtc.CompileError(made)
    return made


@cache
def _compiled(
    cell: str, way: str, operation: str, element: str, number: int, architecture: str
) -> nvrtc.Compiled | str:
    """As `compiled`; or why NVRTC refuses it."""
    shape = f"{operation.capitalize()}Shape<{_class(cell)}, fastrnn::{ELEMENTS[element]}"
    shape = f"grid::{shape}>" if way == "grid" else f"run_time::{shape}, {number}>"
    expression = f"fastrnn::{way}::{operation}_kernel<fastrnn::{shape}>"
    source = _source(cell, TABLES, f"{way}/{operation}.cuh")
    title = f"{cell} {way} {operation} {element} {number}"
    made_of = "\0".join((nvrtc.version(), nvrtc.STANDARD, architecture, expression, source))
    name = f"{title} {hashlib.sha256(made_of.encode()).hexdigest()[:NAME_LENGTH]}.cubin".replace(" ", "-")
    try:
        return undisturbed(lambda: _read(name) or _made(name, source, title, expression, architecture))
    except nvrtc.CompileError as error:
        return str(error)


@cache
def _loaded(cell: str, way: str, operation: str, element: str, number: int, architecture: str, device: int) -> Kernel:
    code = compiled(cell, way, operation, element, number, architecture)
    return Kernel(code.cubin, code.symbol, device, f"{cell}'s {way} {operation} kernel")


@cache
def _architecture(device: int) -> str:
    """As NVRTC names what the device runs: of 9.0 with the instructions that it alone has."""
    major, minor = extension.load().limits(device)["capability"]
    return f"{major}{minor}{'a' if (major, minor) == (9, 0) else ''}"


def _class(cell: str) -> str:
    return f"fastrnn::{emit.class_name(cell)}"


def _source(cell: str, *files: str) -> str:
    """These files of csrc and all that they include as one text, of one cell in place of the built-in ones."""
    program = KNOWN[cell].program
    assert program is not None
    # The key is a name that nothing else in the sources has.
    programs = [replace(program, name=cell)]
    own = {"cells.h": emit.names(programs, _ABOUT), "cells.cuh": emit.classes(programs, _ABOUT)}
    seen: set[str] = set()
    return "\n".join([_TYPES, *(line for file in files for line in _joined(file, own, seen)), ""])


def _joined(file: str, own: Mapping[str, str], seen: set[str]) -> list[str]:
    """The lines of a file, with those of what it includes in their place the first time. Errors name file and line."""
    if file in seen:
        return []
    seen.add(file)
    lines = [f'#line 1 "{file}"']
    for number, line in enumerate((own.get(file) or _files()[file]).splitlines(), 2):
        included = _INCLUDE.match(line)
        if included is None:
            lines.append("" if line.startswith("#pragma once") else line)
        elif included[1] and not included[1].startswith(HOST):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(file), included[1]))
            lines += [*_joined(path, own, seen), f'#line {number} "{file}"']
        else:
            lines.append("")
    return lines


@cache
def _files() -> dict[str, str]:
    """The sources, as they were when they were first needed: a later change on disk is not compiled with them."""
    assert SOURCES is not None
    paths = [path for ending in ("h", "cuh") for path in SOURCES.rglob(f"*.{ending}")]
    return {path.relative_to(SOURCES).as_posix(): path.read_text() for path in paths}


def _directories(*, make: bool) -> list[Path]:
    """Where kernels are kept, the first that can be."""
    found = []
    for place in (base(), fallback()):
        if place is not None:
            try:
                found.append(trust.directory(place.expanduser() / "cuda", make=make))
            except trust.UntrustedError as error:
                notice(f"{place} is not trusted, because {error}: kernels are neither read nor kept there")
            except (OSError, RuntimeError):  # it is not there, or cannot be made; this user has no home directory
                continue
    return found


def _read(name: str) -> nvrtc.Compiled | None:
    """A kernel from disk; None if it is to be compiled."""
    for directory in _directories(make=False):
        try:
            symbol, _, cubin = read_sealed(directory / name).partition(b"\0")
            return nvrtc.Compiled(symbol.decode(), cubin)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            notice(f"{directory / name} is not used: {error}")
    return None


def _made(name: str, source: str, title: str, expression: str, architecture: str) -> nvrtc.Compiled:
    """A kernel that is compiled now, and kept. That it cannot be kept is said, and harms nothing."""
    say(f"compiling the kernel {title}, once")
    made = nvrtc.kernel(source, title, expression, architecture)
    problem: Exception | None = None
    for directory in _directories(make=True):
        try:
            write_sealed(directory / name, b"\0".join((made.symbol.encode(), made.cubin)))
            return made
        except OSError as error:
            problem = error
    notice(f"cannot keep a compiled kernel: {problem or 'there is no place for it'}")
    return made
