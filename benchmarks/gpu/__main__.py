"""`python -m benchmarks.gpu`: proves and measures fastrnn on the GPU that is there; see the package.

`--out DIR` gets a file of JSON lines for each stage, written as results come, and the summary that is printed last.
`python -m benchmarks.gpu report DIR` prints that summary again and puts the race beside it, as Markdown and as a
picture.

The exit status is 0 if every case that was run is as it should be, 1 if not, 2 if the command line was wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.command_line import FAILURE, OK, USAGE_ERROR, UsageError, known, listed, positive_float
from benchmarks.gpu.figures import points
from benchmarks.gpu.pictures import draw
from benchmarks.gpu.stages import DEFAULT_MINUTES, NAMES, STAGES, Stage
from benchmarks.gpu.summary import machine_text, read, summary
from benchmarks.gpu.tables import markdown
from benchmarks.gpu.workers import run_together

SUMMARY, TABLES, PICTURE = "summary.txt", "race.md", "race.png"


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["report"]:
        return report(arguments[1:])
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        names = known("stage", listed(options.stages or NAMES), NAMES)
        options.out.mkdir(parents=True, exist_ok=True)
    except (UsageError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return USAGE_ERROR
    stages = [stage for stage in STAGES if stage.name in names]
    run(stages, options.minutes, options.out, options.dry_run)
    return tell(options.out)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Proves fastrnn's kernels on the GPU that is there and measures them beside cuDNN.",
    )
    add = parser.add_argument
    add("--minutes", type=positive_float, default=DEFAULT_MINUTES, help="for all stages; default: %(default).0f")
    add("--out", type=Path, required=True, metavar="DIR", help="gets JSON lines for each stage, and the summary")
    add("--stages", nargs="+", metavar="STAGE", help=f"of {', '.join(NAMES)}; default: all")
    add("--dry-run", action="store_true", help="walk all stages on the CPU, with the smallest cases")
    return parser


def run(stages: Sequence[Stage], minutes: float, out: Path, dry: bool) -> None:
    """Runs the stages one after the other; what one leaves of its time is for those after it."""
    scale = 60 * minutes / sum(stage.seconds for stage in stages)
    began, planned = time.monotonic(), 0.0
    for stage in stages:
        planned += scale * stage.seconds
        print(f"{stage.name}: until {planned:.0f} s", flush=True)
        with (out / f"{stage.name}.jsonl").open("w") as file:
            lock = threading.Lock()

            def take(record: dict[str, Any], file: Any = file, lock: Any = lock) -> None:
                with lock:
                    file.write(json.dumps(record) + "\n")
                    file.flush()

            run_together(stage.jobs(dry), began + planned, take)
        print(f"{stage.name}: ended at {time.monotonic() - began:.0f} s", flush=True)


def tell(folder: Path) -> int:
    """Prints and keeps the summary of what is in a folder."""
    text, fine = summary(read(folder))
    (folder / SUMMARY).write_text(text + "\n")
    print(text)
    return OK if fine else FAILURE


def report(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu report")
    parser.add_argument("folder", type=Path, metavar="DIR")
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        print(f"{parser.prog}: error: no folder {options.folder}", file=sys.stderr)
        return USAGE_ERROR
    records = read(options.folder)
    found = points(records.get("race", []))
    if found:
        (options.folder / TABLES).write_text(markdown(found))
        ceilings = {key: value for row in records.get("ceilings", []) for key, value in row.items()}
        draw(options.folder / PICTURE, found, ceilings, machine_text(records))
    return tell(options.folder)


if __name__ == "__main__":
    sys.exit(main())
