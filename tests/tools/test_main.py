"""`python -m fastrnn`."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fastrnn
from fastrnn import __main__ as command
from fastrnn import backends, extension


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert command.main(list(arguments)) == 0
    return capsys.readouterr().out


def test_the_module_runs() -> None:
    done = subprocess.run([sys.executable, "-m", "fastrnn"], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    for expected in ("torch", "CPU", "CUDA extension", "streaming door", "C compiler", "backend reference  ready"):
        assert expected in done.stdout


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(printed(capsys, "--json"))
    assert found["versions"]["fastrnn"] == fastrnn.__version__
    assert found["versions"]["torch"] == version("torch")
    assert found["cpu"]["threads"] == torch.get_num_threads()
    assert list(found["backends"]) == list(backends.BACKENDS)
    assert found["backends"]["reference"] == {"ready": True, "reason": None}
    assert found["extension"]["built"] == (extension.why_missing() is None)
    assert found["streaming_door"] == {"built": extension.why_no_door() is None, "reason": extension.why_no_door()}
    assert (found["nvrtc"]["version"] is None) == isinstance(found["nvrtc"]["reason"], str)


def test_every_line_is_whole_when_piped(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "a reason " * 50 + "[not markup]"
    monkeypatch.setattr(extension, "why_missing", lambda: reason)
    assert f"CUDA extension  none: {reason}" in printed(capsys)


def test_how_streams_are_called(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "why_no_door", lambda: None)
    assert "streaming door  compiled" in printed(capsys)
    monkeypatch.setattr(extension, "why_no_door", lambda: "it was not built: no C compiler")
    assert "streaming door  in Python, which is slower: it was not built: no C compiler" in printed(capsys)


def test_a_backend_says_why_it_cannot_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def module(name: str) -> SimpleNamespace:
        if name == "aten":
            raise ImportError("no such library")
        return SimpleNamespace(ready=lambda: "no GPU" if name == "reference" else None)

    monkeypatch.setattr(backends, "module", module)
    out = printed(capsys)
    assert "backend aten       not here: it does not load: ImportError: no such library" in out
    assert "backend reference  not here: no GPU" in out
    assert "backend numba      ready" in out


def test_gpus_of_torch_and_of_the_extension(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    properties = SimpleNamespace(name="H100", major=9, minor=0, multi_processor_count=132, total_memory=80 * 2**30)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    ran = extension.Device(0, "H100", (9, 0), 132, 227 * 2**10, "90", None)
    did_not = extension.Device(1, "V100", (7, 0), 80, 96 * 2**10, None, "no kernel image is available")
    monkeypatch.setattr(extension, "why_missing", lambda: None)
    monkeypatch.setattr(extension, "build", lambda: extension.Build(("80", "90a"), "13.0"))
    monkeypatch.setattr(extension, "devices", lambda: [ran, did_not])
    lines = printed(capsys).splitlines()
    for expected in (
        "GPU 0           H100, sm_90, 132 SMs, 80 GiB",
        "CUDA extension  CUDA 13.0, for sm_80, sm_90a",
        "                H100, 132 SMs, 227 KiB shared memory a block: runs its sm_90 code",
        "                V100, 80 SMs, 96 KiB shared memory a block: no kernel image is available",
    ):
        assert expected in lines


def test_what_is_missing_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(command, "python_headers", lambda: None)
    monkeypatch.setattr(command, "PACKAGES", ("torch", "a-package-that-is-not-there"))
    out = printed(capsys)
    assert "C compiler                   none (Triton's launcher needs one on a GPU)" in out
    assert "Python headers               none" in out
    assert "a-package-that-is-not-there  not installed" in out


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.main(["--jsn"])
    assert caught.value.code == 2
    assert "--jsn" in capsys.readouterr().err
