"""Draws unrolled.svg: a recurrent net as a loop, and the same loop laid out over four steps."""

from canvas import BLUE, GREEN, ORANGE, PALE, STRONG_ORANGE, arrow, box, canvas, label, save

axes = canvas(8, 3.1)
label(axes, 1.1, 2.8, "one cell, with a loop", 10, PALE)
box(axes, 1.1, 0.55, "$x_t$", GREEN)
box(axes, 1.1, 1.4, "cell", BLUE, 0.8)
box(axes, 1.1, 2.25, "$y_t$", ORANGE)
arrow(axes, (1.1, 0.76), (1.1, 1.19))
arrow(axes, (1.1, 1.61), (1.1, 2.04))
arrow(axes, (1.5, 1.48), (1.85, 1.48), (1.85, 0.98), (0.45, 0.98), (0.45, 1.4), (0.7, 1.4), color=STRONG_ORANGE)
label(axes, 1.85, 1.62, "$h$", 10, STRONG_ORANGE)
label(axes, 2.45, 1.4, "=", 18)

label(axes, 5.35, 2.8, "the same cell, once for each step: the same weights in all of them", 10, PALE)
places = [3.35, 4.6, 5.85, 7.1]
for t, x in enumerate(places):
    box(axes, x, 0.55, f"$x_{t}$", GREEN)
    box(axes, x, 1.4, "cell", BLUE, 0.72)
    box(axes, x, 2.25, f"$y_{t}$", ORANGE)
    arrow(axes, (x, 0.76), (x, 1.19))
    arrow(axes, (x, 1.61), (x, 2.04))
    label(axes, x + 0.2, 0.97, "$W_{ih}$", 8, PALE)
    before = places[t - 1] + 0.36 if t else 2.75
    arrow(axes, (before, 1.4), (x - 0.36, 1.4), color=STRONG_ORANGE)
    middle = (before + x - 0.36) / 2
    label(axes, middle - 0.02, 1.56, f"$h_{t - 1}$" if t else "$h_{-1}$", 9, STRONG_ORANGE)
    label(axes, middle - 0.02, 1.24, "$W_{hh}$" if t else "0", 8, PALE)
arrow(axes, (7.46, 1.4), (7.82, 1.4), color=STRONG_ORANGE)
label(axes, 7.62, 1.56, "$h_3$", 9, STRONG_ORANGE)
save(axes, "unrolled")
