"""Whose files are run when kernels are loaded from disk: those of the user and of root, from where only these write."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("numba", exc_type=ImportError)
grp, pwd = map(pytest.importorskip, ("grp", "pwd"))

from fastrnn import trust  # noqa: E402
from fastrnn.backends.numba import kernel_files  # noqa: E402
from fastrnn.backends.numba.kernel_files import KernelFile, Places  # noqa: E402
from tests.backends.kernel_places import CONTEXT, FILE, OTHER, THIRD, acting_as, as_root, name  # noqa: E402

pytest_plugins = ["tests.backends.kernel_places"]


class _Planted:
    def __init__(self, run: Path) -> None:
        self.run = run

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.run),)


def plant(directory: Path) -> Path:
    """A whole file, not a damaged one, that makes `directory`/run when it is unpickled. Returns its path."""
    directory.mkdir(parents=True, exist_ok=True)
    kernel_files.write(directory / FILE, pickle.dumps(_Planted(directory / "run")))
    return directory / FILE


def load() -> Any:
    return KernelFile("pack_float32", "pack float32").load_overload(None, CONTEXT)


# Whose directories. Each function gets an empty directory that is trusted, and makes what is not below it: it returns
# the base directory, the directory with the planted file, and what is said.


def _linked_from_where_all_can_write(top: Path) -> tuple[Path, Path, str]:
    (top / "drop").mkdir()
    (top / name()).symlink_to(top / "drop")
    os.chown(top / name(), OTHER, OTHER, follow_symlinks=False)
    top.chmod(0o1777)
    return top, top / "drop", f"{top / name()} belongs to another user"


def _own_but_all_can_write(top: Path) -> tuple[Path, Path, str]:
    (top / name()).mkdir()
    (top / name()).chmod(0o777)
    return top, top / name(), f"other users can write to {top / name()}"


def _own_and_sticky(top: Path) -> tuple[Path, Path, str]:
    base, directory, said = _own_but_all_can_write(top)
    directory.chmod(0o1777)
    return base, directory, said


def _own_but_a_group_can_write(top: Path) -> tuple[Path, Path, str]:
    base, directory, said = _own_but_all_can_write(top)
    directory.chmod(0o770)
    os.chown(directory, 0, OTHER)
    return base, directory, said


def _below_what_belongs_to_another(top: Path) -> tuple[Path, Path, str]:
    base = top / "base"
    (base / name()).mkdir(parents=True)
    os.chown(base, OTHER, OTHER)
    return base, base / name(), f"{base} belongs to another user"


def _below_what_all_can_write_to(top: Path) -> tuple[Path, Path, str]:
    base = top / "above" / "base"
    (base / name()).mkdir(parents=True)
    base.parent.chmod(0o777)
    return base, base / name(), f"other users can write to {base.parent}"


def _linked_to_below_what_all_can_write_to(top: Path) -> tuple[Path, Path, str]:
    _, directory, said = _below_what_all_can_write_to(top)
    (top / "link").symlink_to(Path("above") / "base")
    return top / "link", directory, said


def _linked_by_another(top: Path) -> tuple[Path, Path, str]:
    (top / "base" / name()).mkdir(parents=True)
    (top / "link").symlink_to("base")
    os.chown(top / "link", OTHER, OTHER, follow_symlinks=False)
    return top / "link", top / "base" / name(), f"{top / 'link'} belongs to another user"


def _below_another_one_and_up_again(top: Path) -> tuple[Path, Path, str]:
    (top / "theirs").mkdir()
    os.chown(top / "theirs", OTHER, OTHER)
    return top / "theirs" / "..", top / name(), f"{top / 'theirs'} belongs to another user"


each_arrangement = pytest.mark.parametrize(
    "arrange",
    [
        _linked_from_where_all_can_write,
        _own_but_all_can_write,
        _own_and_sticky,
        _own_but_a_group_can_write,
        _below_what_belongs_to_another,
        _below_what_all_can_write_to,
        _linked_to_below_what_all_can_write_to,
        _linked_by_another,
        _below_another_one_and_up_again,
    ],
)


@as_root
@each_arrangement
def test_directories_that_are_not_trusted(
    arrange: Callable[[Path], tuple[Path, Path, str]], places: Callable[..., Places], tmp_path: Path
) -> None:
    """The planted file is the user's own, so that only the directories tell."""
    (tmp_path / "top").mkdir()
    base, directory, why = arrange(tmp_path / "top")
    plant(directory)
    with pytest.warns(UserWarning, match="is not trusted") as said:
        found = places(FASTRNN_CACHE_DIR=base)
    [warning] = said
    where = "kernels are compiled anew in every process; set FASTRNN_CACHE_DIR"
    remedy = "or FASTRNN_TRUST_CACHE_DIR=1 if you trust all who can write there"
    assert str(warning.message) == f"fastrnn: {base} is not trusted, because {why}: {where}, {remedy}"
    assert found == ((), None)
    assert load() is None
    assert not (directory / "run").exists()


