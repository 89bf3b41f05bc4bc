"""Explicit SIMD for Numba: a vector type, arithmetic that reads like the equations, and loads and stores by address.

`Vector(dtype)` is LLVM's `<lanes x dtype>`, as many lanes as fill one register of the CPU that Numba compiles for. The
dtype enters as the type of a value (`like`), so that one source serves both dtypes. Addresses are integers (bytes),
indices and strides count elements. Nothing is checked here.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, lower_cast, models, register_model

INDEX = ir.IntType(64)
LANE = ir.IntType(32)
NARROW_REGISTER_BITS = 128
"""SSE2 and NEON: what every processor has that Numba runs on."""


@cache
def cpu_features() -> frozenset[str]:
    """The instruction sets that Numba compiles for (it honours NUMBA_CPU_NAME and NUMBA_CPU_FEATURES)."""
    features: str = cpu_target.target_context.codegen().magic_tuple()[2]
    return frozenset(name[1:] for name in features.split(",") if name.startswith("+"))


def register_bits() -> int:
    features = cpu_features()
    if "avx512f" in features:
        return 512
    return 256 if {"avx2", "fma"} <= features else NARROW_REGISTER_BITS


def is_arm() -> bool:
    """Whether it compiles for 64-bit ARM."""
    return _triple().startswith(("aarch64", "arm64"))


def is_x86() -> bool:
    """Whether it compiles for x86-64, of which every processor has SSE2."""
    return _triple().startswith("x86_64")


def _triple() -> str:
    triple: str = cpu_target.target_context.codegen().magic_tuple()[0]
    return triple


def register_count() -> int:
    """How many vector registers there are: 32 with AVX-512 and on 64-bit ARM, else 16."""
    return 32 if "avx512f" in cpu_features() or is_arm() else 16


def fuses_multiply_add() -> bool:
    """Whether x y + z is one instruction."""
    return "fma" in cpu_features() or is_arm()


class Vector(types.Type):
    """`lanes` numbers of `dtype` (float32 or float64) in one register, or in so many."""

    def __init__(self, dtype: types.Float, registers: int = 1):
        self.dtype = dtype
        self.bits: int = dtype.bitwidth
        self.lanes = registers * register_bits() // self.bits
        self.element = ir.FloatType() if self.bits == 32 else ir.DoubleType()
        self.ir = ir.VectorType(self.element, self.lanes)
        self.integers = ir.VectorType(ir.IntType(self.bits), self.lanes)
        super().__init__(name=f"{dtype}x{self.lanes}")


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector):
        super().__init__(manager, vector, vector.ir)


def splat(builder: Any, scalar: Any, lanes: int) -> Any:
    """A scalar in every lane."""
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    first = builder.insert_element(undefined, scalar, LANE(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(LANE, lanes), [0] * lanes))


def call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """Calls an LLVM intrinsic."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def suffix(vector: Vector) -> str:
    """How LLVM names the type in its intrinsics' names: v16f32."""
    return f"v{vector.lanes}f{vector.bits}"


def multiply_add(builder: Any, vector: Vector, x: Any, y: Any, z: Any) -> Any:
    """x y + z, rounded once where the processor can."""
    return call(builder, f"llvm.fmuladd.{suffix(vector)}", vector.ir, x, y, z)


def pointer(builder: Any, vector: Vector, address: Any, index: Any) -> Any:
    """To element `index` of what lies at the integer `address`."""
    return builder.gep(builder.inttoptr(address, vector.element.as_pointer()), [index])


