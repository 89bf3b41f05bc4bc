"""fastrnn measured against torch.nn: `python -m benchmarks` for a report, `pytest benchmarks` for pytest-benchmark's.

Both run the same cases (`cases`) by the same contenders (`contenders`), and neither gives a time for a contender whose
results differ from torch.nn's (`parity`).
"""