@as_root
@each_arrangement
def test_directories_that_the_user_trusts_all_the_same(
    arrange: Callable[[Path], tuple[Path, Path, str]], places: Callable[..., Places], tmp_path: Path
) -> None:
    """And so with a file that is another's, and a link. That it is damaged is still found."""
    (tmp_path / "top").mkdir()
    base, directory, _ = arrange(tmp_path / "top")
    path = plant(directory)
    os.chown(path, OTHER, OTHER)
    path.symlink_to(path.rename(directory / "elsewhere"))
    found = places(tmp_path, FASTRNN_CACHE_DIR=base, FASTRNN_TRUST_CACHE_DIR="1")
    assert found == ((base / name(),), base / name())
    with pytest.warns(UserWarning, match=f"{FILE} is not used: "):
        assert load() is None
    (directory / "run").rmdir()
    path.write_bytes(path.read_bytes() + b"damage")
    with pytest.warns(UserWarning, match=f"{FILE} is not used: it is damaged"):
        assert load() is None
    assert not (directory / "run").exists()


@pytest.mark.parametrize(("umask", "modes"), [(0o007, (0o770, 0o640)), (0o022, (0o755, 0o644))])
def test_a_directory_for_several_users(
    umask: int, modes: tuple[int, int], places: Callable[..., Places], tmp_path: Path
) -> None:
    before = os.umask(umask)
    try:
        kept = places(FASTRNN_CACHE_DIR=tmp_path / "group", FASTRNN_TRUST_CACHE_DIR="1").kept
        assert kept is not None
        file = plant(kept)
    finally:
        os.umask(before)
    assert tuple(path.stat().st_mode & 0o777 for path in (kept, file)) == modes


def test_a_fallback_is_never_trusted_so(places: Callable[..., Places], tmp_path: Path) -> None:
    """Anybody can have made it."""
    with pytest.warns(UserWarning, match="cannot write to /dev/null: kernels are compiled anew in every process"):
        assert places(tmp_path, FASTRNN_CACHE_DIR=Path("/dev/null"), FASTRNN_TRUST_CACHE_DIR="1") == ((), None)
    assert not list(tmp_path.glob("fastrnn-*"))


@as_root
def test_a_directory_that_another_has_made_since(places: Callable[..., Places], tmp_path: Path) -> None:
    """Once a cleaner of temporary files had taken the user's own away, in the middle of a process."""
    kept = places(FASTRNN_CACHE_DIR=tmp_path).kept
    assert kept is not None
    plant(kept)
    os.chown(kept, OTHER, OTHER)
    with pytest.warns(UserWarning, match=f"{FILE} is not used: {kept} belongs to another user"):
        assert load() is None
    with pytest.warns(UserWarning, match=f"cannot keep a compiled kernel: {kept} belongs to another user"):
        KernelFile("a_kernel", "a kernel").save_overload(None, SimpleNamespace(_reduce=tuple))
    assert [path.name for path in kept.iterdir()] == [FILE]


def test_a_planted_file_would_run(places: Callable[..., Places], tmp_path: Path) -> None:
    """In a directory that is trusted: the tests around this one can fail."""
    plant(tmp_path / name())
    assert places(FASTRNN_CACHE_DIR=tmp_path).kept == tmp_path / name()
    with pytest.warns(UserWarning, match=f"{FILE} is not used: "):  # what it returns is no kernel
        assert load() is None
    assert (tmp_path / name() / "run").exists()


@as_root
@pytest.mark.parametrize("kind", ["another's", "writable", "link", "pipe"])
def test_files_that_are_not_trusted(kind: str, places: Callable[..., Places], tmp_path: Path) -> None:
    path = plant(tmp_path / name())
    if kind == "another's":
        os.chown(path, OTHER, OTHER)
    elif kind == "writable":
        path.chmod(0o666)
    elif kind == "link":
        path.symlink_to(path.rename(tmp_path / "elsewhere"))
    else:
        path.unlink()
        os.mkfifo(path)
    places(FASTRNN_CACHE_DIR=tmp_path)
    with pytest.warns(UserWarning, match=f"fastrnn: {path} is not used: "):
        assert load() is None
    assert not (tmp_path / name() / "run").exists()


