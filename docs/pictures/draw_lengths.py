"""Draws lengths.svg and resets.svg: which steps of a padded batch are live, and where a reset cuts a sequence."""

from canvas import BLUE, GREEN, ORANGE, PALE, STRONG_RED, arrow, box, canvas, label, line, save

LENGTHS = (6, 2, 4, 0)
axes = canvas(8, 2.7)
label(axes, 4, 2.42, "lengths=[6, 2, 4, 0]: what lies behind a sequence's end reaches nothing", 10, weight="bold")
for row, length in enumerate(LENGTHS):
    y = 1.95 - 0.46 * row
    label(axes, 0.95, y, f"sequence {row}", 9, PALE)
    for t in range(6):
        live = t < length
        box(axes, 2.0 + 0.75 * t, y, f"$x_{t}$" if live else "", GREEN if live else "#eceae3", 0.6, 0.34, 10)
    text = f"hn: after step {length - 1}" if length else "hn: the initial state"
    label(axes, 6.35, y, text, 9, ha="left")
save(axes, "lengths")

axes = canvas(8, 1.9)
label(axes, 4, 1.62, "resets at steps 2 and 5: three episodes in one row", 10, weight="bold")
for t in range(7):
    x = 0.9 + 1.03 * t
    episode = (t >= 2) + (t >= 5)
    box(axes, x, 0.85, f"$x_{t}$", (GREEN, BLUE, ORANGE)[episode], 0.6, 0.38, 11)
    if t in (2, 5):
        line(axes, (x - 0.515, 0.5), (x - 0.515, 1.2), color=STRONG_RED)
        label(axes, x - 0.515, 0.36, "state = 0", 9, STRONG_RED)
    elif t:
        arrow(axes, (x - 0.73, 0.85), (x - 0.3, 0.85))
save(axes, "resets")
