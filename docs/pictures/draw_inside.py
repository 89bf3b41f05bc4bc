"""The pictures of `inside.md` for the CPU."""

from __future__ import annotations

from canvas import INK, PALE, STRONG_BLUE, STRONG_GREEN, STRONG_ORANGE, STRONG_RED, label, save
from diagram import FILLINGS, GREY, code, field, link, page
from matplotlib.patches import Rectangle

GATES = {"i": STRONG_BLUE, "f": STRONG_GREEN, "g": STRONG_ORANGE, "o": STRONG_RED}


def idea() -> None:
    """A product over all steps, the recurrence, and products over all steps again."""
    axes = page(8, 2.75)
    field(axes, 0.3, 0.55, 1.75, 0.62, "gx = x W_ihᵀ + b\none product, T·B rows", STRONG_BLUE, 8)
    for t in range(4):
        x = 2.65 + 0.95 * t
        field(axes, x, 0.55, 0.62, 0.62, "cell", STRONG_ORANGE, 8)
        label(axes, x + 0.31, 0.36, f"t = {t}" if t < 3 else "t = T - 1", 7, PALE)
        link(axes, (x - 0.33, 0.86), (x, 0.86), STRONG_ORANGE)
    link(axes, (2.05, 0.86), (2.4, 0.86), STRONG_BLUE)
    label(axes, 5.33, 1.34, "h_t and c_t go from step to step", 7, STRONG_ORANGE, ha="right")
    link(axes, (6.12, 0.86), (6.5, 0.86), STRONG_ORANGE)
    field(axes, 6.5, 0.55, 1.2, 0.62, "y = all h_t", GREY, 8)
    for t in range(4):
        x = 2.65 + 0.95 * t
        field(axes, x, 1.72, 0.62, 0.62, "cell'", STRONG_ORANGE, 8)
        link(axes, (x + 0.95, 2.03) if t < 3 else (6.5, 2.03), (x + 0.62, 2.03), STRONG_ORANGE)
    field(axes, 6.5, 1.72, 1.2, 0.62, "dy", GREY, 8)
    link(axes, (2.65, 2.03), (2.05, 2.03), STRONG_BLUE)
    field(axes, 0.3, 1.72, 1.75, 0.62, "dx, dW_ih, dW_hh, db\none product each", STRONG_BLUE, 8)
    label(axes, 4.35, 2.53, "the recurrence: fastrnn's kernels", 8, STRONG_ORANGE, fontweight="bold")
    label(axes, 1.17, 2.53, "large matrix products", 8, STRONG_BLUE, fontweight="bold")
    label(axes, 0.3, 0.27, "forward", 8, INK, ha="left", fontweight="bold")
    label(axes, 0.3, 1.53, "backward", 8, INK, ha="left", fontweight="bold")
    save(axes, "inside-idea")


def reference() -> None:
    """Who is compared with whom."""
    axes = page(8, 2.3)
    field(axes, 3.05, 0.25, 1.9, 0.6, "reference\na loop of plain PyTorch, float64", STRONG_GREEN, 8)
    others = (
        ("numba", "the CPU's kernels, as they are"),
        ("triton", "Triton's interpreter; a GPU"),
        ("cuda", "the same C++ on fibers; a GPU"),
        ("torch.nn", "torch's kernels: the measure"),
    )
    for number, (name, how) in enumerate(others):
        x = 0.25 + 1.92 * number
        field(axes, x, 1.42, 1.75, 0.6, f"{name}\n{how}", GREY if name == "torch.nn" else STRONG_BLUE, 7.2)
        link(axes, (x + 0.87, 1.42), (3.3 + 0.47 * number, 0.87), PALE, arrowstyle="<|-|>")
    label(axes, 0.25, 0.4, "outputs, states and every gradient", 8, PALE, ha="left")
    label(axes, 0.25, 0.6, "of the same random layers", 8, PALE, ha="left")
    label(axes, 7.75, 0.4, "allowed: twice torch.nn's own", 8, PALE, ha="right")
    label(axes, 7.75, 0.6, "distance from it, and a floor", 8, PALE, ha="right")
    save(axes, "inside-reference")


