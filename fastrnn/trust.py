"""Which directories and files hold kernels that may be run: those that only this user and root can have written.

What is read from the kernels' directory becomes code of this process. So every directory on the way to it is looked at,
from the root down: where nobody else may write, nobody else can exchange what comes next. Owners and modes are looked
at, no access control lists. Where there are no POSIX owners (Windows), nothing is, nor where the user wants it so.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from functools import cache
from pathlib import Path

POSIX = hasattr(os, "geteuid")
ROOT = 0
MOST_LINKS = 40
"""on the way to a directory, as in Linux"""
_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # a pipe would be waited for


class UntrustedError(OSError):
    """Somebody else could decide what is run. The message is a clause that says how."""


@cache
def everybody() -> bool:
    """Whether the user trusts all who can write where kernels are kept: nothing is looked at then.

    Asked once in a process, as is where they are kept.
    """
    return os.environ.get("FASTRNN_TRUST_CACHE_DIR") == "1"


def directory(path: Path, make: bool = False) -> Path:
    """`path` without links, if only this user and root can change what it holds; what is missing is made if `make`.

    It belongs to this user or root. A directory above may be one that all can write to if it is sticky, as /tmp is:
    there nobody can exchange what belongs to another. A link is followed if the user or root made it.

    Raises:
        UntrustedError: somebody else can.
        OSError: it is no directory, or cannot be reached or made.
    """
    if everybody() or not POSIX:
        if make:
            path.mkdir(mode=0o777 if everybody() else 0o700, parents=True, exist_ok=True)
        return path.absolute()
    # The owner of / can exchange all that is below, whatever is looked at here. It is root, but in a user namespace
    # without root (Apptainer's containers) all that belongs to root seems to be nobody's.
    owners = {ROOT, os.geteuid(), Path("/").stat().st_uid}
    real, links = Path(), 0
    todo = list(reversed(path.absolute().parts))
    while todo:
        part = todo.pop()
        if part == "..":
            real = real.parent  # not of the link: `real` has none
            continue
        entry = real / part
        if make and not os.path.lexists(entry):
            with suppress(FileExistsError):  # another process was faster
                entry.mkdir(mode=0o700)
        status = entry.lstat()
        link = stat.S_ISLNK(status.st_mode)
        if not link and not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(f"{entry} is not a directory")
        _check(entry, status, owners, sticky=True)
        if link:
            links += 1
            if links > MOST_LINKS:
                raise OSError(f"{path} has too many links")
            todo.extend(reversed(entry.readlink().parts))
        else:
            real = entry
    _check(real, real.stat(), {ROOT, os.geteuid()})
    return real


def read(path: Path) -> bytes:
    """What the file `path` holds.

    Raises:
        UntrustedError: it is no file, or one that somebody else owns or can write to.
        OSError: it cannot be read, or is a link.
    """
    if everybody():
        return path.read_bytes()
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | _FLAGS)) as file:
        if POSIX:
            status = os.fstat(file.fileno())  # of what was opened
            if not stat.S_ISREG(status.st_mode):
                raise UntrustedError(f"{path} is not a file")
            _check(path, status, {ROOT, os.geteuid()})
        return file.read()


def _check(path: Path, status: os.stat_result, owners: set[int], sticky: bool = False) -> None:
    """Raises UntrustedError if anyone but `owners` can change what is at `path`; with `sticky`, /tmp will do."""
    if status.st_uid not in owners:
        raise UntrustedError(f"{path} belongs to another user")
    if stat.S_ISLNK(status.st_mode) or (sticky and status.st_mode & stat.S_ISVTX):
        return
    if status.st_mode & stat.S_IWOTH or (status.st_mode & stat.S_IWGRP and not _alone_in_group(status)):
        raise UntrustedError(f"other users can write to {path}")


def _alone_in_group(status: os.stat_result) -> bool:
    """Whether the group is its owner's alone, so that whoever may write as the group is the owner.

    Debian and Fedora give every user a group of the user's name, and often make directories writable for the group
    (umask 002). Debian's ssh trusts such groups too. It also asks whether another user has the group as the first one,
    which takes a list of all users; large sites do not give it.
    """
    import grp
    import pwd

    try:
        owner, group = pwd.getpwuid(status.st_uid), grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    own = group.gr_gid == owner.pw_gid and group.gr_name == owner.pw_name
    return own and set(group.gr_mem) <= {owner.pw_name}
