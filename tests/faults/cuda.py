"""Faults of the kernels in CUDA C++ and of what writes cells for them."""

from __future__ import annotations

from tests.faults.fault import Fault

FAULTS = (
    Fault(
        "cuda-live",
        "csrc/masks.cuh",
        "return t < length;",
        "return t <= length;",
        "a sequence has one step more",
    ),
    Fault(
        "cuda-entry",
        "csrc/masks.cuh",
        "return backwards ? t + 1 : t;",
        "return backwards ? t : t + 1;",
        "resets cut after their step, as they would the other way round",
    ),
    Fault(
        "cuda-cut",
        "csrc/masks.cuh",
        "return reset != 0 && live(k, length);",
        "return reset != 0;",
        "a reset at t = length clears the final state",
    ),
    Fault(
        "cuda-starts",
        "csrc/masks.cuh",
        "return is_first || (backwards && t + 1 >= length);",
        "return is_first;",
        "in reverse the first step of a short sequence is taken for a later one",
    ),
    Fault(
        "cuda-one-step",
        "csrc/cluster/backward.cuh",
        "if (a.T > 0) receive(a.T - 1);",
        "if (a.T > 1) receive(a.T - 1);",
        "of a single step no block receives the others' shares",
    ),
    Fault(
        "cuda-reset-in-reverse",
        "csrc/cluster/forward.cuh",
        "if (cuts >> sent_column & 1) next = {};",
        "if (cuts >> (sent_column + 1) & 1) next = {};",
        "the next sequence's reset clears what other blocks receive",
    ),
    Fault(
        "cuda-beyond-row",
        "csrc/grid/exchange.cuh",
        "words[i] = i < count ? device::load_strong(from + i) : Word(0);",
        "words[i] = i <= count ? device::load_strong(from + i) : Word(0);",
        "an element beyond a row's last unit is waited for",
    ),
    Fault(
        "cuda-first-block",
        "csrc/grid/backward.cuh",
        "(row_before * BLOCKS + FIRST_U) * H",
        "row_before * BLOCKS * H",
        "a GRU's w_hh is multiplied by the gradient of n's share of the input",
    ),
    Fault(
        "cuda-mix",
        "fastrnn/cells/emit/cuda.py",
        '"{2} + {0} * ({1} - {2})"',
        '"{1} + {0} * ({2} - {1})"',
        "mix takes z for 1 - z",
    ),
    Fault(
        "cuda-derivative-of-saved",
        "fastrnn/cells/emit/cuda.py",
        '_Array("saved", "SAVED", [leaf("saved", name) for name in p.saved]),',
        '_Array("saved", "SAVED", [leaf("saved", name) for name in sorted(p.saved)]),',
        "the derivative takes saved values for one another where their names are not in alphabetical order",
    ),
    Fault(
        "cuda-maximum-of-nan",
        "csrc/elements.cuh",
        "return a < b || b != b ? b : a;",
        "return a < b ? b : a;",
        "the maximum of a number and NaN is the number",
    ),
    Fault(
        "cuda-bytes-of-weights",
        "csrc/memory.cuh",
        "return static_cast<const Any*>(__builtin_assume_aligned(from, sizeof(Value)))->value;",
        "return load<Value>(from);",
        "weights are loaded byte by byte",
    ),
    Fault(
        "cuda-register-tiles",
        "csrc/cluster/forward_shape.cuh",
        "? 32\n",
        "? 60\n",
        "more weights in registers than there are registers for: nvcc spills",
    ),
)
