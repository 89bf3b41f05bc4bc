"""Which points the race measures: about sixty, chosen to show every regime, the most telling first."""

from __future__ import annotations

from benchmarks.cases import Case, Shape

LONG_FEW, SHORT_MANY = (1024, 16), (128, 64)
"""Steps and sequences: where a step's latency is everything, and where a batch fills the chip."""
UNITS = (64, 128, 256, 512, 768, 1024, 2048)


def _cases(
    cell: str, dtype: str, units: tuple[int, ...], sizes: tuple[tuple[int, int], ...], **more: object
) -> list[Case]:
    return [
        Case(cell, "training", Shape(T, B, H, H), dtype, device="cuda", **more)  # type: ignore[arg-type]
        for H in units
        for T, B in sizes
    ]


def trainings() -> list[Case]:
    """Each is also measured in inference."""
    core = (LONG_FEW, SHORT_MANY)
    ends = ((128, 1), (128, 256))
    return [
        *_cases("lstm", "float16", (768,), (LONG_FEW,)),
        *_cases("lstm", "bfloat16", (256, 1024, 64, 512, 2048, 128, 768), core),
        *_cases("lstm", "float16", (64, 256, 512, 1024, 128), core),
        *_cases("gru", "bfloat16", (64, 256, 512, 1024), core),
        *_cases("lstm", "tf32", (64, 128, 256, 512, 1024), (SHORT_MANY,)),
        *_cases("lstm", "bfloat16", (64, 256, 512, 1024), ends),
        *_cases("rnn_tanh", "bfloat16", (64, 256, 1024), core),
        *_cases("lstm", "bfloat16", (256,), ((128, 128),), resets=0.03),
        *_cases("lstm", "bfloat16", (256,), ((128, 128),)),
        *_cases("lstm", "float32", (64, 128, 256), (SHORT_MANY,)),
        *_cases("gru", "float16", (64, 256, 768), core),
        *_cases("lstm", "bfloat16", (256, 1024), (SHORT_MANY,), bidirectional=True),
        *_cases("lstm", "bfloat16", (256, 1024), (SHORT_MANY,), layers=4),
        *_cases("lstm", "float16", (64, 256, 1024), ends),
        *_cases("lstm", "tf32", (64, 256), (LONG_FEW,)),
        *_cases("gru", "tf32", (64, 512), (SHORT_MANY,)),
        *_cases("rnn_tanh", "float16", (64, 256), (SHORT_MANY,)),
        *_cases("rnn_tanh", "bfloat16", (128, 512), (SHORT_MANY,)),
        *_cases("gru", "bfloat16", (128,), (SHORT_MANY,)),
        *_cases("lstm", "bfloat16", (1024, 2048), ((128, 32), (128, 128))),
        *_cases("rnn_relu", "bfloat16", (512,), (SHORT_MANY,)),
        *_cases("lstm", "bfloat16", (256, 1024), ((1024, 64),)),
    ]