def load_vector(builder: Any, vector: Vector, address: Any, index: Any) -> Any:
    at = builder.bitcast(pointer(builder, vector, address, index), vector.ir.as_pointer())
    return builder.load(at, align=vector.bits // 8)


def store_vector(builder: Any, vector: Vector, address: Any, index: Any, value: Any) -> None:
    at = builder.bitcast(pointer(builder, vector, address, index), vector.ir.as_pointer())
    builder.store(value, at, align=vector.bits // 8)


def first_lanes(builder: Any, vector: Vector, count: Any) -> Any:
    """The mask of the first `count` lanes; all of them where `count` is larger, none where it is not positive."""
    enough = builder.icmp_signed(">", count, INDEX(vector.lanes))
    small = builder.trunc(builder.select(enough, INDEX(vector.lanes), count), LANE)
    numbers = ir.Constant(ir.VectorType(LANE, vector.lanes), list(range(vector.lanes)))
    return builder.icmp_signed("<", numbers, splat(builder, small, vector.lanes))


class _Arithmetic(AbstractTemplate):
    """Vectors with vectors of their own type, or with numbers, which go to every lane."""

    def generic(self, args: Any, kws: Any) -> Any:
        vector = next((arg for arg in args if isinstance(arg, Vector)), None)
        if vector is None or any(arg != vector and not isinstance(arg, types.Number) for arg in args):
            return None
        return signature(vector, *[vector] * len(args))


@lower_cast(types.Number, Vector)
def _number_to_vector(context: Any, builder: Any, number: types.Number, vector: Vector, value: Any) -> Any:
    return splat(builder, context.cast(builder, value, number, vector.dtype), vector.lanes)


def _define(symbol: Any, emit: Callable[..., Any], operands: int = 2) -> None:
    infer_global(symbol)(type(f"Vector_{symbol.__name__}", (_Arithmetic,), {}))
    lower_builtin(symbol, *[Vector] * operands)(lambda context, builder, sig, args: emit(builder, *args))


_define(operator.add, lambda builder, x, y: builder.fadd(x, y))
_define(operator.sub, lambda builder, x, y: builder.fsub(x, y))
_define(operator.mul, lambda builder, x, y: builder.fmul(x, y))
_define(operator.truediv, lambda builder, x, y: builder.fdiv(x, y))
_define(operator.neg, lambda builder, x: builder.fneg(x), operands=1)


def zeros_in(registers: int) -> Any:
    """An intrinsic: `dtype` -> a vector of zeros in so many registers, of which two hold two chains of operations."""

    @intrinsic
    def zeros(typing: Any, dtype: Any) -> Any:
        vector = Vector(dtype.instance_type, registers)
        return vector(dtype), lambda context, builder, sig, args: ir.Constant(vector.ir, [0.0] * vector.lanes)

    return zeros


zeros = zeros_in(1)
"""A vector of zeros, from which everything else learns its type: `zeros(float32)`."""


@intrinsic
def lanes(typing: Any, like: Any) -> Any:
    return types.intp(like), lambda context, builder, sig, args: INDEX(like.lanes)


@intrinsic
def address(typing: Any, like: Any, base: Any, index: Any) -> Any:
    """The address of element `index` of what lies at `base`."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.add(args[1], builder.mul(args[2], INDEX(like.bits // 8)))

    return types.intp(like, types.intp, types.intp), emit


@intrinsic
def fma(typing: Any, x: Any, y: Any, z: Any) -> Any:
    """x y + z, any of the three a number; rounded once where the processor can."""
    vector = next(arg for arg in (x, y, z) if isinstance(arg, Vector))
    return vector(vector, vector, vector), lambda context, builder, sig, args: multiply_add(builder, vector, *args)


@intrinsic
def reciprocal(typing: Any, x: Any) -> Any:
    """1 / x for normal x. With AVX-512, float32: an estimate of 14 bits and a step of Newton, within an ulp."""
    estimated = x.bits == 32 and "avx512f" in cpu_features()

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        one = ir.Constant(x.ir, [1.0] * x.lanes)
        if not estimated:
            return builder.fdiv(one, args[0])
        everywhere = ir.Constant(ir.IntType(16), -1)
        estimate = call(builder, "llvm.x86.avx512.rcp14.ps.512", x.ir, args[0], one, everywhere)
        rest = multiply_add(builder, x, builder.fneg(args[0]), estimate, one)
        return multiply_add(builder, x, estimate, rest, estimate)

    return x(x), emit


@intrinsic
def at_least(typing: Any, x: Any, low: Any) -> Any:
    """The larger of both; NaN in x passes."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", *args), args[1], args[0])

    return x(x, x), emit


@intrinsic
def at_most(typing: Any, x: Any, high: Any) -> Any:
    """The smaller of both; NaN in x passes."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *args), args[1], args[0])

    return x(x, x), emit


def _choice(comparison: str, about: str) -> Any:
    @intrinsic
    def where(typing: Any, a: Any, b: Any, x: Any, y: Any) -> Any:
        vector = next(arg for arg in (a, b, x, y) if isinstance(arg, Vector))

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.select(builder.fcmp_ordered(comparison, args[0], args[1]), args[2], args[3])

        return vector(vector, vector, vector, vector), emit

    where.__doc__ = about
    return where


where_le = _choice("<=", "x where a <= b, else y, which is also taken where a or b is NaN; any of the four a number.")
where_lt = _choice("<", "As `where_le`, of a < b.")


@intrinsic
def magnitude(typing: Any, x: Any) -> Any:
    return x(x), lambda context, builder, sig, args: call(builder, f"llvm.fabs.{suffix(x)}", x.ir, *args)


@intrinsic
def sqrt(typing: Any, x: Any) -> Any:
    return x(x), lambda context, builder, sig, args: call(builder, f"llvm.sqrt.{suffix(x)}", x.ir, *args)


@intrinsic
def with_sign_of(typing: Any, sign: Any, x: Any) -> Any:
    """|x| with the sign of `sign`."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return call(builder, f"llvm.copysign.{suffix(x)}", x.ir, args[1], args[0])

    return x(x, x), emit