def panel() -> None:
    """Which rows of the weights are a panel, and how they lie there."""
    axes = page(8, 3.3)
    label(axes, 1.3, 0.25, "W_hh as torch keeps it: (256, 64)", 8.5, fontweight="bold")
    for number, (gate, color) in enumerate(GATES.items()):
        y = 0.5 + 0.62 * number
        axes.add_patch(rectangle(0.55, y, 1.2, 0.6, "#ffffff", color))
        axes.add_patch(rectangle(0.55, y, 1.2, 0.09, color, color))
        label(axes, 0.35, y + 0.3, gate, 9, color, fontweight="bold")
        label(axes, 1.85, y + 0.045, "units 0 to 7", 7, color, ha="left")
    label(axes, 1.15, 3.12, "64 columns: the units of h̄, numbered k", 7, PALE)
    link(axes, (2.65, 1.6), (3.35, 1.6))
    label(axes, 3.0, 1.42, "pack", 8)
    label(axes, 5.6, 0.25, "panel 0 of 8: (64, 4, 8) numbers in a row, 8 KB", 8.5, fontweight="bold")
    for k in range(4):
        y = 0.62 + 0.42 * k if k < 3 else 2.2
        label(axes, 3.75, y + 0.14, f"k = {k}" if k < 3 else "k = 63", 8, PALE)
        for number, color in enumerate(GATES.values()):
            for lane in range(8):
                axes.add_patch(rectangle(4.15 + 0.88 * number + 0.1 * lane, y, 0.1, 0.28, FILLINGS[color], color))
    label(axes, 5.9, 2.0, "⋮", 12, PALE)
    for number, (gate, color) in enumerate(GATES.items()):
        label(axes, 4.55 + 0.88 * number, 2.68, f"gate {gate}", 8, color)
    label(axes, 5.9, 2.95, "one k: four vectors of eight lanes, 128 bytes, two cache lines", 8, PALE)
    save(axes, "inside-panel")


def rectangle(x: float, y: float, width: float, height: float, fill: str, edge: str) -> Rectangle:
    return Rectangle((x, y), width, height, facecolor=fill, edgecolor=edge, linewidth=0.7)


