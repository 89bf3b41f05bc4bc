"""The pictures of `inside.md` for the GPU and the cell compiler."""

from __future__ import annotations

from canvas import INK, PALE, STRONG_BLUE, STRONG_GREEN, STRONG_ORANGE, STRONG_RED, label, save
from diagram import GREY, code, field, link, page
from matplotlib.patches import Rectangle


def program() -> None:
    """Way 1: a program computes all steps of a tile of the batch."""
    axes = page(8, 2.9)
    label(axes, 1.35, 0.28, "a launch: a program for each tile", 8.5, fontweight="bold")
    for row in range(4):
        for column in range(4):
            chosen = (row, column) == (0, 0)
            x, y = 0.35 + 0.52 * column, 0.5 + 0.42 * row
            text = "8 seq." if row < 3 or column < 3 else "…"
            field(axes, x, y, 0.46, 0.36, text, STRONG_ORANGE if chosen else GREY, 7)
    label(axes, 1.35, 2.42, "B = 1024: 128 programs; heads and", 7.5, PALE)
    label(axes, 1.35, 2.6, "directions are further axes of the grid", 7.5, PALE)
    for above, below in ((0.5, 0.45), (0.86, 2.5)):
        axes.plot((0.81, 2.75), (above, below), color=STRONG_ORANGE, linewidth=0.8, zorder=0)
    axes.add_patch(Rectangle((2.75, 0.45), 5.0, 2.05, facecolor="none", edgecolor=STRONG_ORANGE, linewidth=0.8))
    label(axes, 5.25, 0.28, "one program: 8 warps, all T steps", 8.5, fontweight="bold")
    weights = "W_hh: (256, 64)\n32 KB in 16 bits\n\nin registers, for\nall steps:\n128 bytes a thread"
    field(axes, 2.9, 0.62, 1.5, 1.7, weights, STRONG_GREEN, 8)
    field(axes, 4.65, 0.85, 1.35, 0.55, "gh = W_hh h̄\ntensor cores", STRONG_BLUE, 8)
    field(axes, 6.25, 0.85, 1.35, 0.55, "the cell's step\nh, c in registers", STRONG_ORANGE, 8)
    field(axes, 4.65, 1.72, 1.35, 0.6, "gx of step t + 2\ncomes from memory", GREY, 7.5)
    field(axes, 6.25, 1.72, 1.35, 0.6, "y of step t\ngoes to memory", GREY, 7.5)
    link(axes, (4.4, 1.12), (4.65, 1.12), STRONG_GREEN)
    link(axes, (6.0, 1.12), (6.25, 1.12))
    link(axes, (6.8, 0.85), (5.4, 0.85), STRONG_ORANGE, connectionstyle="arc3,rad=0.25")
    label(axes, 6.1, 0.58, "h", 8, STRONG_ORANGE)
    link(axes, (5.6, 1.72), (6.5, 1.42), PALE)
    link(axes, (7.2, 1.4), (7.2, 1.72), PALE)
    label(axes, 5.25, 2.68, "no other program is waited for, no launch stands between two steps", 8, PALE)
    save(axes, "inside-program")


