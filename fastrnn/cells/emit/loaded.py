"""Running source that an emitter wrote."""

from __future__ import annotations

import linecache
from typing import Any


def namespace(source: str, file: str, module: str) -> dict[str, Any]:
    """What a module of this text has, as if it had been imported under the name `module`.

    `file` names it in tracebacks, and to whoever asks for a function's source.
    """
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    made: dict[str, Any] = {"__name__": module}
    exec(compile(source, file, "exec"), made)
    return made
