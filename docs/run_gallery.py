"""Runs programs of examples/ and writes down what the site shows of them, which does not run them.

    python docs/run_gallery.py                 all of them: many minutes
    python docs/run_gallery.py hello bptt

Each runs twice, in processes of its own. Both must print the same last line, times in it aside, and draw a picture of
less than 100 kB. The picture then goes to docs/pictures/gallery/, and what it printed and how long it took to
docs/gallery/results.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastrnn
from fastrnn.__main__ import cpu_model, package_version

DOCS = Path(__file__).resolve().parent
EXAMPLES = DOCS.parent / "examples"
PICTURES = DOCS / "pictures" / "gallery"
RESULTS = DOCS / "gallery" / "results.json"
PACKAGES = ("torch", "numpy")

SECONDS = 120
"""what a program may take on two cores"""
PICTURE_BYTES = 100_000
PRINTED_LINES = 20
"""of what it printed, the last so many are shown"""

_TIME = re.compile(r"\d[\d.,]*(?= ?(?:s|ms|µs|seconds?|minutes?|times)\b)")
_PROGRESS = re.compile("[━╸╺]")
"""what rich draws a bar of"""


class Fault(Exception):
    """What is wrong with a program."""


@dataclass(frozen=True)
class Run:
    """One run of a program."""

    printed: list[str]
    seconds: float
    """by the clock"""
    cpu_seconds: float
    """of all its threads, outside the kernel"""


def run(program: Path, picture: Path) -> Run:
    """Runs a program in a folder of its own.

    Raises:
        Fault: it ended with an error, printed nothing, or left no picture or too large a one.
    """
    command = [sys.executable, str(program), "--picture", str(picture)]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=picture.parent, env=os.environ | {"MPLBACKEND": "Agg"}
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)  # it has been waited for
        seconds = time.perf_counter() - began
        output.seek(0)
        lines = [line.rstrip() for line in output if not _PROGRESS.search(line)]
    while lines and not lines[-1]:
        lines.pop()
    if process.returncode:
        raise Fault(f"ended with status {process.returncode}:\n" + "\n".join(lines[-PRINTED_LINES:]))
    if not lines:
        raise Fault("printed nothing")
    if not picture.exists():
        raise Fault("left no picture")
    if picture.stat().st_size >= PICTURE_BYTES:
        raise Fault(f"its picture has {picture.stat().st_size} bytes, and may have {PICTURE_BYTES - 1}")
    return Run(lines, seconds, usage.ru_utime)


def without_times(line: str) -> str:
    """A line in which numbers before a unit of time, or before "times", are alike."""
    return _TIME.sub("…", line)


def result_of(program: Path, folder: Path) -> dict[str, Any]:
    """What is written down of a program, whose picture is in `folder` afterwards.

    Raises:
        Fault: as `run`; or its two runs have different last lines, or one takes too long.
    """
    runs = [run(program, folder / f"{program.stem}.png") for _ in range(2)]
    first, second = (without_times(each.printed[-1]) for each in runs)
    if first != second:
        raise Fault(f"two runs end differently:\n{runs[0].printed[-1]}\n{runs[1].printed[-1]}")
    slower = max(runs, key=lambda each: each.seconds)
    if slower.seconds > SECONDS:
        raise Fault(f"took {slower.seconds:.0f} s, and may take {SECONDS}")
    versions = {"fastrnn": fastrnn.__version__, "Python": platform.python_version()}
    return {
        "line": runs[-1].printed[-1],
        "printed": runs[-1].printed[-PRINTED_LINES:],
        "seconds": round(slower.seconds, 1),
        "cpu_seconds": round(slower.cpu_seconds, 1),
        "processor": f"{cpu_model()}, {len(os.sched_getaffinity(0))} cores",
        "versions": versions | {name: package_version(name) for name in PACKAGES},
    }


def record(name: str, result: dict[str, Any], picture: Path) -> None:
    """Adds a program to what is known, or takes the place of what was."""
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    results[name] = result
    RESULTS.write_text(json.dumps(results, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    PICTURES.mkdir(parents=True, exist_ok=True)
    (PICTURES / picture.name).write_bytes(picture.read_bytes())


def parse(arguments: list[str] | None) -> list[Path]:
    """The programs that are named, or all."""
    programs = {path.stem: path for path in sorted(EXAMPLES.glob("*.py"))}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of programs, without .py (all)")
    args = parser.parse_args(arguments)
    for name in args.names:
        if name not in programs:
            parser.error(f"there is no examples/{name}.py; there are {', '.join(programs)}")
    return [programs[name] for name in args.names or programs]


def main(arguments: list[str] | None = None) -> int:
    faults = 0
    for program in parse(arguments):
        with tempfile.TemporaryDirectory() as folder:
            try:
                result = result_of(program, Path(folder))
            except Fault as fault:
                faults += 1
                print(f"{program.stem}: {fault}")
                continue
            record(program.stem, result, Path(folder, f"{program.stem}.png"))
        print(f"{program.stem}: {result['seconds']} s; {result['cpu_seconds']} s of processor time")
        print(f"    {result['line']}", flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
