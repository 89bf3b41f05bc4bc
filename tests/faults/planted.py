"""All faults that can be planted."""

from __future__ import annotations

from tests.faults import cells, cuda, host, numba, streams, tools, triton

FAULTS = (*cells.FAULTS, *numba.FAULTS, *triton.FAULTS, *cuda.FAULTS, *host.FAULTS, *streams.FAULTS, *tools.FAULTS)
