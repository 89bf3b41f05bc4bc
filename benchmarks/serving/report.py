"""What was measured, as tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.report import ratio_text, time_text
from benchmarks.serving.contenders import NAME
from benchmarks.serving.measure import ROW, Row, best_peer
from benchmarks.serving.points import Point
from benchmarks.timing import Summary

CAPTION = (
    "time of a call: median ± half the interquartile range, 99th percentile; ratio: the fastest peer, with weights in\n"
    "float32 or of the same kind and at most as many threads, / fastrnn"
)


def machine_text(where: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {number}" for name, number in where["packages"].items() if number)
    return f"{where['cpu']}, {where['cpu_capability']}, {where['cores']} cores; {packages}"


def table(rows: Sequence[Row]) -> Table:
    """A row for each point and contender."""
    conditions = list(dict.fromkeys(row.condition for row in rows))
    shown = Table(box=SIMPLE_HEAD, caption=CAPTION)
    for heading in ("cell TxBxH", "contender", "weights"):
        shown.add_column(heading, no_wrap=True)
    for heading in ("threads", *(part for name in conditions for part in (name, "p99", "ratio"))):
        shown.add_column(heading, justify="right")
    previous = None
    for (point, contender, weights, threads), found in grouped(rows, entry_of).items():
        if previous not in (None, point):
            shown.add_section()
        label, previous = "" if previous == point else point.label, point
        by_condition = {row.condition: row for row in found}
        figures = [figure for name in conditions for figure in figures_of(by_condition.get(name), rows)]
        shown.add_row(label, contender, weights, str(threads), *figures)
    return shown


def entry_of(row: Row) -> tuple[Point, str, str, int]:
    return row.point, row.contender, row.weights, row.threads


def figures_of(row: Row | None, rows: Sequence[Row]) -> tuple[str, str, str]:
    if row is None:
        return "", "", ""
    ratio = ratio_of(row, rows)
    p99 = time_text(Summary(row.p99, row.p99, row.p99)).split(" ±")[0]
    return time_text(Summary(row.median, row.q1, row.q3)), p99, "" if ratio is None else ratio_text(ratio)


def ratio_of(row: Row, rows: Sequence[Row]) -> float | None:
    """The best peer's median over the row's, of rows that are ours."""
    peer = best_peer(row, rows) if row.is_ours else None
    return None if peer is None else peer.median / row.median


def ratios_table(rows: Sequence[Row]) -> Table:
    """Of streams alone: how many times as long the fastest peer takes, in a row."""
    own = [row for row in rows if row.contender == NAME and row.condition == ROW.name]
    columns = list(dict.fromkeys((row.weights, row.threads) for row in own))
    shown = Table(box=SIMPLE_HEAD, title=f"the fastest peer / {NAME}, {ROW.name}")
    shown.add_column("cell TxBxH", no_wrap=True)
    for weights, threads in columns:
        shown.add_column(f"{weights}, {threads} thread{'s' * (threads > 1)}", justify="right")
    for point, found in grouped(own, lambda row: row.point).items():
        ratios = {(row.weights, row.threads): ratio_of(row, rows) for row in found}
        figures = [ratios.get(column) for column in columns]
        shown.add_row(point.label, *("" if ratio is None else ratio_text(ratio) for ratio in figures))
    return shown


def throughput_table(rows: Sequence[Row]) -> Table:
    """Steps of a stream in a second, of points with slots."""
    points = list(dict.fromkeys(row.point for row in rows))
    shown = Table(box=SIMPLE_HEAD, title="thousands of steps a second, of different streams in every call")
    for heading in ("contender", "weights"):
        shown.add_column(heading, no_wrap=True)
    for heading in ("threads", *(point.label for point in points)):
        shown.add_column(heading, justify="right", no_wrap=True)
    entries: Callable[[Row], Any] = lambda row: entry_of(row)[1:]  # noqa: E731
    for (contender, weights, threads), found in grouped(rows, entries).items():
        rates = {row.point: f"{steps_a_second(row) / 1e3:.1f}" for row in found}
        shown.add_row(contender, weights, str(threads), *(rates.get(point, "") for point in points))
    return shown


def steps_a_second(row: Row) -> float:
    return row.point.T * row.point.B / row.median


def grouped(rows: Sequence[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found
