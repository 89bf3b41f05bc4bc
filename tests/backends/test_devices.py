"""What the tests themselves rely on: on which device they compute, and by which of torch's kernels beside it."""

from __future__ import annotations

import pytest
import torch

from tests import devices


def test_backends_and_devices_among_the_parameters_name_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "INTERPRETED", False)
    assert devices.on_gpu({"backend": "triton", "kind": "GRU"})
    assert devices.on_gpu({"device": torch.device("cuda", 0), "backend": "auto"})
    assert not devices.on_gpu({"backend": "aten", "device": torch.device("cpu"), "size": 3})
    assert not devices.on_gpu({"forward_by": "triton", "backward_by": "numba"})  # which no device serves
    monkeypatch.setattr(devices, "INTERPRETED", True)
    assert not devices.on_gpu({"backend": "triton"})


@pytest.mark.parametrize("before", [True, False])
def test_without_cudnn_changes_nothing_else_and_nothing_for_good(before: bool) -> None:
    usual, tf32 = torch.backends.cudnn.enabled, torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.enabled = before
    try:
        with devices.without_cudnn():
            assert not torch.backends.cudnn.enabled
            assert torch.backends.cudnn.allow_tf32 == tf32
        assert torch.backends.cudnn.enabled == before
    finally:
        torch.backends.cudnn.enabled = usual
