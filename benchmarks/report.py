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

from benchmarks.cases import TF32, Case
from benchmarks.means import GRAPH_RATIO, PEER_RATIO, RATIO, geometric_means, worst_cases
from benchmarks.runner import FAILED, MEASURED, CaseResult, Entry
from benchmarks.timing import Summary

FORMAT = 2
"""Of the JSON: raised whenever a reader of the older one would go wrong."""
MIB = 2**20
AHEAD, BEHIND = 1.05, 0.95
"""Beyond these a ratio is coloured; between them two runs are as good as equal."""
UNITS = (("s", 1.0, 1.0), ("ms", 1e3, 1e-3), ("µs", 1e6, 0.0))
"""Of time: name, how many make a second, and the least time in seconds that is told in it."""
BUSY_SHARE = 0.5
"""Of the cores: beyond this load before the start, other programs disturb what is measured."""


def print_report(console: Console, results: Sequence[CaseResult], environment: dict[str, Any]) -> None:
    """The environment, a table of all cases, what failed and why, the geometric means and the worst cases."""
    packages = ", ".join(f"{name} {number}" for name, number in environment["packages"].items() if number)
    console.print(f"{machine_text(environment)}; {packages}", highlight=False)
    if environment["load"] is not None and environment["load"] > BUSY_SHARE * environment["cores"]:
        busy = f"The machine was busy before the start (load {environment['load']:.1f}): expect noise."
        console.print(busy, style="yellow", highlight=False)
    console.print(results_table(results))
    for result in results:
        for entry in result.all_entries:
            style = "red" if entry.status == FAILED else "yellow"
            for note in notes(entry):
                line = f"{result.case.label}, {entry.contender}: {entry.status}: {note}"
                console.print(line, style=style, markup=False, highlight=False)
    for which in (RATIO, PEER_RATIO, GRAPH_RATIO):
        if geometric_means(results, which):
            console.print(means_table(results, which))


def machine_text(environment: dict[str, Any]) -> str:
    """What computed: the GPU with its driver and libraries, or the processor and the threads."""
    if environment["device"] == "cuda":
        parts = (
            f"{name} {environment[key]}" for name, key in (("driver", "driver"), ("CUDA", "cuda"), ("cuDNN", "cudnn"))
        )
        return ", ".join((environment["gpu"], *parts))
    return f"{environment['cpu']}, {environment['threads']} threads"


def notes(entry: Entry) -> list[str]:
    """Why figures of an entry are missing."""
    kinds = ("", entry.reason), ("memory: ", entry.memory_note), ("graph: ", entry.graph_note)
    return [f"{kind}{note}" for kind, note in kinds if note]


def baseline_name(results: Sequence[CaseResult]) -> str:
    """Whose times the ratios are of: the same in all cases."""
    return results[0].baseline.contender


def has_graphs(results: Sequence[CaseResult]) -> bool:
    """Whether anything was replayed as a CUDA graph."""
    return any(entry.graph_seconds is not None for result in results for entry in result.all_entries)


def has_peers(results: Sequence[CaseResult]) -> bool:
    """Whether anything was compared with a peer."""
    return any(entry.peer_ratio is not None for result in results for entry in result.entries)


def results_table(results: Sequence[CaseResult]) -> Table:
    """A row for each case and contender."""
    name, graphs, peers = baseline_name(results), has_graphs(results), has_peers(results)
    caption = (
        f"time: median ± half the interquartile range; ratio: {name} / contender, above 1 the contender is ahead;\n"
        "quartiles: of the ratios of paired rounds; MiB: the peak above what was in use before the call"
    )
    if any(result.case.streaming for result in results):
        caption += "\nstreaming, cell: the time of a step, a call of the module or of the cell"
    if peers:
        caption += "\nbest peer: the time of the fastest of the peers / contender; peers' memory is not measured"
    if graphs:
        caption += "\ngraph: as a CUDA graph, L2 cleared before; the other times include the gaps between launches"
    table = Table(box=SIMPLE_HEAD, title="time and peak memory of a call", caption=caption)
    for heading in ("cell", "mode", "T x B x I x H", "contender"):
        table.add_column(heading, no_wrap=True)
    headings = [name, "contender", "ratio", "quartiles"]
    if peers:
        headings += ["best peer", "ratio"]
    if graphs:
        headings += [f"{name} graph", "graph", "ratio"]
    for heading in (*headings, f"{name.removesuffix('.nn')} MiB", "MiB"):
        table.add_column(heading, justify="right", no_wrap=True)
    previous = ("", "")
    for result in results:
        case = result.case
        group = (case.cell, case.mode)
        if previous not in (("", ""), group):
            table.add_section()
        previous = group
        for entry in result.entries or [result.baseline]:
            cells = _figures(result.baseline, entry, graphs, peers)
            table.add_row(case.cell, case.mode, shape_text(case), entry.contender, *cells)
    return table


