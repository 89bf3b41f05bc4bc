"""Draws lstm.svg: one step of an LSTM, in the names of docs/equations.md."""

from canvas import BLUE, GREEN, PALE, STRONG_BLUE, STRONG_ORANGE, arrow, box, canvas, knot, label, line, save

axes = canvas(8, 4.2)
label(axes, 4, 3.9, "one step of an LSTM", 11, weight="bold")

# The memory's road, from c before to c.
top = 3.1
label(axes, 0.6, top, "$c_{t-1}$", 12, STRONG_BLUE)
arrow(axes, (0.9, top), (7.15, top), color=STRONG_BLUE)
label(axes, 7.42, top, "$c_t$", 12, STRONG_BLUE)
knot(axes, 2.2, top, "×")
knot(axes, 4.1, top, "+")
label(axes, 2.2, top + 0.32, "forget", 9, PALE)
label(axes, 4.1, top + 0.32, "add what is new", 9, PALE)
label(axes, 6.38, 2.72, "show", 9, PALE)

# The road of x and h, which all gates read.
low = 0.85
label(axes, 0.6, low, "$h_{t-1}$", 12, STRONG_ORANGE)
label(axes, 1.3, 0.35, "$x_t$", 12)
arrow(axes, (1.3, 0.5), (1.3, low))
line(axes, (0.9, low), (5.3, low))
gates = [(2.2, "$f$", "σ", BLUE), (3.2, "$i$", "σ", BLUE), (4.1, "$g$", "tanh", GREEN), (5.3, "$o$", "σ", BLUE)]
for x, name, function, color in gates:
    box(axes, x, 1.4, function, color, 0.62, 0.36, 10)
    arrow(axes, (x, low), (x, 1.22))
    label(axes, x - 0.15, 1.77, name, 11)
arrow(axes, (2.2, 1.58), (2.2, top - 0.14))
knot(axes, 4.1, 2.3, "×")
arrow(axes, (4.1, 1.58), (4.1, 2.16))
arrow(axes, (3.2, 1.58), (3.2, 2.3), (3.96, 2.3))
arrow(axes, (4.1, 2.44), (4.1, top - 0.14))

# What is shown of the memory.
box(axes, 6.05, 2.33, "tanh", GREEN, 0.62, 0.32, 10)
arrow(axes, (6.05, top), (6.05, 2.49))
knot(axes, 6.05, 1.75, "×")
arrow(axes, (6.05, 2.17), (6.05, 1.89))
arrow(axes, (5.3, 1.58), (5.3, 1.75), (5.91, 1.75))
arrow(axes, (6.05, 1.61), (6.05, low), (7.15, low), color=STRONG_ORANGE)
label(axes, 7.42, low, "$h_t$", 12, STRONG_ORANGE)
label(
    axes, 3.6, 0.45, "every gate:  σ or tanh of  $W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh}$", 9.5, PALE, ha="left"
)
save(axes, "lstm")
