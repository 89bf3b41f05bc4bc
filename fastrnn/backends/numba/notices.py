"""What a user should know, but nothing depends on."""

from __future__ import annotations

import sys
import warnings
from contextlib import suppress


def notice(text: str) -> None:
    """Warns of something that was dealt with. Where warnings are errors, it is printed: what was to be done goes on."""
    try:
        warnings.warn(f"fastrnn: {text}", stacklevel=3)
    except Exception:  # a filter's, or that of a function which shows warnings
        say(text)


def say(text: str) -> None:
    """Prints to stderr, if there is one."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):  # ValueError: it is closed
            print(f"fastrnn: {text}", file=sys.stderr, flush=True)
