"""Whether Triton interprets kernels on the CPU instead of compiling them: TRITON_INTERPRET, read once at import."""

from __future__ import annotations

import os

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")
