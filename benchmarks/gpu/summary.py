"""What a run's records say, in a page: what failed, how fast each kind of kernel is, and the ceilings."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.figures import BASELINE, KINDS, LOOP, losses, means, points, racers

Records = dict[str, list[dict[str, Any]]]
"""By stage."""
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
        failed = [row for row in rows if _failure(row)]
        failures += len(failed)
        lines.append(
            f"{stage}: {len(rows)} cases, {len(failed)} failed, {sum(r.get('seconds', 0) for r in rows):.0f} s"
        )
        lines += [f"  {_short(row)}" for row in failed[:MOST_FAILURES]]
    for stage, tell in (("machine", _machine), ("smoke", _smoke), ("ceilings", _plain), ("prove", _plain)):
        lines += tell(records.get(stage, []))
    lines += cells_lines(records.get("cells", []))
    lines += race_lines(records.get("race", []))
    return "\n".join(lines), failures == 0


def machine_text(records: Records) -> str:
    """The GPU and the versions, for a title."""
    found = next((row["environment"] for row in records.get("machine", []) if "environment" in row), {})
    versions = found.get("packages", {})
    parts = [found.get("gpu"), *(f"{key} {found[key]}" for key in ("cuda", "cudnn", "driver") if found.get(key))]
    parts += [f"{name} {versions[name]}" for name in ("torch", "triton") if versions.get(name)]
    return ", ".join(str(part) for part in parts if part)


def _failure(row: dict[str, Any]) -> Any:
    """What went wrong in a case, or with one that raced there; None if nothing did."""
    of_racers = {name: times["failed"] for name, times in row.get("times", {}).items() if "failed" in times}
    return row.get("failed") or (row.get("wrong") if row.get("ok") is False else of_racers) or None


def _short(row: dict[str, Any]) -> str:
    told = _failure(row)
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


def cells_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line a layer: the loop's µs as a graph and eagerly, and how many times as fast each racer is; or why not."""
    lines = []
    for row in rows:
        parts = []
        for racer, times in row.get("times", {}).items():
            base, told = row["times"][LOOP], []
            for kind in KINDS:
                if kind not in times:
                    told.append("-")
                elif racer == LOOP:
                    told.append(f"{times[kind][0]:.0f} µs")
                else:
                    told.append(f"{base[kind][0] / times[kind][0]:.2f}" if kind in base else f"{times[kind][0]:.0f} µs")
            why = next((f" ({times[key]})" for key in ("failed", "not served") if key in times), "")
            parts.append(f"{racer} {' | '.join(told)}{why}")
        lines.append(f"  {row.get('case')}: {', '.join(parts)}"[:400])
    return lines


def race_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line a point: torch.nn's µs, and how many times as fast each racer is, by graph and eagerly; then the means."""
    found = points(rows)
    if not found:
        return []
    names = racers(found)
    lines = [f"race: torch.nn in µs, then times as fast: {', '.join(names)}; as graphs | eager"]
    for point in found:
        parts = []
        for kind in KINDS:
            base = point.microseconds(BASELINE, kind)
            told = ["-" if base is None else f"{base:.0f}"]
            for name in names:
                speed = point.speed(name, kind)
                told.append(f"{speed:.2f}" if speed else "bad" if "failed" in point.times.get(name, {}) else "-")
            parts.append(" ".join(told))
        lines.append(f"{point.case.label}: {' | '.join(parts)}")
    lost = losses(found)
    lines += [
        f"auto is not the fastest at {len(lost)} of {len(KINDS) * len(found)}:" if lost else "auto is the fastest"
    ]
    lines += [f"  {line}" for line in lost]
    for kind in KINDS:
        for (mode, name), (mean, least, count) in means(found, kind).items():
            lines.append(f"mean {mode} {kind}, {name}: {mean:.2f} of {count}, least {least:.2f}")
    return lines
