"""The pictures of `inside.md` for the CPU: `python docs/pictures/draw_inside.py`."""

from __future__ import annotations

from ground import BLUE, GREEN, GREY, INK, MUTED, ORANGE, PALE, RED, arrow, box, canvas, code, save, write
from matplotlib.patches import Rectangle

GATES = {"i": BLUE, "f": GREEN, "g": ORANGE, "o": RED}


def idea() -> None:
    """A product over all steps, the recurrence, and products over all steps again."""
    figure, axis = canvas(8, 2.75)
    box(axis, 0.3, 0.55, 1.75, 0.62, "gx = x W_ihᵀ + b\none product, T·B rows", BLUE, 8)
    for t in range(4):
        x = 2.65 + 0.95 * t
        box(axis, x, 0.55, 0.62, 0.62, "cell", ORANGE, 8)
        write(axis, x + 0.31, 0.36, f"t = {t}" if t < 3 else "t = T - 1", 7, MUTED)
        arrow(axis, (x - 0.33, 0.86), (x, 0.86), ORANGE)
    arrow(axis, (2.05, 0.86), (2.4, 0.86), BLUE)
    write(axis, 5.33, 1.34, "h_t and c_t go from step to step", 7, ORANGE, ha="right")
    arrow(axis, (6.12, 0.86), (6.5, 0.86), ORANGE)
    box(axis, 6.5, 0.55, 1.2, 0.62, "y = all h_t", GREY, 8)
    for t in range(4):
        x = 2.65 + 0.95 * t
        box(axis, x, 1.72, 0.62, 0.62, "cell'", ORANGE, 8)
        arrow(axis, (x + 0.95, 2.03) if t < 3 else (6.5, 2.03), (x + 0.62, 2.03), ORANGE)
    box(axis, 6.5, 1.72, 1.2, 0.62, "dy", GREY, 8)
    arrow(axis, (2.65, 2.03), (2.05, 2.03), BLUE)
    box(axis, 0.3, 1.72, 1.75, 0.62, "dx, dW_ih, dW_hh, db\none product each", BLUE, 8)
    write(axis, 4.35, 2.53, "the recurrence: fastrnn's kernels", 8, ORANGE, fontweight="bold")
    write(axis, 1.17, 2.53, "large matrix products", 8, BLUE, fontweight="bold")
    write(axis, 0.3, 0.27, "forward", 8, INK, ha="left", fontweight="bold")
    write(axis, 0.3, 1.53, "backward", 8, INK, ha="left", fontweight="bold")
    save(figure, "inside-idea.svg")


def reference() -> None:
    """Who is compared with whom."""
    figure, axis = canvas(8, 2.3)
    box(axis, 3.05, 0.25, 1.9, 0.6, "reference\na loop of plain PyTorch, float64", GREEN, 8)
    others = (
        ("numba", "the CPU's kernels, as they are"),
        ("triton", "Triton's interpreter; a GPU"),
        ("cuda", "the same C++ on fibers; a GPU"),
        ("torch.nn", "torch's kernels: the measure"),
    )
    for number, (name, how) in enumerate(others):
        x = 0.25 + 1.92 * number
        box(axis, x, 1.42, 1.75, 0.6, f"{name}\n{how}", GREY if name == "torch.nn" else BLUE, 7.2)
        arrow(axis, (x + 0.87, 1.42), (3.3 + 0.47 * number, 0.87), MUTED, arrowstyle="<|-|>")
    write(axis, 0.25, 0.4, "outputs, states and every gradient", 8, MUTED, ha="left")
    write(axis, 0.25, 0.6, "of the same random layers", 8, MUTED, ha="left")
    write(axis, 7.75, 0.4, "allowed: twice torch.nn's own", 8, MUTED, ha="right")
    write(axis, 7.75, 0.6, "distance from it, and a floor", 8, MUTED, ha="right")
    save(figure, "inside-reference.svg")


