"""What `pytest` runs without `--exhaustive`: the short run, which everybody has the time for.

It leaves out what is marked `exhaustive`, and takes of a test with several parameters the cases of `covering`, for each
backend anew, since each is a program of its own; of what stands above the backends, by those that are slow, each value
once. `--thorough` is the run after it: of what is marked, too, the cases by which any two values meet, without those of
the short run. A test that is named by `file::test` runs whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

import pytest

from tests.covering import covering

PROGRAMS = ("backend", "kernels", "forward_by", "backward_by")
"""Parameters that say whose code is tested."""
SLOW = {"triton", "reference"}
"""Backends that take ten to a hundred times as long as the others where there is no GPU."""
ABOVE_BACKENDS = ("layers", "torch")
"""Folders of tests of what is the same for all backends."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--exhaustive", action="store_true", help="run all cases of all tests")
    parser.addoption("--only-exhaustive", action="store_true", help="run the cases that are left out without it")
    parser.addoption("--thorough", action="store_true", help="run of those the ones by which any two values meet")


@pytest.hookimpl(trylast=True)  # after -k and -m: of what they select all pairs are wanted
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("exhaustive") or any("::" in argument for argument in config.args):
        return
    kept = set(selected(items))
    if config.getoption("only_exhaustive"):
        kept = set(items) - kept
    elif config.getoption("thorough"):
        kept = set(selected(items, marked=True)) - kept
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def selected(items: Sequence[pytest.Item], marked: bool = False) -> list[pytest.Item]:
    """Those of the short run; or such a selection of all, in which fields of named tuples are values like others."""
    kept, groups = [], defaultdict(list)
    for item in items:
        if item.get_closest_marker("exhaustive") and not marked:
            continue
        if _is_skipped(item):  # is shown as such, and stands for no other case
            kept.append(item)
        else:
            programs = tuple(_parameters(item).get(name) for name in PROGRAMS)
            groups[item.nodeid.partition("[")[0], programs].append(item)
    for group in groups.values():
        cases = [[_hashable(value) for value in _values(item, fields=marked)] for item in group]
        kept += [group[number] for number in covering(cases, _strength(group[0]))]
    return kept


def _strength(item: pytest.Item) -> int:
    """How many values must meet in some case."""
    import torch  # not before tests/conftest.py says how many threads it starts

    is_slow = not SLOW.isdisjoint(value for value in _parameters(item).values() if isinstance(value, str))
    return 1 if is_slow and item.path.parent.name in ABOVE_BACKENDS and not torch.cuda.is_available() else 2


def exhaustive(*values: Any) -> list[Any]:
    """Values of a parameter that the short run leaves out."""
    return [pytest.param(value, marks=pytest.mark.exhaustive) for value in values]


def parameters_of_run(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """Of each case that this run takes of the tests in a module whose fixture requests it: what it is to prepare."""
    return [_parameters(item) for item in request.session.items if item.path == request.path]


def _parameters(item: pytest.Item) -> dict[str, Any]:
    call = getattr(item, "callspec", None)
    return call.params if call else {}


def _values(item: pytest.Item, fields: bool) -> list[Any]:
    """Of the parameters; in place of a named tuple those of its fields, without what its class calls `FOLLOWING`."""
    values: list[Any] = []
    for value in _parameters(item).values():
        if fields and isinstance(value, tuple) and hasattr(value, "_fields"):
            following = getattr(value, "FOLLOWING", ())
            values += [one for name, one in zip(value._fields, value, strict=True) if name not in following]
        else:
            values.append(value)
    return values


def _is_skipped(item: pytest.Item) -> bool:
    return any(mark.args and mark.args[0] for mark in item.iter_markers("skipif"))


def _hashable(value: Any) -> Hashable:
    try:
        hash(value)
    except TypeError:
        return id(value)
    return type(value), value  # since 1 == True