@intrinsic
def load(typing: Any, like: Any, base: Any, index: Any) -> Any:
    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return load_vector(builder, like, args[1], args[2])

    return like(like, types.intp, types.intp), emit


@intrinsic
def store(typing: Any, base: Any, index: Any, value: Any) -> Any:
    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        store_vector(builder, value, *args)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, value), emit


@intrinsic
def load_some(typing: Any, like: Any, base: Any, index: Any, count: Any) -> Any:
    """The first `count` elements, zero in the other lanes; memory beyond them is not touched."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        at = builder.bitcast(pointer(builder, like, args[1], args[2]), like.ir.as_pointer())
        rest = ir.Constant(like.ir, [0.0] * like.lanes)
        mask = first_lanes(builder, like, args[3])
        name = f"llvm.masked.load.{suffix(like)}.p0"
        return call(builder, name, like.ir, at, LANE(like.bits // 8), mask, rest)

    return like(like, types.intp, types.intp, types.intp), emit


@intrinsic
def store_some(typing: Any, base: Any, index: Any, value: Any, count: Any) -> Any:
    """Stores the first `count` lanes.

    Only AVX-512 does so by one instruction. Elsewhere whole vectors go past a branch: 0.9 of a layer's time with AVX2.
    """

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        at = builder.bitcast(pointer(builder, value, args[0], args[1]), value.ir.as_pointer())
        is_whole = builder.icmp_signed(">=", args[3], INDEX(value.lanes))
        if "avx512f" in cpu_features():
            is_whole = ir.Constant(is_whole.type, False)
        with builder.if_else(is_whole, likely=True) as (whole, part):
            with whole:
                builder.store(args[2], at, align=value.bits // 8)
            with part:
                mask = first_lanes(builder, value, args[3])
                name = f"llvm.masked.store.{suffix(value)}.p0"
                call(builder, name, ir.VoidType(), args[2], at, LANE(value.bits // 8), mask)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, value, types.intp), emit


@intrinsic
def load_int(typing: Any, base: Any, index: Any) -> Any:
    """int64 number `index` at `base`."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(builder.gep(builder.inttoptr(args[0], INDEX.as_pointer()), [args[1]]))

    return types.int64(types.intp, types.intp), emit


@intrinsic
def store_int(typing: Any, base: Any, index: Any, value: Any) -> Any:
    """Writes int64 number `index` at `base`."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], builder.gep(builder.inttoptr(args[0], INDEX.as_pointer()), [args[1]]))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.int64), emit


@intrinsic
def load_byte(typing: Any, base: Any, index: Any) -> Any:
    """uint8 number `index` at `base`."""
    byte = ir.IntType(8)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(builder.gep(builder.inttoptr(args[0], byte.as_pointer()), [args[1]]))

    return types.uint8(types.intp, types.intp), emit


@intrinsic
def store_byte(typing: Any, base: Any, index: Any, value: Any) -> Any:
    """Writes uint8 number `index` at `base`."""
    byte = ir.IntType(8)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        at = builder.gep(builder.inttoptr(args[0], byte.as_pointer()), [args[1]])
        builder.store(builder.trunc(args[2], byte), at)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.int64), emit


FIRST_LEVEL, SECOND_LEVEL = 3, 2
"""How LLVM calls caches where it prefetches."""


def prefetch(builder: Any, at: Any, cache: int = FIRST_LEVEL) -> None:
    """Asks for the cache line at a pointer to come into a cache; there need not be memory at all."""
    integer = ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [ir.PointerType(), integer, integer, integer])
    fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    reading, data = 0, 1
    builder.call(fetch, [builder.bitcast(at, ir.PointerType()), integer(reading), integer(cache), integer(data)])


@intrinsic
def ask_for(typing: Any, like: Any, base: Any, index: Any) -> Any:
    """Has the cache line of element `index` come into the first-level cache; there need not be memory at all."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        prefetch(builder, pointer(builder, like, args[1], args[2]))
        return context.get_dummy_value()

    return types.void(like, types.intp, types.intp), emit


@intrinsic
def take_ticket(typing: Any, counter: Any) -> Any:
    """Adds one to the int64 at `counter`, atomically -> what it was before."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        at = builder.inttoptr(args[0], INDEX.as_pointer())
        return builder.atomic_rmw("add", at, INDEX(1), "monotonic")

    return types.int64(types.intp), emit
