"""The Triton kernels' machine code, without a GPU: nothing spills, W stays in registers, a step stays short.

Every row of the table of tiles is compiled by the backend's own way, and the cubins are read. Of the built-in cells on
sm_90 in every main variant, on sm_80 and sm_100 in the largest one, and of those without gates only the widest layer;
of other cells on sm_90 alone, in the largest variants; in the short run only wide layers on sm_90. The counts were read
with Triton 3.6.0 and the ptxas that it ships; another release may move them, and the table then has to be read again.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import chain
from typing import Any, NamedTuple

import pytest

from benchmarks import sass, triton_compile
from benchmarks.triton_compile import (
    CAPABILITIES,
    DROPPED,
    DROPPED_LEAN,
    INFERENCE,
    MASKED,
    MASKED_LEAN,
    SHARED_MEMORY,
    TRAINING,
    Compiled,
    Kernel,
    Variant,
    programs,
)
from fastrnn.backends.triton.configurations import ROWS, SMALLEST_TILE, Row, row_of
from fastrnn.cells import CELLS
from fastrnn.cells.known import of_text
from tests.cells.zoo import seven
from tests.selection import parameters_of_run

PROGRAMS = programs() | {seven.name: seven.program.text}
"""Of the cells that are compiled: each row is the row of one of them."""
MAIN = 90
"""The capability whose counts are held to the table."""
STORAGE = {"16 bit": "bfloat16", "tf32": "float32", "tf32x3": "float32"}
"""By precision of the product."""
OTHER_STORAGE = {"16 bit": "float16"}
"""Compiled too, for the widest layers."""
STEP_STORAGE = ("bfloat16", "float32", "float64")
"""Of the per-step kernels."""

SPILLS = {
    ("lstm", "16 bit", 128): 4,
    ("lstm", "tf32", 64): 9,
    ("cifg", "tf32", 64): 4,
    ("mgu", "tf32x3", 64): 5,
    ("zoneout_lstm", "tf32x3", 16): 1,
}
"""Tolerated moves of registers to and from memory in a step, backward, of the largest variant: without resets there are
none of the LSTM's, and the per-step kernels, which would serve it otherwise, launch two kernels a step."""
FORWARD_SPILLS = {("zoneout_lstm", "16 bit", 128): 4, ("layer_norm_lstm", "tf32x3", 64): 2}
"""As SPILLS."""
DROPPED_SPILLS = {("lstm", "16 bit", 128): 12, ("lstm", "tf32", 64): 13}
"""As SPILLS, of the built-in cells with recurrent dropout: beside the sums of the product backward holds the mask and
what does not come through the product. Without lengths and resets there are none."""
STACK = 64
"""Bytes, tolerated: what is put aside before the time loop and fetched again after it."""
MARGIN = 1.03
"""Of instructions, above what the table says: what a patch release of ptxas may add."""


ALONE = Variant(dropped=True)
"""Recurrent dropout, and no other masks."""


class Step(NamedTuple):
    """What a step of a kernel was read to take on sm_90."""

    instructions: int
    barriers: int
    shared_loads: int
    """bytes of a warp: W in it again would be 2·G·D²·size / warps more, whatever layout it had"""


class Steps(NamedTuple):
    inference: Step
    training: Step
    backward: Step


