"""Where fastrnn keeps files of its own making, and how they are written."""

from __future__ import annotations

import getpass
import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from fastrnn import trust

DIGEST_SIZE = hashlib.sha256().digest_size


def base() -> Path:
    """Where the user wants files to be kept, as it was said."""
    chosen = os.environ.get("FASTRNN_CACHE_DIR") or os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "fastrnn"


def fallback() -> Path | None:
    """The directory of this user's among the temporary files, if there is a place for such files.

    None if all are trusted: the user says so of another directory, and here anybody can have made it.
    """
    if trust.everybody():
        return None
    try:
        user = os.geteuid() if trust.POSIX else getpass.getuser()
        return Path(tempfile.gettempdir()) / f"fastrnn-{user}"
    except (OSError, KeyError, ImportError):  # no place; the others, by Python's version: Windows tells no user
        return None


def write(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, whoever else writes or reads it at the time.

    Who can read the directory can read it, in one that fastrnn made this user alone.

    Raises:
        OSError: it cannot be written.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with open(handle, "wb") as file:
            file.write(content)
        with suppress(OSError):  # not all file systems have modes
            os.chmod(name, path.parent.stat().st_mode & 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def write_sealed(path: Path, payload: bytes, origin: str = "") -> None:
    """Writes code that `read_sealed` reads; `origin` is what it was made by, beside what its name says.

    Raises:
        OSError: it cannot be written.
    """
    write(path, _digest(path, payload, origin) + payload)


def read_sealed(path: Path, origin: str = "") -> bytes:
    """What `write_sealed` has written.

    Raises:
        OSError: it cannot be read, or is not to be trusted.
        ValueError: it is damaged, or was written under another name or of another origin. Machine code that is damaged
            crashes.
    """
    content = trust.read(path)
    digest, payload = content[:DIGEST_SIZE], content[DIGEST_SIZE:]
    if _digest(path, payload, origin) != digest:
        raise ValueError("it is damaged")
    return payload


def _digest(path: Path, payload: bytes, origin: str) -> bytes:
    """Also of what the code is: a file that is renamed does not become another kernel."""
    return hashlib.sha256(f"{origin}/{path.name}/".encode() + payload).digest()
