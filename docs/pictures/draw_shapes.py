"""Draws shapes.svg: the four shapes of input and output that a recurrent net can have."""

from canvas import BLUE, GREEN, ORANGE, PALE, arrow, box, canvas, label, save

SHAPES = [
    ("one to many", "a picture → its words", (0,), (0, 1, 2)),
    ("many to one", "a review → good or bad", (0, 1, 2), (2,)),
    ("many to many", "a sentence → another", (0, 1), (2, 3)),
    ("many to many, synced", "a frame → its label", (0, 1, 2), (0, 1, 2)),
]

axes = canvas(8, 3.0)
for column, (title, example, reads, writes) in enumerate(SHAPES):
    steps = max(*reads, *writes) + 1
    left = 0.25 + 1.92 * column
    gap = 1.7 / steps
    label(axes, left + 0.86, 2.68, title, 10, weight="bold")
    label(axes, left + 0.86, 0.3, example, 8.5, PALE)
    for t in range(steps):
        x = left + 0.02 + gap * (t + 0.5)
        box(axes, x, 1.5, "", BLUE, 0.3, 0.36)
        if t:
            arrow(axes, (x - gap + 0.15, 1.5), (x - 0.15, 1.5))
        if t in reads:
            box(axes, x, 0.8, "$x$", GREEN, 0.3, 0.32, 10)
            arrow(axes, (x, 0.96), (x, 1.32))
        if t in writes:
            box(axes, x, 2.2, "$y$", ORANGE, 0.3, 0.32, 10)
            arrow(axes, (x, 1.68), (x, 2.04))
save(axes, "shapes")