CEILINGS = {
    ("lstm", "16 bit", 16): Steps(Step(92, 2, 1280), Step(113, 6, 2048), Step(377, 4, 6016)),
    ("lstm", "16 bit", 32): Steps(Step(95, 2, 1536), Step(119, 6, 2304), Step(268, 12, 7808)),
    ("lstm", "16 bit", 64): Steps(Step(99, 2, 2048), Step(124, 6, 2816), Step(290, 12, 11904)),
    ("lstm", "16 bit", 128): Steps(Step(116, 2, 3072), Step(135, 6, 3840), Step(346, 12, 20096)),
    ("gru", "16 bit", 16): Steps(Step(81, 2, 1280), Step(102, 4, 1792), Step(313, 4, 4480)),
    ("gru", "16 bit", 32): Steps(Step(83, 2, 1536), Step(107, 4, 2048), Step(218, 8, 6016)),
    ("gru", "16 bit", 64): Steps(Step(92, 2, 2048), Step(117, 4, 2560), Step(237, 8, 9088)),
    ("gru", "16 bit", 128): Steps(Step(106, 2, 3072), Step(122, 4, 3584), Step(273, 8, 15232)),
    ("rnn_tanh", "16 bit", 16): Steps(Step(49, 4, 384), Step(49, 4, 384), Step(74, 4, 1664)),
    ("rnn_tanh", "16 bit", 32): Steps(Step(49, 6, 896), Step(49, 6, 896), Step(81, 4, 2176)),
    ("rnn_tanh", "16 bit", 64): Steps(Step(76, 6, 1536), Step(76, 6, 1536), Step(84, 4, 3200)),
    ("rnn_tanh", "16 bit", 128): Steps(Step(77, 6, 2560), Step(77, 6, 2560), Step(94, 4, 5248)),
    ("rnn_tanh", "16 bit", 256): Steps(Step(101, 6, 4608), Step(101, 6, 4608), Step(161, 4, 10112)),
    ("lstm", "tf32", 16): Steps(Step(239, 2, 2176), Step(278, 6, 3456), Step(599, 4, 8448)),
    ("lstm", "tf32", 32): Steps(Step(250, 2, 2688), Step(286, 6, 3968), Step(345, 6, 13440)),
    ("lstm", "tf32", 64): Steps(Step(264, 2, 3712), Step(304, 6, 4992), Step(409, 6, 22912)),
    ("gru", "tf32", 16): Steps(Step(168, 2, 1920), Step(211, 4, 2944), Step(326, 4, 7680)),
    ("gru", "tf32", 32): Steps(Step(178, 2, 2432), Step(219, 4, 3456), Step(213, 6, 11136)),
    ("gru", "tf32", 64): Steps(Step(192, 2, 3456), Step(226, 4, 4480), Step(279, 6, 18816)),
    ("rnn_tanh", "tf32", 16): Steps(Step(158, 2, 1152), Step(158, 2, 1152), Step(66, 4, 2944)),
    ("rnn_tanh", "tf32", 32): Steps(Step(159, 4, 2176), Step(159, 4, 2176), Step(74, 4, 3968)),
    ("rnn_tanh", "tf32", 64): Steps(Step(199, 4, 3456), Step(199, 4, 3456), Step(87, 4, 6016)),
    ("rnn_tanh", "tf32", 128): Steps(Step(230, 4, 5504), Step(230, 4, 5504), Step(111, 4, 10112)),
    ("lstm", "tf32x3", 16): Steps(Step(293, 4, 2688), Step(328, 8, 3968), Step(983, 4, 8832)),
    ("lstm", "tf32x3", 32): Steps(Step(315, 4, 3712), Step(358, 8, 4992), Step(525, 12, 21632)),
    ("lstm", "tf32x3", 64): Steps(Step(360, 4, 5760), Step(400, 8, 7040), Step(697, 12, 39296)),
    ("gru", "tf32x3", 16): Steps(Step(216, 4, 2432), Step(253, 6, 3456), Step(602, 4, 8064)),
    ("gru", "tf32x3", 32): Steps(Step(240, 4, 3456), Step(276, 6, 4480), Step(339, 10, 17280)),
    ("gru", "tf32x3", 64): Steps(Step(285, 4, 5504), Step(322, 6, 6528), Step(458, 10, 31104)),
    ("rnn_tanh", "tf32x3", 16): Steps(Step(211, 2, 1152), Step(211, 2, 1152), Step(198, 2, 2560)),
    ("rnn_tanh", "tf32x3", 32): Steps(Step(215, 4, 3200), Step(215, 4, 3200), Step(126, 4, 6016)),
    ("rnn_tanh", "tf32x3", 64): Steps(Step(274, 4, 5504), Step(274, 4, 5504), Step(157, 4, 10112)),
    ("rnn_tanh", "tf32x3", 128): Steps(Step(355, 4, 9600), Step(355, 4, 9600), Step(323, 4, 19840)),
}
"""By cell, precision of the product and units."""


def variants(cell: str, direction: str, capability: int) -> tuple[Variant, ...]:
    """In which a kernel is compiled; for other devices than the main one in what needs most registers and memory.

    A cell that saves no gates has nothing to recompute them from, and nothing more to store for a training step than
    for inference.
    """
    saves = bool(CELLS[cell].saved)
    largest = MASKED_LEAN if direction == "backward" and saves else MASKED
    if capability != MAIN:
        return () if cell == "rnn_relu" else (largest,)
    if cell == "rnn_relu":  # the RNN's other activation is cheaper than tanh, and all else is the same
        return (largest,)
    if direction == "backward":
        return TRAINING, largest
    return (INFERENCE, TRAINING, MASKED) if saves else (INFERENCE, MASKED)