def _figures(baseline: Entry, entry: Entry, graphs: bool, peers: bool) -> list[str]:
    """The cells of an entry's row; the second of each pair is left empty for the baseline itself."""
    own = entry if entry is not baseline else Entry(baseline.contender)
    figures = [time_text(baseline.seconds), time_text(own.seconds), *_ratio_cells(own)]
    if own.seconds is None and own is entry:
        style = "red" if entry.status == FAILED else "yellow"
        figures[1] = f"[{style}]{escape(entry.status)}[/]"
    if peers:
        figures += [own.best_peer or "", "" if own.peer_ratio is None else ratio_text(own.peer_ratio.median)]
    if graphs:
        graph_ratio = "" if own.graph_ratio is None else ratio_text(own.graph_ratio.median)
        figures += [time_text(baseline.graph_seconds), time_text(own.graph_seconds), graph_ratio]
    return [*figures, memory_text(baseline), memory_text(own)]


def _ratio_cells(entry: Entry) -> tuple[str, str]:
    ratio = entry.ratio
    return ("", "") if ratio is None else (ratio_text(ratio.median), f"{ratio.q1:.2f}-{ratio.q3:.2f}")


def means_table(results: Sequence[CaseResult], which: str = RATIO) -> Table:
    """The geometric means of the ratios, and the worst cases, a row for each contender and group of cases."""
    worst = worst_cases(results, which)
    numerator = "the best peer" if which == PEER_RATIO else baseline_name(results)
    what = " as CUDA graphs" if which == GRAPH_RATIO else ""
    table = Table(box=SIMPLE_HEAD, title=f"geometric mean of {numerator} / contender{what}")
    for heading in ("contender", "cases"):
        table.add_column(heading, no_wrap=True)
    for heading in ("mean", "worst"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("worst case", no_wrap=True)
    for contender, groups in geometric_means(results, which).items():
        table.add_section()
        for group, mean in groups.items():
            least = worst[contender][group]
            table.add_row(contender, group, ratio_text(mean), ratio_text(least.ratio), least.case)
    return table


def shape_text(case: Case) -> str:
    """The shape, and what else sets the case apart from one layer in one direction in float32."""
    return case.label.removeprefix(f"{case.cell} {case.mode} ")


def time_text(seconds: Summary | None) -> str:
    """The median with its unit, and half the interquartile range in percent of it after ±; nothing for None."""
    if seconds is None:
        return ""
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
    """Everything that was measured, as JSON's types; times in seconds, memory in bytes, ratios baseline / contender.

    A case's first contender is the baseline. Times of the modes "streaming" and "cell" are of one step.
    """
    return {
        "format": FORMAT,
        "environment": environment,
        "options": options,
        "cases": [
            {
                **asdict(result.case),
                "shape": result.case.shape._asdict(),
                "tf32_allowed": result.case.dtype == TF32,
                "contenders": [entry_json(entry) for entry in result.all_entries],
            }
            for result in results
        ],
        **summaries_json(results, RATIO, ""),
        **(summaries_json(results, PEER_RATIO, "peer_") if has_peers(results) else {}),
        **(summaries_json(results, GRAPH_RATIO, "graph_") if has_graphs(results) else {}),
    }


def summaries_json(results: Sequence[CaseResult], which: str, prefix: str) -> dict[str, Any]:
    """The geometric means and the worst cases of one of the ratios."""
    worst = worst_cases(results, which)
    return {
        f"{prefix}geometric_means": geometric_means(results, which),
        f"{prefix}worst_cases": {
            contender: {group: least._asdict() for group, least in groups.items()}
            for contender, groups in worst.items()
        },
    }


def entry_json(entry: Entry) -> dict[str, Any]:
    """An entry without what does not apply to it."""
    values = asdict(entry)
    for name in ("seconds", "ratio", "peer_ratio", "graph_seconds", "graph_ratio"):
        summary: Summary | None = getattr(entry, name)
        values[name] = None if summary is None else summary._asdict()
    if entry.status != MEASURED:
        del values["rounds"], values["calls"]
    return {name: value for name, value in values.items() if value is not None}


def write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
