"""A launch that threads share, and how long it takes: measured here, where nobody waits for Python's lock."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from fastrnn.backends.numba.kernels.simd import INDEX
from fastrnn.backends.numba.kernels.team import seconds

NANO = 1e9


@intrinsic
def share(typing: Any, parallel: Any, function: Any, data: Any, threads: Any) -> Any:
    """Calls `function` with `data` in each of `threads` threads, by GOMP_parallel at the address `parallel`."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [INDEX, INDEX, number, number])
        begin = builder.inttoptr(args[0], kind.as_pointer())
        builder.call(begin, [args[1], args[2], builder.trunc(args[3], number), number(0)])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp, types.intp), emit


def parallel_kernel() -> Any:
    """The kernel, over a block of `ParallelArguments`."""

    def parallel(pointer: Any) -> None:
        a = carray(pointer, 1)[0]
        began = seconds(a.clock)
        share(a.parallel, a.function, a.data, a.threads)
        a.nanoseconds = types.int64((seconds(a.clock) - began) * NANO)

    return parallel