def panel() -> None:
    """Which rows of the weights are a panel, and how they lie there."""
    figure, axis = canvas(8, 3.3)
    write(axis, 1.3, 0.25, "W_hh as torch keeps it: (256, 64)", 8.5, fontweight="bold")
    for number, (gate, colour) in enumerate(GATES.items()):
        y = 0.5 + 0.62 * number
        axis.add_patch(rectangle(0.55, y, 1.2, 0.6, "#ffffff", colour))
        axis.add_patch(rectangle(0.55, y, 1.2, 0.09, colour, colour))
        write(axis, 0.35, y + 0.3, gate, 9, colour, fontweight="bold")
        write(axis, 1.85, y + 0.045, "units 0 to 7", 7, colour, ha="left")
    write(axis, 1.15, 3.12, "64 columns: the units of h̄, numbered k", 7, MUTED)
    arrow(axis, (2.65, 1.6), (3.35, 1.6))
    write(axis, 3.0, 1.42, "pack", 8)
    write(axis, 5.6, 0.25, "panel 0 of 8: (64, 4, 8) numbers in a row, 8 KB", 8.5, fontweight="bold")
    for k in range(4):
        y = 0.62 + 0.42 * k if k < 3 else 2.2
        write(axis, 3.75, y + 0.14, f"k = {k}" if k < 3 else "k = 63", 8, MUTED)
        for number, colour in enumerate(GATES.values()):
            for lane in range(8):
                axis.add_patch(rectangle(4.15 + 0.88 * number + 0.1 * lane, y, 0.1, 0.28, PALE[colour], colour))
    write(axis, 5.9, 2.0, "⋮", 12, MUTED)
    for number, (gate, colour) in enumerate(GATES.items()):
        write(axis, 4.55 + 0.88 * number, 2.68, f"gate {gate}", 8, colour)
    write(axis, 5.9, 2.95, "one k: four vectors of eight lanes, 128 bytes, two cache lines", 8, MUTED)
    save(figure, "inside-panel.svg")


def rectangle(x: float, y: float, width: float, height: float, fill: str, edge: str) -> Rectangle:
    return Rectangle((x, y), width, height, facecolor=fill, edgecolor=edge, linewidth=0.7)


def tile() -> None:
    """What the sixteen registers of AVX2 hold in the inner loop."""
    figure, axis = canvas(8, 3.0)
    write(axis, 1.05, 0.28, "six rows of h̄", 8.5, fontweight="bold")
    write(axis, 3.75, 0.28, "two vectors of weights", 8.5, fontweight="bold")
    box(axis, 2.7, 0.45, 1.0, 0.3, "ymm13", GREEN, 8)
    box(axis, 3.8, 0.45, 1.0, 0.3, "ymm12", GREEN, 8)
    for row in range(6):
        y = 0.9 + 0.31 * row
        box(axis, 0.55, y, 1.0, 0.26, f"h̄[{row}, k]", BLUE, 8)
        arrow(axis, (1.6, y + 0.13), (2.6, y + 0.13), BLUE)
        for column in range(2):
            box(axis, 2.7 + 1.1 * column, y, 1.0, 0.26, f"ymm{11 - 2 * row - column}", ORANGE, 8)
    write(axis, 2.1, 0.8, "ymm14, ymm15", 7, BLUE)
    write(axis, 3.75, 2.88, "twelve sums, which stay here for all of k", 8, ORANGE)
    code(
        axis,
        5.15,
        0.5,
        "for k in 0 .. 63:\n"
        "  vmovups       2 loads of weights\n"
        "  prefetch      the same, 8 k ahead\n"
        "  prefetch      the next panel\n"
        "  vbroadcastss  6, a number of h̄\n"
        "  vfmadd231ps  12: sum += h̄ · w",
        7.5,
    )
    write(axis, 5.15, 1.85, "12 multiply-adds of 8 lanes for", 8, MUTED, ha="left")
    write(axis, 5.15, 2.05, "8 loads: both multipliers are busy.", 8, MUTED, ha="left")
    write(axis, 5.15, 2.35, "Then the other two vectors of the", 8, MUTED, ha="left")
    write(axis, 5.15, 2.55, "panel, and the next rows.", 8, MUTED, ha="left")
    save(figure, "inside-tile.svg")


