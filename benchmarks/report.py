"""What was measured, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.cases import Case
from benchmarks.runner import FAILED, MEASURED, CaseResult, Entry
from benchmarks.timing import Summary

FORMAT = 1
"""Of the JSON: raised whenever a reader of the older one would go wrong."""
MIB = 2**20
AHEAD, BEHIND = 1.05, 0.95
"""Beyond these a ratio is coloured; between them two runs are as good as equal."""
OVERALL = "all"
UNITS = (("s", 1.0, 1.0), ("ms", 1e3, 1e-3), ("µs", 1e6, 0.0))
"""Of time: name, how many make a second, and the least time in seconds that is told in it."""
BUSY_SHARE = 0.5
"""Of the cores: beyond this load before the start, other programs disturb what is measured."""


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive values, at least one."""
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def geometric_means(results: Sequence[CaseResult]) -> dict[str, dict[str, float]]:
    """For each contender, the geometric mean of its ratios by "cell mode", and over all cases as `OVERALL`."""
    ratios: dict[str, dict[str, list[float]]] = {}
    for result in results:
        for entry in result.entries:
            if entry.ratio is not None:
                groups = ratios.setdefault(entry.contender, {})
                for group in (f"{result.case.cell} {result.case.mode}", OVERALL):
                    groups.setdefault(group, []).append(entry.ratio.median)
    return {
        contender: {group: geometric_mean(values) for group, values in sorted(groups.items(), key=_overall_last)}
        for contender, groups in ratios.items()
    }


def _overall_last(item: tuple[str, list[float]]) -> bool:
    return item[0] == OVERALL


def print_report(console: Console, results: Sequence[CaseResult], environment: dict[str, Any]) -> None:
    """The environment, a table of all cases, what failed and why, and the geometric means."""
    packages = ", ".join(f"{name} {number}" for name, number in environment["packages"].items() if number)
    console.print(f"{environment['cpu']}, {environment['threads']} threads; {packages}", highlight=False)
    if environment["load"] is not None and environment["load"] > BUSY_SHARE * environment["cores"]:
        busy = f"The machine was busy before the start (load {environment['load']:.1f}): expect noise."
        console.print(busy, style="yellow", highlight=False)
    console.print(results_table(results))
    for result in results:
        for entry in (result.baseline, *result.entries):
            style = "red" if entry.status == FAILED else "yellow"
            for note in (entry.reason, entry.memory_note and f"memory: {entry.memory_note}"):
                if note:
                    line = f"{result.case.label}, {entry.contender}: {entry.status}: {note}"
                    console.print(line, style=style, markup=False, highlight=False)
    console.print(means_table(results))


def results_table(results: Sequence[CaseResult]) -> Table:
    """A row for each case and contender."""
    caption = (
        "time: median ± half the interquartile range; ratio: torch.nn / contender, above 1 the contender is ahead;\n"
        "quartiles: of the ratios of paired rounds; MiB: the peak above what was in use before the call"
    )
    table = Table(box=SIMPLE_HEAD, title="time and peak memory of a call", caption=caption)
    for heading in ("cell", "mode", "T x B x I x H", "contender"):
        table.add_column(heading, no_wrap=True)
    for heading in ("torch.nn", "contender", "ratio", "quartiles", "torch MiB", "MiB"):
        table.add_column(heading, justify="right", no_wrap=True)
    previous = ("", "")
    for result in results:
        case = result.case
        group = (case.cell, case.mode)
        if previous not in (("", ""), group):
            table.add_section()
        previous = group
        for entry in result.entries or [result.baseline]:
            table.add_row(case.cell, case.mode, shape_text(case), entry.contender, *_figures(result.baseline, entry))
    return table


def _figures(baseline: Entry, entry: Entry) -> list[str]:
    ours = "" if baseline.seconds is None else time_text(baseline.seconds)
    if entry.seconds is None:
        style = "red" if entry.status == FAILED else "yellow"
        return [ours, f"[{style}]{escape(entry.status)}[/]", "", "", memory_text(baseline), ""]
    if entry.ratio is None:
        return [ours, "", "", "", memory_text(baseline), ""]
    ratio = entry.ratio
    return [
        ours,
        time_text(entry.seconds),
        ratio_text(ratio.median),
        f"{ratio.q1:.2f}-{ratio.q3:.2f}",
        memory_text(baseline),
        memory_text(entry),
    ]


def means_table(results: Sequence[CaseResult]) -> Table:
    """The geometric means of the ratios, a column for each contender."""
    means = geometric_means(results)
    table = Table(box=SIMPLE_HEAD, title="geometric mean of torch.nn / contender")
    table.add_column("cases", no_wrap=True)
    for contender in means:
        table.add_column(contender, justify="right", no_wrap=True)
    for group in dict.fromkeys(group for groups in means.values() for group in groups):
        table.add_row(group, *(ratio_text(groups[group]) if group in groups else "" for groups in means.values()))
    return table


def shape_text(case: Case) -> str:
    """The shape, and what else sets the case apart from one layer in one direction in float32."""
    return case.label.removeprefix(f"{case.cell} {case.mode} ")


def time_text(seconds: Summary) -> str:
    """The median with its unit, and half the interquartile range in percent of it after ±."""
    unit, scale = next((unit, scale) for unit, scale, least in UNITS if seconds.median >= least)
    spread = (seconds.q3 - seconds.q1) / 2 / seconds.median
    value = seconds.median * scale
    return f"{value:.{max(0, 2 - int(math.log10(max(value, 1))))}f} {unit} ±{spread:.0%}"


def memory_text(entry: Entry) -> str:
    return "" if entry.peak_bytes is None else f"{entry.peak_bytes / MIB:.1f}"


def ratio_text(ratio: float) -> str:
    colour = "green" if ratio > AHEAD else "red" if ratio < BEHIND else None
    text = f"{ratio:.2f}"
    return f"[{colour}]{text}[/]" if colour else text


def to_json(results: Sequence[CaseResult], environment: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Everything that was measured, as JSON's types; times in seconds, memory in bytes, ratios torch.nn / contender."""
    return {
        "format": FORMAT,
        "environment": environment,
        "options": options,
        "cases": [
            {
                **asdict(result.case),
                "shape": result.case.shape._asdict(),
                "contenders": [entry_json(entry) for entry in (result.baseline, *result.entries)],
            }
            for result in results
        ],
        "geometric_means": geometric_means(results),
    }


def entry_json(entry: Entry) -> dict[str, Any]:
    """An entry without what does not apply to it."""
    values = asdict(entry)
    for name in ("seconds", "ratio"):
        summary: Summary | None = getattr(entry, name)
        values[name] = None if summary is None else summary._asdict()
    if entry.status != MEASURED:
        del values["rounds"], values["calls"]
    return {name: value for name, value in values.items() if value is not None}


def write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
