"""fastrnn.extension: what it says of an extension that is there, and of one that is not."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastrnn import extension

INSUFFICIENT = "cudaGetDeviceCount: CUDA driver version is insufficient (cudaErrorInsufficientDriver)"


def raising(message: str) -> Callable[..., Any]:
    def call(*_: object) -> Any:
        raise RuntimeError(message)

    return call


def fake(**attributes: Any) -> SimpleNamespace:
    """An extension on a machine with one H100, except for `attributes`."""
    h100 = {"name": "H100", "capability": (9, 0), "multiprocessors": 132, "shared_memory_per_block": 232448}
    usual = {
        "architectures": "80:90a",
        "host": False,
        "runtime_version": 13000,
        "driver_version": lambda: 13010,
        "device_count": lambda: 1,
        "device": lambda index: h100,
        "probe": lambda index: 900,
    }
    return SimpleNamespace(**{**usual, **attributes})


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces the extension by `fake(**attributes)`."""

    def replace(**attributes: Any) -> None:
        module = fake(**attributes)
        monkeypatch.setattr(extension, "_load", lambda: module)

    return replace


@pytest.fixture
def broken_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[ImportError], str | None]:
    """Has the import of the extension, in a package at `tmp_path`, end in an error; returns what is said of it."""
    package = tmp_path / "fastrnn"
    package.mkdir()
    monkeypatch.setattr(extension, "_load", extension._load.__wrapped__)  # not cached
    monkeypatch.setattr(extension, "PACKAGE", package)
    monkeypatch.setattr(extension, "REASON_FILE", package / extension.REASON_FILE.name)

    def say(error: ImportError) -> str | None:
        def import_module(name: str) -> Any:
            raise error

        monkeypatch.setattr(importlib, "import_module", import_module)
        return extension.why_missing()

    return say


ABSENT = ModuleNotFoundError("No module named 'fastrnn._C'", name="fastrnn._C")


def test_build_and_devices(install: Callable[..., None]) -> None:
    install()
    assert extension.why_missing() is None
    assert extension.build() == extension.Build(("80", "90a"), "13.0", host=False)
    assert extension.devices() == [extension.Device(0, "H100", (9, 0), 132, 232448, "90", None)]


def test_an_extension_for_the_cpu(install: Callable[..., None]) -> None:
    install(host=True, architectures="90a")
    assert extension.build() == extension.Build(("90a",), "none", host=True)
    with pytest.raises(RuntimeError, match="compiled for the CPU"):
        extension.devices()


def test_a_device_without_code_says_so(install: Callable[..., None]) -> None:
    message = "report_architecture<<<1, 1>>>: no kernel image is available (cudaErrorNoKernelImageForDevice)"
    install(probe=raising(message))
    (device,) = extension.devices()
    assert (device.architecture, device.problem) == (None, message)


@pytest.mark.parametrize(
    ("driver", "said"),
    [(0, "no NVIDIA driver is installed"), (12080, "the driver supports CUDA 12.8, the extension needs 13.0")],
)
def test_the_driver_is_to_blame(install: Callable[..., None], driver: int, said: str) -> None:
    install(device_count=raising(INSUFFICIENT), driver_version=lambda: driver)
    with pytest.raises(RuntimeError) as caught:
        extension.devices()
    assert str(caught.value).startswith(said)
    assert INSUFFICIENT in str(caught.value)


def test_other_errors_are_left_in_cudas_words(install: Callable[..., None]) -> None:
    message = "cudaGetDeviceCount: no CUDA-capable device is detected (cudaErrorNoDevice)"
    install(device_count=raising(message))
    with pytest.raises(RuntimeError) as caught:
        extension.devices()
    assert str(caught.value) == message


def test_why_it_is_missing(broken_import: Callable[[ImportError], str | None], tmp_path: Path) -> None:
    assert broken_import(ABSENT) == "it is not among the installed files"
    (tmp_path / "setup.py").touch()
    assert str(broken_import(ABSENT)).startswith("this is a source checkout")
    (tmp_path / "fastrnn" / extension.REASON_FILE.name).write_text("no nvcc\n")
    assert broken_import(ABSENT) == "it was not built: no nvcc"
    assert broken_import(ImportError("libfoo.so: cannot open")) == "it does not load: libfoo.so: cannot open"
    with pytest.raises(ImportError, match=r"no CUDA extension .*libfoo\.so"):
        extension.build()


def test_why_streams_have_no_compiled_door(
    broken_import: Callable[[ImportError], str | None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reason_file = tmp_path / "fastrnn" / extension.DOOR_REASON_FILE.name
    monkeypatch.setattr(extension, "DOOR_REASON_FILE", reason_file)
    broken_import(ModuleNotFoundError("No module named 'fastrnn._stream'", name="fastrnn._stream"))
    assert extension.why_no_door() == "it is not among the installed files"
    reason_file.write_text("no C compiler\n")
    assert extension.why_no_door() == "it was not built: no C compiler"


@pytest.mark.skipif(extension.why_missing() is not None, reason=str(extension.why_missing()))
def test_the_extension_answers_with_and_without_a_gpu() -> None:
    assert extension.build().architectures
    if extension.build().host:
        pytest.skip("it is built for the CPU")
    if extension.load().driver_version() == 0:
        with pytest.raises(RuntimeError, match="no NVIDIA driver is installed"):
            extension.devices()
        with pytest.raises(RuntimeError, match="cudaError"):
            extension.load().ceilings.block_barrier(0)
        return
    for device in extension.devices():
        assert (device.architecture is None) != (device.problem is None)


@pytest.mark.skipif(extension.why_missing() is not None, reason=str(extension.why_missing()))
def test_ceilings_are_measured_on_devices_only() -> None:
    module = extension.load()
    assert hasattr(module, "ceilings") != module.host
    if not module.host:
        with pytest.raises(ValueError, match="blocks must be from 1 to 160, got 161"):
            module.ceilings.grid_exchange(0, 161)
