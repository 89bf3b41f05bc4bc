"""Draws gru.svg: one step of a GRU as torch.nn and cuDNN have it, with the reset gate after the product."""

from canvas import BLUE, GREEN, PALE, STRONG_ORANGE, arrow, box, canvas, knot, label, line, save

axes = canvas(8, 3.9)
label(axes, 4, 3.6, "one step of a GRU", 11, weight="bold")

# The state's road.
top = 2.85
label(axes, 0.6, top, "$h_{t-1}$", 12, STRONG_ORANGE)
arrow(axes, (0.9, top), (7.15, top), color=STRONG_ORANGE)
label(axes, 7.42, top, "$h_t$", 12, STRONG_ORANGE)
knot(axes, 5.9, top, "mix")
axes.patches[-1].set_radius(0.24)
label(axes, 5.9, top + 0.4, "$z\\,h_{t-1} + (1 - z)\\,n$", 10, PALE)

# What all gates read.
low = 0.95
label(axes, 1.7, 0.42, "$x_t$", 12)
arrow(axes, (1.7, 0.58), (1.7, low))
line(axes, (1.3, top), (1.3, low))
line(axes, (1.3, low), (5.0, low))
box(axes, 2.3, 1.5, "σ", BLUE, 0.62, 0.36, 10)
box(axes, 3.4, 1.5, "σ", BLUE, 0.62, 0.36, 10)
box(axes, 5.0, 1.5, "tanh", GREEN, 0.62, 0.36, 10)
for x in (2.3, 3.4, 5.0):
    arrow(axes, (x, low), (x, 1.32))
label(axes, 2.16, 1.84, "$z$", 11)
label(axes, 3.26, 1.84, "$r$", 11)
label(axes, 4.86, 1.84, "$n$", 11)
arrow(axes, (2.3, 1.68), (2.3, 2.35), (5.73, 2.35), (5.73, top - 0.2))
arrow(axes, (3.4, 1.68), (3.4, 2.0), (4.2, 2.0), (4.2, 1.5), (4.69, 1.5))
label(axes, 4.2, 2.15, "reset: scales $W_{hh} h_{t-1} + b_{hh}$ of n", 8.5, PALE)
arrow(axes, (5.0, 1.68), (5.0, 1.9), (6.05, 1.9), (6.05, top - 0.2))
label(axes, 2.3, 0.5, "$z$, $r$:  σ of  $W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh}$", 9.5, PALE, ha="left")
label(axes, 7.4, 0.5, "no second state", 9.5, PALE, ha="right")
save(axes, "gru")
