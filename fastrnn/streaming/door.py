"""`Door`: from `fastrnn._stream`, which calls a kernel within some 200 ns, else the same in Python.

`plain_door.py` says what it does; `fastrnn.extension.why_no_door` why it is the one in Python.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastrnn.streaming.plain_door import Door
else:
    try:
        from fastrnn._stream import Door
    except ImportError:
        from fastrnn.streaming.plain_door import Door

__all__ = ["Door"]
