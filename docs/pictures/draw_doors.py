"""Draws the thumbnails of the home page's three doors; the middle one shows figures of benchmarks/results."""

import json

from canvas import (
    BLUE,
    GREEN,
    HERE,
    INK,
    ORANGE,
    PALE,
    STRONG_BLUE,
    STRONG_GREEN,
    STRONG_ORANGE,
    arrow,
    box,
    canvas,
    label,
    line,
    save,
)

RESULTS = HERE.parents[1] / "benchmarks" / "results" / "cpu-2-cores.json"
SHAPE = {"T": 100, "B": 1, "I": 64, "H": 64}
WIDTH, HEIGHT = 4, 2.2

# Learn: the letters of "hello", one predicting the next.
axes = canvas(WIDTH, HEIGHT)
for t, (letter, following) in enumerate(zip("hell", "ello", strict=True)):
    x = 0.65 + 0.9 * t
    box(axes, x, 0.45, letter, GREEN, 0.45, 0.36, 13)
    box(axes, x, 1.1, "", BLUE, 0.5, 0.4)
    box(axes, x, 1.75, following, ORANGE, 0.45, 0.36, 13)
    arrow(axes, (x, 0.63), (x, 0.9))
    arrow(axes, (x, 1.3), (x, 1.57))
    if t:
        arrow(axes, (x - 0.65, 1.1), (x - 0.25, 1.1))
save(axes, "door-learn")

# Speed up: training, T = 100, B = 1, I = H = 64, as measured.
cases = json.loads(RESULTS.read_text())["cases"]
axes = canvas(WIDTH, HEIGHT)
label(axes, 2, 1.97, "training, torch.nn's time = 1", 10, PALE)
label(axes, 2, 0.25, "two cores, float32, T = 100, B = 1, 64 units", 8, PALE)
for row, cell in enumerate(("lstm", "gru", "rnn_tanh")):
    y = 1.6 - 0.47 * row
    found = next(c for c in cases if (c["cell"], c["mode"], c["shape"]) == (cell, "training", SHAPE))
    times = {c["contender"]: c["seconds"]["median"] for c in found["contenders"]}
    ratio = times["fastrnn auto"] / times["torch.nn"]
    label(axes, 0.2, y, cell.upper().removesuffix("_TANH"), 11, ha="left")
    for below, length, color in ((0.09, 1.0, "#c9c5b8"), (-0.11, ratio, STRONG_ORANGE)):
        line(axes, (0.85, y + below), (0.85 + 2.2 * length, y + below), color=color)
        axes.lines[-1].set(linewidth=9, solid_capstyle="butt")
    label(axes, 0.92 + 2.2 * ratio, y - 0.11, f"{1 / ratio:.1f} times as fast", 9, ha="left")
save(axes, "door-speed")

# Understand: one function becomes kernels.
axes = canvas(WIDTH, HEIGHT)
box(axes, 0.98, 1.1, "f = sigmoid(x.f + u.f)\nn = tanh(x.n + f * u.n)\nreturn mix(f, n, h)", "white", 1.6, 0.8, 7.5)
for y, text, color in (
    (1.75, "derivative", STRONG_GREEN),
    (1.1, "CPU: panels, tiles", STRONG_BLUE),
    (0.45, "GPU: clusters", INK),
):
    arrow(axes, (1.8, 1.1), (2.2, y), color=color)
    box(axes, 3.0, y, text, "white", 1.55, 0.4, 9.5)
save(axes, "door-understand")
