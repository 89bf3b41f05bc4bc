"""Stage `machine`: the GPU, the versions, what the extension says of the device, and what each backend says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import environment
from fastrnn import backends, extension


def cases(device: str = "cuda") -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """See `work`."""
    yield "environment", lambda: {"environment": environment.describe(device)}
    yield "backends", lambda: {"backends": {name: backends.module(name).ready() for name in backends.BACKENDS}}
    yield "extension", _extension


def _extension() -> dict[str, Any]:
    missing = extension.why_missing()
    if missing is not None:
        return {"missing": missing}
    module, build = extension.load(), extension.build()
    told: dict[str, Any] = {"architectures": build.architectures, "cuda": build.cuda, "host": build.host}
    if not build.host:
        told["devices"] = [repr(device) for device in extension.devices()]
        told["limits"] = module.limits(0)
    return told