@as_root
def test_another_users_home(places: Callable[..., Places], public: Path) -> None:
    """Root with a user's HOME (sudo -E), and a user with another's: who acts counts, not who called."""
    plant(public / "home" / ".cache" / "fastrnn" / name())
    os.chown(public / "home", OTHER, OTHER)
    (public / "tmp").mkdir()
    (public / "tmp").chmod(0o1777)
    with pytest.warns(UserWarning, match=f"fastrnn is not trusted, because {public / 'home'} belongs to another user"):
        found = places(public / "tmp", HOME=public / "home")
    assert found.read == (found.kept,) == (public / "tmp" / "fastrnn-0" / name(),)
    assert load() is None
    with acting_as(THIRD), pytest.raises(trust.UntrustedError, match="belongs to another user"):
        trust.directory(public / "home")


@as_root
def test_a_fallback_that_another_made(places: Callable[..., Places], public: Path) -> None:
    plant(public / "fastrnn-0" / name())
    os.chown(public / "fastrnn-0", OTHER, OTHER)
    public.chmod(0o1777)
    with pytest.warns(UserWarning, match="cannot write to /dev/null: kernels are compiled anew in every process"):
        assert places(public, FASTRNN_CACHE_DIR=Path("/dev/null")) == ((), None)


def test_links_of_the_users_own(places: Callable[..., Places], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache directory that lies on another disk, say. What is made is for the user alone."""
    umask = os.umask(0)
    try:
        (tmp_path / "disk").mkdir(mode=0o755)
        (tmp_path / "all").mkdir(mode=0o1777)
        (tmp_path / "all" / ".cache").symlink_to(tmp_path / "second")
        (tmp_path / "second").symlink_to(Path("all") / ".." / "disk" / "cache")
        found = places(HOME=tmp_path / "all")
    finally:
        os.umask(umask)
    made = tmp_path / "disk" / "cache"
    assert found == ((made / "fastrnn" / name(),), made / "fastrnn" / name())
    assert {path.stat().st_mode & 0o777 for path in (made, made / "fastrnn", made / "fastrnn" / name())} == {0o700}
    monkeypatch.chdir(tmp_path)
    assert trust.directory(Path("disk/../second/fastrnn")) == made / "fastrnn"
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(OSError, match="one/x has too many links"):
        trust.directory(tmp_path / "one" / "x", make=True)


@pytest.mark.parametrize(
    ("group", "trusted"),
    [
        ({"gr_name": "ada", "gr_gid": 7, "gr_mem": []}, True),
        ({"gr_name": "ada", "gr_gid": 7, "gr_mem": ["ada"]}, True),
        ({"gr_name": "ada", "gr_gid": 7, "gr_mem": ["ada", "bob"]}, False),
        ({"gr_name": "staff", "gr_gid": 7, "gr_mem": []}, False),
        ({"gr_name": "ada", "gr_gid": 8, "gr_mem": []}, False),
        (None, False),
    ],
)
def test_a_group_may_write_if_it_is_the_users_alone(
    group: dict[str, Any] | None, trusted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(number: int) -> Any:
        if group is None:
            raise KeyError(number)
        return SimpleNamespace(**group)

    monkeypatch.setattr(grp, "getgrgid", found)
    monkeypatch.setattr(pwd, "getpwuid", lambda number: SimpleNamespace(pw_name="ada", pw_gid=7))
    tmp_path.chmod(0o775)
    refused = pytest.raises(trust.UntrustedError, match=f"other users can write to {tmp_path}$")
    with nullcontext() if trusted else refused:
        assert trust.directory(tmp_path / "cache", make=True) == tmp_path / "cache"


@as_root
def test_where_roots_files_seem_to_be_nobodys(public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user namespace without root: what root owns is nobody's there, from / on, and so is what others own."""
    seen = Path.stat

    def mapped(path: Path, **options: Any) -> os.stat_result:
        status = list(seen(path, **options))[:10]
        status[4] = status[4] if status[4] == THIRD else OTHER
        return os.stat_result(status)

    (public / "home").mkdir()
    os.chown(public / "home", THIRD, THIRD)
    monkeypatch.setattr(Path, "stat", mapped)
    monkeypatch.setattr(Path, "lstat", lambda path: mapped(path, follow_symlinks=False))
    with acting_as(THIRD):
        assert trust.directory(public / "home" / "cache", make=True) == public / "home" / "cache"
        with pytest.raises(trust.UntrustedError, match=f"{public} belongs to another user"):
            trust.directory(public)
