"""What cuobjdump says of compiled kernels: their resources, and the instructions of their time loops by opcode."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

THREADS_OF_A_WARP = 32
PRODUCTS = ("HMMA", "HGMMA", "UTCHMMA", "UTCQMMA", "DMMA")
"""Opcodes of the tensor cores: up to sm_80, of sm_90, of sm_100, and of float64."""
MEMORY = ("LDG", "LDGSTS", "STG")
"""Opcodes that move what is in a device's memory."""
SPILLS = ("LDL", "STL")
"""Opcodes that move registers to and from memory."""

_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", re.MULTILINE)
_PREDICATE = re.compile(r"^@!?U?P\w+\s+")
_TARGET = re.compile(r"\bBRA\b.*?\b(0x[0-9a-f]+)")
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+)")
_USAGE = re.compile(r"^\s*Function (\w+):\s+" + _RESOURCES.pattern, re.MULTILINE)
_FUNCTION = re.compile(r"^\s*Function : (\w+)$", re.MULTILINE)


class Assembly(NamedTuple):
    """The instructions of a kernel, by opcode."""

    loop: Counter[str]
    """in one turn of the loop with the products, or of that which reads and writes most where no loop has any; all of
    the kernel where there is no such loop"""
    is_loop: bool
    shared_loads: int
    """bytes that a warp reads from shared memory in that turn: LDS and LDSM"""
    shared_vectors: int = 0
    """loads of 16 bytes a lane from there, as tiles of weights are"""
    waits: int = 0
    """for asynchronous stores, on barriers that count them"""
    polls: int = 0
    """loads of words that other blocks store meanwhile"""
    byte_loads: int = 0
    """of single bytes out of a device's memory, in all of the kernel"""

    @property
    def instructions(self) -> int:
        return self.loop.total()

    @property
    def barriers(self) -> int:
        """of the block"""
        return self.loop["BAR"]

    @property
    def products(self) -> int:
        return sum(self.loop[opcode] for opcode in PRODUCTS)

    @property
    def spills(self) -> int:
        return sum(self.loop[opcode] for opcode in SPILLS)


def read(cubin: bytes, cuobjdump: str) -> tuple[Assembly, int, int]:
    """The instructions, the registers and the stack in bytes of a thread. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        command = [cuobjdump, "--dump-resource-usage", "-sass", str(file)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = _RESOURCES.search(text)
    if found is None:
        raise ValueError(f"no resource usage in {text[:1000]!r}")
    return parse(text), int(found[1]), int(found[2])


def read_all(file: Path, cuobjdump: str, architecture: str) -> dict[str, tuple[Assembly, int, int]]:
    """What `read` gives, by symbol, of every kernel for `sm_<architecture>` in a cubin or in a library that holds some.
    Raises CalledProcessError."""
    command = [cuobjdump, "--dump-resource-usage", "-sass", "-arch", f"sm_{architecture}", str(file)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {symbol: (int(registers), int(stack)) for symbol, registers, stack in _USAGE.findall(text)}
    _, *listings = _FUNCTION.split(text)
    return {symbol: (parse(text), *usage[symbol]) for symbol, text in zip(*[iter(listings)] * 2, strict=True)}


def parse(text: str) -> Assembly:
    """The instructions in what `cuobjdump -sass` prints of one kernel."""
    code = [(int(address, 16), _PREDICATE.sub("", operation)) for address, operation in _INSTRUCTION.findall(text)]
    place = {address: index for index, (address, _) in enumerate(code)}
    loops = []
    for index, (address, operation) in enumerate(code):
        target = _TARGET.search(operation)
        if target and int(target[1], 16) < address:
            loops.append([operation for _, operation in code[place[int(target[1], 16)] : index + 1]])
    # The innermost of those with the most products: the last lines of a kernel branch back to themselves.
    counted = PRODUCTS if any(_count(loop, PRODUCTS) for loop in loops) else MEMORY
    body = max(loops, key=lambda loop: (_count(loop, counted), -len(loop)), default=[])
    is_loop = _count(body, counted) > 0
    if not is_loop:
        body = [operation for _, operation in code]
    return Assembly(
        Counter(map(_opcode, body)),
        is_loop,
        sum(map(_shared_bytes, body)),
        shared_vectors=sum(operation.startswith("LDS.128") for operation in body),
        waits=sum("TRYWAIT" in operation for operation in body),
        polls=sum(operation.startswith("LDG") and ".STRONG" in operation for operation in body),
        byte_loads=sum(_loads_a_byte(operation) for _, operation in code),
    )


def _opcode(operation: str) -> str:
    return re.split(r"[. ]", operation, maxsplit=1)[0]


def _count(operations: Sequence[str], opcodes: Sequence[str]) -> int:
    return sum(_opcode(operation) in opcodes for operation in operations)


def _loads_a_byte(operation: str) -> bool:
    name, *modifiers = operation.split(" ", maxsplit=1)[0].split(".")
    return name == "LDG" and not {"U8", "S8"}.isdisjoint(modifiers)


def _shared_bytes(operation: str) -> int:
    """What a warp reads by one instruction from shared memory."""
    name, *modifiers = operation.split(" ", maxsplit=1)[0].split(".")
    if name == "LDSM":
        matrices = next((int(modifier) for modifier in modifiers if modifier in ("2", "4")), 1)
        return matrices * 8 * 16  # 8 rows of 16 bytes each
    if name != "LDS":
        return 0
    bits = next((int(m.lstrip("US")) for m in modifiers if m.lstrip("US") in ("8", "16", "64", "128")), 32)
    return THREADS_OF_A_WARP * bits // 8
