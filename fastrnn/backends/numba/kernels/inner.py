"""How the functions are compiled that kernels call, and Python must not: there is no way in. It has their `py_func`."""

from __future__ import annotations

from numba import njit

# The ways into a function from Python and from C would be compiled with it: a seventh of what a kernel takes.
_ONLY_INNER = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}

inner = njit(**_ONLY_INNER)
"""Decorates a function that LLVM inlines as it sees fit."""
forced = njit(forceinline=True, **_ONLY_INNER)
"""Decorates a function that LLVM inlines everywhere."""