def tile() -> None:
    """What the sixteen registers of AVX2 hold in the inner loop."""
    axes = page(8, 3.0)
    label(axes, 1.05, 0.28, "six rows of h̄", 8.5, fontweight="bold")
    label(axes, 3.75, 0.28, "two vectors of weights", 8.5, fontweight="bold")
    field(axes, 2.7, 0.45, 1.0, 0.3, "ymm13", STRONG_GREEN, 8)
    field(axes, 3.8, 0.45, 1.0, 0.3, "ymm12", STRONG_GREEN, 8)
    for row in range(6):
        y = 0.9 + 0.31 * row
        field(axes, 0.55, y, 1.0, 0.26, f"h̄[{row}, k]", STRONG_BLUE, 8)
        link(axes, (1.6, y + 0.13), (2.6, y + 0.13), STRONG_BLUE)
        for column in range(2):
            field(axes, 2.7 + 1.1 * column, y, 1.0, 0.26, f"ymm{11 - 2 * row - column}", STRONG_ORANGE, 8)
    label(axes, 2.1, 0.8, "ymm14, ymm15", 7, STRONG_BLUE)
    label(axes, 3.75, 2.88, "twelve sums, which stay here for all of k", 8, STRONG_ORANGE)
    code(
        axes,
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
    label(axes, 5.15, 1.85, "12 multiply-adds of 8 lanes for", 8, PALE, ha="left")
    label(axes, 5.15, 2.05, "8 loads: both multipliers are busy.", 8, PALE, ha="left")
    label(axes, 5.15, 2.35, "Then the other two vectors of the", 8, PALE, ha="left")
    label(axes, 5.15, 2.55, "panel, and the next rows.", 8, PALE, ha="left")
    save(axes, "inside-tile")


def threads() -> None:
    """Tickets, and a team."""
    axes = page(8, 3.1)
    headings = (
        "many rows: B = 32, H = 64. Two tickets; threads never wait.",
        "one row: B = 1, H = 256. A team shares the units, and meets after every step.",
    )
    for y, heading in zip((0.28, 1.65), headings, strict=True):
        label(axes, 0.3, y, heading, 8.5, ha="left", fontweight="bold")
    for thread, color in enumerate((STRONG_BLUE, STRONG_GREEN)):
        y = 0.5 + 0.42 * thread
        label(axes, 0.75, y + 0.16, f"thread {thread}", 8, color)
        for step in range(12):
            width = (0.48, 0.45)[thread]
            field(axes, 1.3 + width * step, y, width - 0.04, 0.32, f"t={step}" if step < 11 else "…", color, 6.5)
        label(axes, 7.4, y + 0.16, f"rows {16 * thread} to {16 * thread + 15}", 7.5, color)
    for thread, color in enumerate((STRONG_BLUE, STRONG_GREEN)):
        y = 1.87 + 0.42 * thread
        label(axes, 0.75, y + 0.16, f"thread {thread}", 8, color)
        for step in range(6):
            width = 0.82 if (thread + step) % 3 else 0.72
            field(axes, 1.3 + 0.96 * step, y, width, 0.32, f"t={step}" if step < 5 else "…", color, 7)
        label(axes, 7.45, y + 0.16, ("units 0 to 127", "128 to 255")[thread], 7.5, color)
    for step in range(6):
        x = 1.3 + 0.96 * step + 0.87
        axes.plot((x, x), (1.82, 2.66), color=STRONG_RED, linewidth=2)
    label(axes, 4.1, 2.83, "each needs the other's half of h for the next step: the runtime's barrier", 8, STRONG_RED)
    save(axes, "inside-threads")


def stream() -> None:
    """From a call of a stream to its kernel."""
    axes = page(8, 2.5)
    code(axes, 0.3, 0.75, "y = stream(frame)", 9)
    field(axes, 2.05, 0.5, 1.7, 0.7, "door, in C\nis it float32, dense,\nof the expected size?", STRONG_GREEN, 8)
    field(axes, 2.05, 1.65, 1.7, 0.55, "_slowly, in Python\nall checks, all messages", GREY, 8)
    field(
        axes,
        4.4,
        0.5,
        1.9,
        0.7,
        "kernel: the whole stack\nweights laid out once,\nread from end to end",
        STRONG_ORANGE,
        8,
    )
    field(axes, 4.4, 1.65, 1.9, 0.55, "states: a row for each slot", STRONG_BLUE, 8)
    field(axes, 6.85, 0.5, 0.95, 0.7, "y\nthe same\nmemory", GREY, 8)
    link(axes, (1.6, 0.84), (2.05, 0.84))
    link(axes, (3.75, 0.84), (4.4, 0.84))
    link(axes, (6.3, 0.84), (6.85, 0.84))
    link(axes, (2.9, 1.2), (2.9, 1.65), PALE, linestyle="--")
    link(axes, (3.75, 1.92), (4.4, 1.2), PALE, linestyle="--")
    link(axes, (5.35, 1.2), (5.35, 1.65), STRONG_BLUE, arrowstyle="<|-|>")
    label(axes, 2.75, 1.43, "no", 8, PALE, ha="right")
    label(axes, 4.07, 0.72, "yes", 8)
    label(axes, 2.9, 0.3, "tenths of a µs", 8, PALE)
    label(axes, 5.35, 0.3, "2 µs: LSTM, 64 units, AVX2", 8, PALE)
    save(axes, "inside-stream")


for picture in (idea, reference, panel, tile, threads, stream):
    picture()