@cache
def served_by(row: Row) -> list[tuple[str, str]]:
    """Of which cells and precisions it is the row."""
    keys = {name: of_text(program).key if program else name for name, program in PROGRAMS.items()}
    return [(name, p) for name, key in keys.items() for p in row.precisions if row_of(key, p, row.units) is row]


def of_row(row: Row) -> Iterator[Kernel]:
    for cell, precision in served_by(row):
        for direction, tile in (("forward", row.forward), ("backward", row.backward)):
            if tile is None:
                continue
            kernel = Kernel(direction, cell, precision, STORAGE[precision], row.units, tile, MASKED, MAIN)
            is_widest = row.units == widest(cell, precision)
            if cell not in CELLS:
                if precision != row.precisions[-1]:  # the one that takes most
                    continue
                # The variant that takes most registers, and where another may take more of them or of shared memory, it
                # too: in the widest row and in the narrowest.
                both = direction == "backward" and (is_widest or row.units == SMALLEST_TILE)
                for variant in (MASKED, MASKED_LEAN) if both else (MASKED,):
                    yield kernel._replace(variant=variant, program=PROGRAMS[cell])
                continue
            for capability in CAPABILITIES if is_widest or CELLS[cell].saved else (MAIN,):
                for variant in variants(cell, direction, capability):
                    yield kernel._replace(variant=variant, capability=capability)
            if precision in OTHER_STORAGE and is_widest:
                yield kernel._replace(dtype=OTHER_STORAGE[precision], variant=variants(cell, direction, MAIN)[-1])


def widest(cell: str, precision: str) -> int:
    return max(row.units for row in ROWS if (cell, precision) in served_by(row))


def of_steps() -> Iterator[Kernel]:
    for cell in CELLS:
        for dtype in STEP_STORAGE:
            precision = {"bfloat16": "16 bit", "float32": "tf32x3"}.get(dtype, dtype)
            for direction in ("forward", "backward"):
                variant = variants(cell, direction, MAIN)[-1]
                yield Kernel(direction, cell, precision, dtype, SMALLEST_TILE, None, variant, MAIN)


def with_dropout() -> Iterator[Kernel]:
    """Those of the widest rows of the built-in cells, in the variant that takes most, and those of the LSTM without
    other masks; and the per-step kernels."""
    for row in ROWS:
        for cell, precision in served_by(row):
            if cell not in CELLS or cell == "rnn_relu" or row.units != widest(cell, precision):
                continue
            for direction, tile in (("forward", row.forward), ("backward", row.backward)):
                largest = DROPPED_LEAN if direction == "backward" and CELLS[cell].saved else DROPPED
                for variant in (largest, ALONE) if cell == "lstm" else (largest,):
                    yield Kernel(direction, cell, precision, STORAGE[precision], row.units, tile, variant, MAIN)
    for kernel in of_steps():
        yield kernel._replace(variant=kernel.variant._replace(dropped=True))


def in_short_run(kernel: Kernel) -> bool:
    """Whether the short run compiles a kernel."""
    if kernel.variant.dropped:
        return (
            (kernel.cell, kernel.dtype) == ("lstm", "bfloat16") and kernel.tile is not None and kernel.variant != ALONE
        )
    if kernel.tile is None:
        return kernel.cell == "lstm" and kernel.dtype != "float64"
    if kernel.program:
        return kernel.cell in ("mgu", "zoneout_lstm") and kernel.units == 64 and kernel.precision == "16 bit"
    if kernel.capability != MAIN or kernel.cell == "rnn_relu" or kernel.dtype == "float16":
        return False
    is_widest = kernel.units == widest(kernel.cell, kernel.precision)
    return is_widest and (kernel.variant.masks or (kernel.cell, kernel.precision) == ("lstm", "16 bit"))


def parameter(kernel: Kernel, *others: Any, name: str | None = None, short: bool | None = None) -> Any:
    """Of a test, which is exhaustive where the short run leaves the kernel out."""
    short = in_short_run(kernel) if short is None else short
    return pytest.param(kernel, *others, id=name or str(kernel), marks=() if short else pytest.mark.exhaustive)


KERNELS = list(chain.from_iterable(map(of_row, ROWS)))

