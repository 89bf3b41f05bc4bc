"""What a run's records say, in a page: what failed, how fast each kind of kernel is, and the ceilings."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Records = dict[str, list[dict[str, Any]]]
"""By stage."""
RACERS = ("triton", "cuda cluster", "cuda grid")
MOST_FAILURES = 12
"""That are told in full, of each stage; the rest are in the JSON."""


def read(folder: Path) -> Records:
    """The records of every stage whose file is there; a line that was cut off is left out."""
    found: Records = {}
    for path in sorted(folder.glob("*.jsonl")):
        found[path.stem] = []
        for line in path.read_text().splitlines():
            try:
                found[path.stem].append(json.loads(line))
            except ValueError:
                continue
    return found


def summary(records: Records) -> tuple[str, bool]:
    """The page, and whether all that was run is as it should be."""
    lines: list[str] = []
    failures = 0
    for stage, rows in records.items():
        failed = [row for row in rows if "failed" in row or row.get("ok") is False]
        failures += len(failed)
        lines.append(
            f"{stage}: {len(rows)} cases, {len(failed)} failed, {sum(r.get('seconds', 0) for r in rows):.0f} s"
        )
        lines += [f"  {_short(row)}" for row in failed[:MOST_FAILURES]]
    for stage, tell in (("machine", _machine), ("smoke", _smoke), ("ceilings", _plain), ("prove", _plain)):
        lines += tell(records.get(stage, []))
    lines += race_table(records.get("race", []))
    return "\n".join(lines), failures == 0


def _short(row: dict[str, Any]) -> str:
    told = row.get("failed") or row.get("wrong")
    log = f" | {' / '.join(row['log'][-3:])}" if row.get("log") else ""
    return f"{row.get('case')}: {told}{log}"[:600]


def _machine(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [f"  {key}: {value}" for row in rows for key, value in row.items() if key not in ("case", "seconds", "job")]


def _plain(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [f"  {json.dumps({k: v for k, v in row.items() if k not in ('job', 'log')})}"[:400] for row in rows]


def _smoke(rows: Sequence[dict[str, Any]]) -> list[str]:
    """By kind of kernel and dtype: how many were right or not, and the largest share of the allowed error."""
    kinds: dict[str, Counter[str]] = {}
    shares: dict[str, float] = {}
    for row in rows:
        if "ok" not in row:
            continue
        words = row["case"].split()
        kind = " ".join(words[:2] + words[3:4]) if words[0] == "cuda" else f"{words[0]} {words[2]}"
        outcome = {True: "right", False: "WRONG", None: "not served"}[row["ok"]]
        kinds.setdefault(kind, Counter())[outcome] += 1
        if row["ok"]:
            shares[kind] = max(shares.get(kind, 0.0), float(row["share"]))
    return [f"  {kind}: {dict(counts)}, largest share {shares.get(kind)}" for kind, counts in sorted(kinds.items())]


def race_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line a point: cuDNN's µs, and how many times as fast each racer is, by graph and eagerly; then the means."""
    lines, logs = [], {(name, kind): [] for name in RACERS for kind in ("graph", "eager")}  # type: ignore[var-annotated]
    best: dict[str, list[float]] = {}
    for row in rows:
        if "times" not in row:
            continue
        times = row["times"]
        parts = []
        for kind in ("graph", "eager"):
            base = times["cudnn"].get(kind)
            told = f"{base[0]:.0f}" if base else "-"
            ratios = []
            for name in RACERS:
                one = times.get(name, {})
                if base and one.get(kind):
                    ratios.append(base[0] / one[kind][0])
                    logs[name, kind].append(math.log(ratios[-1]))
                    told += f" {ratios[-1]:.2f}"
                else:
                    told += " bad" if "failed" in one else " -"
            if ratios:
                best.setdefault(f"{row['point']['mode']} {kind}", []).append(math.log(max(ratios)))
            parts.append(told)
        lines.append(f"{row['case']}: {' | '.join(parts)}")
    if lines:
        lines.insert(0, f"race: cuDNN in µs, then times as fast: {', '.join(RACERS)}; as graphs | eager")
    for (name, kind), values in logs.items():
        if values:
            lines.append(f"mean {name} {kind}: {math.exp(sum(values) / len(values)):.2f} of {len(values)}")
    for kind, values in best.items():
        lines.append(f"mean of the best of ours, {kind}: {math.exp(sum(values) / len(values)):.2f} of {len(values)}")
    return lines
