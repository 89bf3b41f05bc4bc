"""Raises ImportError when it is imported in a subinterpreter.

PyTorch supports the main interpreter only: in another one importing it hangs with Python 3.11, and its gradients fail
with 3.12. `fastrnn` imports this before it imports torch.
"""

from __future__ import annotations

import importlib


def is_main() -> bool:
    """Whether this is the interpreter that the process began with."""
    for name in ("_interpreters", "_xxsubinterpreters"):  # since Python 3.13, and before
        try:
            interpreters = importlib.import_module(name)
        except ImportError:
            continue
        return bool(interpreters.get_current() == interpreters.get_main())
    return True


if not is_main():
    raise ImportError("fastrnn cannot be imported in a subinterpreter: PyTorch supports the main interpreter only")
