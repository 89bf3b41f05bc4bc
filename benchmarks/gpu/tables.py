"""The race as Markdown: a table for each mode, and the geometric means."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.gpu.figures import AUTO, BASELINE, EAGER, GRAPH, KINDS, Point, means, racers

NAMES = {"cuda cluster": "clusters", "cuda grid": "grid"}
"""How a racer is called in a heading, where not as in the records."""
MIB = 2**20


def markdown(found: Sequence[Point]) -> str:
    """All tables, one after the other."""
    modes = list(dict.fromkeys(point.case.mode for point in found))
    parts = [_means(found)]
    for mode in modes:
        chosen = [point for point in found if point.case.mode == mode]
        parts.append(f"{mode.capitalize()}:\n\n{_table(chosen, mode)}")
    return "\n\n".join(parts) + "\n"


def _means(found: Sequence[Point]) -> str:
    lines = ["| | as a graph: mean, least | eager: mean, least | points |", "|---|---|---|---|"]
    by_kind = {kind: means(found, kind) for kind in KINDS}
    for key in dict.fromkeys(key for one in by_kind.values() for key in one):
        cells = [f"{one[key][0]:.2f}, {one[key][1]:.2f}" if key in one else "" for one in by_kind.values()]
        count = next(one[key][2] for one in by_kind.values() if key in one)
        lines.append(f"| {key[0]}, {NAMES.get(key[1], key[1])} | {' | '.join(cells)} | {count} |")
    return "\n".join(lines)


def _table(found: Sequence[Point], mode: str) -> str:
    """A row a point. Of graphs every racer, of eager calls `auto` where it raced, else the best kernel."""
    names = racers(found)
    headings = ["", "torch.nn, µs", *(NAMES.get(name, name) for name in names), "torch.nn eager, µs", "ours eager"]
    if mode == "training":
        headings += ["torch.nn, MiB", "ours / torch.nn"]
    lines = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for point in found:
        base = point.microseconds(BASELINE, GRAPH), point.microseconds(BASELINE, EAGER)
        speeds = [point.speed(name, GRAPH) for name in names]
        eager = point.speed(AUTO, EAGER) or (point.best(EAGER) or ("", None))[1]
        cells = [_label(point), _number(base[0]), *map(_ratio, speeds), _number(base[1]), _ratio(eager)]
        if mode == "training":
            cells += _memory(point)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _label(point: Point) -> str:
    return point.case.label.replace(f" {point.case.mode}", "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _memory(point: Point) -> list[str]:
    peaks = {name: times["peak bytes"] for name, times in point.times.items() if times.get("peak bytes")}
    base, ours = peaks.pop(BASELINE, None), [*peaks.values()]
    told = _ratio(max(ours) / base) if base and ours else ""
    return ["" if base is None else f"{base / MIB:.0f}", told]