PLAIN = Kernel("forward", "lstm", "16 bit", "bfloat16", 64, (8, 8, 0), INFERENCE, MAIN)
PLANTED = {
    "the loaded W is used as it is": PLAIN._replace(edits=(("tl.where(column < D, rows, 0.0)", "rows"),)),
    "W is loaded in the loop": PLAIN._replace(
        edits=(
            (
                "        states = after\n",
                "        states = after\n"
                "        w = (tl.load(w_hh + (gate * D + gate_unit) * D + column, mask=w_inside, other=0.0),)\n",
            ),
        )
    ),
    "no product before the loop": PLAIN._replace(
        direction="backward",
        variant=TRAINING,
        tile=(16, 8, 0),
        edits=(("        dh = dot(nothing.to(storage), w[gate], dh, PRECISION)\n", ""),),
    ),
}
"""Kernels with a mistake: W is read from shared memory in every step."""
CROWDED = PLAIN._replace(units=128, tile=(8, 4, 0))
"""Four warps have no room for W."""


@pytest.fixture(scope="module")
def compiled(request: pytest.FixtureRequest) -> dict[Kernel, Compiled | str]:
    """All that this run's tests are about, compiled in processes of their own."""
    reason = triton_compile.missing()
    if reason is not None:
        pytest.skip(reason)
    wanted: dict[Kernel, None] = {}
    for parameters in parameters_of_run(request):
        if "kernel" in parameters:
            wanted[parameters["kernel"]] = None
        elif "row" in parameters:
            wanted.update(dict.fromkeys(of_row(parameters["row"])))
    return dict(zip(wanted, triton_compile.compile_all(list(wanted)), strict=True))


def result(compiled: dict[Kernel, Compiled | str], kernel: Kernel) -> Compiled:
    found = compiled[kernel]
    assert not isinstance(found, str), found
    return found


@pytest.mark.parametrize("kernel", [parameter(kernel) for kernel in KERNELS])
def test_a_persistent_kernel(kernel: Kernel, compiled: dict[Kernel, Compiled | str]) -> None:
    found = result(compiled, kernel)
    tolerated = SPILLS if kernel.direction == "backward" else FORWARD_SPILLS
    spills = tolerated.get((kernel.cell, kernel.precision, kernel.units), 0) if kernel.variant.masks else 0
    assert found.assembly.is_loop, "a time loop, with its products on the tensor cores"
    assert found.assembly.spills <= spills
    assert found.stack <= STACK
    assert found.w_loads == 0
    assert kernel.tile is not None
    assert found.warps == kernel.tile[1]
    assert found.shared_memory <= kernel.tile[2], "what the row says"
    assert found.shared_memory <= SHARED_MEMORY[kernel.capability]


