"""What was measured, as JSON: a line for each contender at each point."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.serving.measure import Row, best_peer
from benchmarks.serving.points import Point
from benchmarks.serving.report import grouped

FORMAT = 1
OF_ENTRY = ("contender", "is_ours", "weights", "threads", "error")
"""A row's fields that are the same under all conditions."""
OF_CALLS = ("calls", "median", "q1", "q3", "p99")
DIGITS = 4


def write(path: Path, rows: Sequence[Row], failures: Sequence[str], where: dict[str, Any]) -> None:
    """Everything that was measured; times in seconds."""
    entries = grouped(rows, lambda row: (row.point, *(getattr(row, name) for name in OF_ENTRY)))
    lines = ",\n".join(json.dumps(entry_json(found, rows), allow_nan=False) for found in entries.values())
    head = json.dumps({"format": FORMAT, "environment": where, "failures": list(failures)}, indent=2, allow_nan=False)
    path.write_text(f'{head[:-2]},\n  "entries": [\n{lines}\n  ]\n}}\n', encoding="utf-8")


def entry_json(found: Sequence[Row], rows: Sequence[Row]) -> dict[str, Any]:
    """One entry's rows."""
    first = found[0]
    return {
        "point": first.point._asdict(),
        **{name: getattr(first, name) for name in OF_ENTRY[:-1]},
        "error": rounded(first.error),
        "times": {row.condition: times_json(row, rows) for row in found},
    }


def times_json(row: Row, rows: Sequence[Row]) -> dict[str, Any]:
    times = {name: rounded(getattr(row, name)) for name in OF_CALLS}
    peer = best_peer(row, rows) if row.is_ours else None
    if peer is None:
        return times
    who = f"{peer.contender}, {peer.weights}, {peer.threads}"
    return times | {"ratio": rounded(peer.median / row.median), "best_peer": who}


def rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.{DIGITS}g}")


def read(path: Path) -> tuple[list[Row], list[str], dict[str, Any]]:
    """Rows, failures and environment of what `write` wrote. Raises OSError, or ValueError for anything else."""
    document = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(document, dict) or document.get("format") != FORMAT or "entries" not in document:
        raise ValueError(f"{path}: no results of this command in format {FORMAT}")
    rows = [
        Row(
            Point(**entry["point"]),
            condition=condition,
            **{name: entry[name] for name in OF_ENTRY},
            **{name: times[name] for name in OF_CALLS},
        )
        for entry in document["entries"]
        for condition, times in entry["times"].items()
    ]
    return rows, document["failures"], document["environment"]