def threads() -> None:
    """Tickets, and a team."""
    figure, axis = canvas(8, 3.1)
    headings = (
        "many rows: B = 32, H = 64. Two tickets; threads never wait.",
        "one row: B = 1, H = 256. A team shares the units, and meets after every step.",
    )
    for y, heading in zip((0.28, 1.65), headings, strict=True):
        write(axis, 0.3, y, heading, 8.5, ha="left", fontweight="bold")
    for thread, colour in enumerate((BLUE, GREEN)):
        y = 0.5 + 0.42 * thread
        write(axis, 0.75, y + 0.16, f"thread {thread}", 8, colour)
        for step in range(12):
            width = (0.48, 0.45)[thread]
            box(axis, 1.3 + width * step, y, width - 0.04, 0.32, f"t={step}" if step < 11 else "…", colour, 6.5)
        write(axis, 7.4, y + 0.16, f"rows {16 * thread} to {16 * thread + 15}", 7.5, colour)
    for thread, colour in enumerate((BLUE, GREEN)):
        y = 1.87 + 0.42 * thread
        write(axis, 0.75, y + 0.16, f"thread {thread}", 8, colour)
        for step in range(6):
            width = 0.82 if (thread + step) % 3 else 0.72
            box(axis, 1.3 + 0.96 * step, y, width, 0.32, f"t={step}" if step < 5 else "…", colour, 7)
        write(axis, 7.45, y + 0.16, ("units 0 to 127", "128 to 255")[thread], 7.5, colour)
    for step in range(6):
        x = 1.3 + 0.96 * step + 0.87
        axis.plot((x, x), (1.82, 2.66), color=RED, linewidth=2)
    write(axis, 4.1, 2.83, "each needs the other's half of h before the next step: the runtime's barrier", 8, RED)
    save(figure, "inside-threads.svg")


def stream() -> None:
    """From a call of a stream to its kernel."""
    figure, axis = canvas(8, 2.5)
    code(axis, 0.3, 0.75, "y = stream(frame)", 9)
    box(axis, 2.05, 0.5, 1.7, 0.7, "door, in C\nis it float32, dense,\nof the expected size?", GREEN, 8)
    box(axis, 2.05, 1.65, 1.7, 0.55, "_slowly, in Python\nall checks, all messages", GREY, 8)
    box(axis, 4.4, 0.5, 1.9, 0.7, "kernel: the whole stack\nweights laid out once,\nread from end to end", ORANGE, 8)
    box(axis, 4.4, 1.65, 1.9, 0.55, "states: a row for each slot", BLUE, 8)
    box(axis, 6.85, 0.5, 0.95, 0.7, "y\nthe same\nmemory", GREY, 8)
    arrow(axis, (1.6, 0.84), (2.05, 0.84))
    arrow(axis, (3.75, 0.84), (4.4, 0.84))
    arrow(axis, (6.3, 0.84), (6.85, 0.84))
    arrow(axis, (2.9, 1.2), (2.9, 1.65), MUTED, linestyle="--")
    arrow(axis, (3.75, 1.92), (4.4, 1.2), MUTED, linestyle="--")
    arrow(axis, (5.35, 1.2), (5.35, 1.65), BLUE, arrowstyle="<|-|>")
    write(axis, 2.75, 1.43, "no", 8, MUTED, ha="right")
    write(axis, 4.07, 0.72, "yes", 8)
    write(axis, 2.9, 0.3, "tenths of a µs", 8, MUTED)
    write(axis, 5.35, 0.3, "2 µs: LSTM, 64 units, AVX2", 8, MUTED)
    save(figure, "inside-stream.svg")


if __name__ == "__main__":
    for picture in (idea, reference, panel, tile, threads, stream):
        picture()
