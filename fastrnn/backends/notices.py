"""What a user should know, but nothing depends on."""

from __future__ import annotations

import sys
import warnings
from contextlib import suppress

from fastrnn.first_use import by_caller


def notice(text: str) -> None:
    """Warns of something that was dealt with. Where warnings are errors, it is printed: what was to be done goes on."""

    def act() -> None:
        try:
            warnings.warn(f"fastrnn: {text}", stacklevel=4)
        except Exception:  # a filter's, or that of a function which shows warnings
            say(text)

    by_caller(act)


def say(text: str) -> None:
    """Prints to stderr, if there is one that takes it."""

    def act() -> None:
        with suppress(Exception):  # it may be closed, or no file
            if sys.stderr is not None:
                print(f"fastrnn: {text}", file=sys.stderr, flush=True)

    by_caller(act)
