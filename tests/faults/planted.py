"""All faults that can be planted."""

from __future__ import annotations

from tests.faults import host, kernels, tools

FAULTS = (*kernels.FAULTS, *host.FAULTS, *tools.FAULTS)