def cluster() -> None:
    """Way 2: eight blocks that send each other their part of h."""
    axes = page(8, 3.3)
    label(axes, 2.45, 0.28, "a cluster: LSTM, 256 units; 64 KB of W_hh a block", 8.5, fontweight="bold")
    for block in range(8):
        x, y = 0.3 + 1.1 * (block % 4), 0.5 + 1.62 * (block // 4)
        color = STRONG_ORANGE if block == 0 else STRONG_BLUE
        field(axes, x, y, 0.98, 0.8, f"block {block}\nunits {32 * block} to {32 * block + 31}", color, 7)
        if block:
            bent = {1: -0.35, 2: -0.3, 3: -0.25}.get(block, 0)
            end = (x + 0.5, y + 0.82) if block < 4 else (x + 0.5, y - 0.02)
            link(axes, (0.8, 1.32), end, STRONG_ORANGE, connectionstyle=f"arc3,rad={-bent}", linewidth=0.9)
    label(axes, 2.45, 3.05, "each sends 32 units × 8 sequences, 512 bytes, to all eight", 8, STRONG_ORANGE)
    label(axes, 6.4, 0.28, "shared memory of a block", 8.5, fontweight="bold")
    field(axes, 5.2, 0.5, 1.1, 0.55, "h of step t\n4 KB", STRONG_GREEN, 8)
    field(axes, 6.55, 0.5, 1.1, 0.55, "h of step t + 1\n4 KB", GREY, 8)
    label(axes, 5.75, 1.2, "is multiplied", 7.5, STRONG_GREEN)
    label(axes, 7.1, 1.2, "is arriving", 7.5, PALE)
    field(axes, 5.2, 1.45, 2.45, 0.4, "4 mbarriers a buffer: bytes that arrived", STRONG_RED, 7.5)
    label(axes, 5.2, 2.15, "A block sends h of step t + 1 only when it has all", 7.5, PALE, ha="left")
    label(axes, 5.2, 2.35, "of step t. So all have read what it overwrites:", 7.5, PALE, ha="left")
    label(axes, 5.2, 2.55, "two buffers, and no barrier of the cluster.", 7.5, PALE, ha="left")
    label(axes, 5.2, 2.85, "An exchange takes 0.35 to 0.39 µs (H200).", 7.5, INK, ha="left")
    save(axes, "inside-cluster")


def compiler() -> None:
    """From a cell's lines to instructions."""
    axes = page(8, 3.5)
    label(axes, 1.45, 0.25, "1  what its author writes", 9.5)
    code(
        axes,
        0.3,
        0.45,
        "@fastrnn.cell\n"
        "def minimal(x, u, h):\n"
        "  f = sigmoid(x.f + u.f)\n"
        "  n = tanh(x.n + f * u.n)\n"
        "  return mix(f, n, h)",
        7.5,
    )
    label(axes, 1.3, 1.75, "2  called with symbols", 9.5)
    nodes = {
        "mix": (1.45, 2.05, STRONG_ORANGE),
        "f": (0.75, 2.4, STRONG_GREEN),
        "n": (1.45, 2.4, STRONG_GREEN),
        "h": (2.15, 2.4, GREY),
        "a_f": (0.5, 2.95, STRONG_BLUE),
        "u_n": (1.2, 2.95, STRONG_GREEN),
        "x_n": (1.9, 2.95, STRONG_BLUE),
    }
    for start, end in (("f", "mix"), ("n", "mix"), ("h", "mix"), ("a_f", "f"), ("f", "n"), ("u_n", "n"), ("x_n", "n")):
        (x0, y0, _), (x1, y1, _) = nodes[start], nodes[end]
        axes.plot((x0, x1), (y0, y1), color=PALE, linewidth=0.9, zorder=0)
    for name, (x, y, color) in nodes.items():
        field(axes, x - 0.22, y - 0.11, 0.44, 0.22, name, color, 7.5)
    label(axes, 1.3, 3.25, "saved for backward: the least cut", 7.5, STRONG_GREEN)
    link(axes, (2.5, 1.0), (2.8, 1.0))
    label(axes, 4.05, 0.25, "3  derived", 9.5)
    code(
        axes,
        2.95,
        0.45,
        "dn   = dh' f\n"
        "dx_n = dn (1 - n²)\n"
        "df   = dh' (n - h₋)\n"
        "       + dx_n u_n\n"
        "da_f = df f (1 - f)\n"
        "dh₋  = dh' (1 - f)",
        7.5,
    )
    label(axes, 4.05, 1.75, "4  emitted, here for Numba", 9.5)
    code(
        axes,
        2.95,
        1.95,
        "f = sigmoid(a_f)\nn = tanh(fma(f, u_n, x_n))\nreturn fma(\n  f, n,\n  (1.0 - f) * h_before\n)",
        7.5,
    )
    link(axes, (5.15, 2.35), (5.45, 2.35))
    label(axes, 6.6, 0.25, "the same for", 9.5)
    for number, backend in enumerate(("PyTorch: tensors", "Triton: tiles", "CUDA C++: one unit a thread")):
        field(axes, 5.6, 0.42 + 0.37 * number, 2.05, 0.3, backend, GREY, 7.5)
    label(axes, 6.6, 1.75, "5  by LLVM, for AVX2", 9.5)
    code(
        axes,
        5.55,
        1.95,
        "vfmadd231ps  x_n += f · u_n\n"
        "…            tanh: some 30\n"
        "vsubps       1 - f\n"
        "vmulps       · h₋\n"
        "vfmadd213ps  f · n + that\n"
        "vmovups      h: eight units",
        7.5,
    )
    save(axes, "inside-compiler")


for picture in (program, cluster, compiler):
    picture()