@pytest.mark.exhaustive
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{served_by(row)[0][0]}-{row.precisions[-1]}-D{row.units}")
def test_a_row_asks_for_no_more_shared_memory_than_is_used(row: Row, compiled: dict[Kernel, Compiled | str]) -> None:
    """A device with less than it asks for is left to the per-step kernels."""
    for direction, tile in (("forward", row.forward), ("backward", row.backward)):
        used = [
            result(compiled, kernel).shared_memory
            for kernel in of_row(row)
            if kernel.direction == direction and tile is not None
        ]
        assert tile is None or tile.shared_memory == -(-max(used) // 1024) * 1024


@pytest.mark.parametrize("kernel", [parameter(kernel) for kernel in of_steps()])
def test_a_per_step_kernel(kernel: Kernel, compiled: dict[Kernel, Compiled | str]) -> None:
    found = result(compiled, kernel)
    assert found.assembly.spills == 0
    assert found.stack == 0
    assert found.assembly.barriers == 1, "threads share nothing, and wait once before they store"


@pytest.mark.parametrize("kernel", [parameter(kernel) for kernel in with_dropout()])
def test_a_kernel_with_recurrent_dropout(kernel: Kernel, compiled: dict[Kernel, Compiled | str]) -> None:
    """The backend looks at the stack when it compiles one: persistent kernels stay within what is tolerated there."""
    found = result(compiled, kernel)
    if kernel.tile is None:
        assert (found.assembly.spills, found.stack, found.assembly.barriers) == (0, 0, 1)
        return
    is_alone = kernel.direction == "forward" or not kernel.variant.masks
    spills = 0 if is_alone else DROPPED_SPILLS.get((kernel.cell, kernel.precision, kernel.units), 0)
    assert found.assembly.is_loop
    assert found.assembly.spills <= spills
    assert found.stack <= STACK
    assert found.w_loads == 0
    assert found.shared_memory <= kernel.tile[2], "what the row says"


def table_rows() -> Iterator[tuple[Kernel, Step]]:
    for kernel in KERNELS:
        key = ("rnn_tanh" if kernel.cell == "rnn_relu" else kernel.cell, kernel.precision, kernel.units)
        if kernel.capability != MAIN or kernel.variant.masks or key not in CEILINGS:
            continue
        steps = CEILINGS[key]
        if kernel.direction == "backward":
            yield kernel, steps.backward
        else:
            yield kernel, steps.inference if kernel.variant == INFERENCE else steps.training


@pytest.mark.parametrize(("kernel", "ceiling"), [parameter(*row) for row in table_rows()])
def test_a_step_stays_short(kernel: Kernel, ceiling: Step, compiled: dict[Kernel, Compiled | str]) -> None:
    assembly = result(compiled, kernel).assembly
    assert assembly.instructions <= MARGIN * ceiling.instructions
    assert assembly.barriers <= ceiling.barriers
    assert assembly.shared_loads <= ceiling.shared_loads


def test_the_table_has_every_row() -> None:
    cells = [cell for cell in CELLS if cell != "rnn_relu"]
    expected = {(c, p, row.units) for row in ROWS for c, p in served_by(row) if c in cells}
    assert set(CEILINGS) == expected


def as_designed() -> Iterator[Any]:
    """The LSTM of 64 units."""
    row = row_of("lstm", "16 bit", 64)
    assert row is not None
    tile = row.forward
    for variant, instructions, barriers in ((INFERENCE, 99, 2), (TRAINING, 124, 6)):
        yield parameter(PLAIN._replace(tile=tile, variant=variant), instructions, barriers, short=True)


@pytest.mark.parametrize(("kernel", "instructions", "barriers"), list(as_designed()))
def test_the_lstm_of_64_units_is_as_designed(
    kernel: Kernel, instructions: int, barriers: int, compiled: dict[Kernel, Compiled | str]
) -> None:
    """The recipe's figures, which a naive kernel misses by a factor: 823 instructions and 28 barriers."""
    assembly = result(compiled, kernel).assembly
    assert assembly.instructions <= instructions
    assert assembly.barriers <= barriers


@pytest.mark.parametrize(
    "kernel", [parameter(kernel, name=name, short="loaded" in name) for name, kernel in PLANTED.items()]
)
def test_a_kernel_that_reads_w_in_every_step_is_caught(kernel: Kernel, compiled: dict[Kernel, Compiled | str]) -> None:
    """By Triton's own code, and by the machine code alone."""
    steps = CEILINGS[kernel.cell, kernel.precision, kernel.units]
    ceiling = steps.inference if kernel.direction == "forward" else steps.backward
    bad = result(compiled, kernel)
    assert bad.w_loads > 0
    assert bad.assembly.shared_loads > ceiling.shared_loads


@pytest.mark.exhaustive
@pytest.mark.parametrize("kernel", [CROWDED], ids=str)
def test_spilling_is_caught(kernel: Kernel, compiled: dict[Kernel, Compiled | str]) -> None:
    bad = result(compiled, kernel)
    assert bad.assembly.spills > 0
    assert bad.stack > STACK


LISTING = """
        Function : kernel
        /*0000*/                   LDL R1, [R1] ;                    /* 0x0 */
        /*0010*/                   LDS.128 R4, [R2] ;                /* 0x0 */
        /*0020*/              @!P0 LDSM.16.M88.4 R8, [R3] ;          /* 0x0 */
        /*0030*/                   LDS.U16 R4, [R2+0x10] ;           /* 0x0 */
        /*0040*/                   HMMA.16816.F32.BF16 R4, R8, R12 ; /* 0x0 */
        /*0050*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;     /* 0x0 */
        /*0060*/               @P1 BRA 0x10 ;                        /* 0x0 */
        /*0070*/                   STL [R1], R1 ;                    /* 0x0 */
        /*0080*/                   EXIT ;                            /* 0x0 */
        /*0090*/                   BRA 0x90;                         /* 0x0 */
"""


def test_a_listing_is_read() -> None:
    """The loop with the product, without what stands before and after it."""
    assembly = sass.parse(LISTING)
    assert assembly.is_loop
    assert (assembly.instructions, assembly.barriers, assembly.products, assembly.spills) == (6, 1, 1, 0)
    assert assembly.shared_loads == 32 * 16 + 4 * 128 + 32 * 2
    without_product = sass.parse(LISTING.replace("HMMA", "FFMA"))
    assert not without_product.is_loop
    assert (without_product.instructions, without_product.spills) == (10, 2)
