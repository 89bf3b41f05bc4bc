"""Classes derived from torch.nn's layers, whose calls fastrnn's can take over: they override nothing of a call.

Such a class gets a twin that derives from fastrnn's layer and from the class itself, in this order. So the twin's
objects compute as fastrnn's do, and are else what they were: of that class, with its methods, name, constructor and
representation.
"""

from __future__ import annotations

from abc import ABCMeta
from typing import Any
from weakref import WeakValueDictionary

from torch import nn

_LEFT_ALONE = {"extra_repr", "reset_parameters", "flatten_parameters", "_apply", "_replicate_for_data_parallel"}
"""What torch's layers have and calls do not depend on."""
_SPECIAL = {"__getattr__", "__getattribute__", "__reduce__", "__reduce_ex__", "__init_subclass__"}
"""What decides how weights are found, and objects and classes made."""


class Twin:
    """A base of every twin, for pickles: its class is in no module, so that it is made again from the other."""

    __slots__ = ()
    twin_of: type[nn.Module]
    """the class that was derived from torch's"""
    on: type[nn.Module]
    """fastrnn's layer"""

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(max(int(protocol), 2))
        return (_empty, (self.twin_of, self.on), *reduced[2:])


_twins: WeakValueDictionary[type, type] = WeakValueDictionary()


def twin(cls: type[nn.Module], ours: type[nn.Module]) -> type[nn.Module]:
    """The twin of a class derived from torch's layer, on fastrnn's; `why_none` must have found nothing against it."""
    found: Any = _twins.get(cls)
    if found is None:
        # The constructor is the class's own: its methods may make others of their kind.
        metaclass: Any = type(cls)
        own = {"__init__": cls.__init__, "twin_of": cls, "on": ours}
        names = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
        # fastrnn's layer first of all, by which Python tells that an object may change to this class.
        found = _twins[cls] = metaclass(cls.__name__, (ours, cls, Twin), {**names, **own})
    return found  # type: ignore[no-any-return]


def _empty(cls: type[nn.Module], ours: type[nn.Module]) -> Any:
    """An object of a class's twin, for a pickle to fill."""
    made: Any = twin(cls, ours)
    return made.__new__(made)


def why_none(cls: type[nn.Module], torchs: type[nn.Module], ours: type[nn.Module]) -> str:
    """Why there is no twin of a class derived from torch's layer on fastrnn's; empty if there is one."""
    if type(cls) not in (type, ABCMeta):
        return "with a metaclass of its own"
    own = {name for base in cls.__mro__ if base not in torchs.__mro__ for name in vars(base)}
    own -= {name for name in own if name.startswith("__") and name not in _SPECIAL}
    of_a_call = {*vars(torchs), *vars(torchs.__mro__[1])} - _LEFT_ALONE
    replaced = own & (of_a_call | (set(dir(ours)) - set(dir(torchs))) | _SPECIAL)
    if not replaced:
        return ""
    return f"with {'a forward' if 'forward' in replaced else 'an attribute ' + min(replaced)} of its own"
