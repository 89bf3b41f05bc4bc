"""`python -m benchmarks.cost`: makes the table by which `auto` chooses between the CPU's engines, and judges it.

    python -m benchmarks.cost measure times.jsonl --minutes 10
    python -m benchmarks.cost fit times.jsonl
    python -m benchmarks.cost judge

`measure` appends to a file, which a later one with the same seed goes on with. `fit` writes the table that the package
reads. `judge` times points that nothing was fitted to.

The exit status is 0 if everything was measured, 2 if the command line was wrong or a file does not serve, 130 if it was
interrupted; what was measured until then is kept, or judged.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import command_line, environment, report
from benchmarks.command_line import INTERRUPTED, OK, USAGE_ERROR, UsageError, positive_float, positive_int
from benchmarks.cost import fitting, judging, tables
from benchmarks.cost.measuring import Timed, measure, read
from benchmarks.cost.points import Point, drawn_points, planned
from fastrnn.backends import cost

TOLD_SECONDS = 10.0
"""Between what is said of a measurement under way."""
PARTS = 5
"""Of the points, each of which is once predicted from the others."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (UsageError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return OK


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cost",
        description="Measures, fits and judges what the CPU's engines are predicted to take.",
    )
    commands = parser.add_subparsers(required=True, metavar="measure | fit | judge")
    counts = sorted({1, torch.get_num_threads()})

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = commands.add_parser(name, description=text, help=text)
        made.set_defaults(run=run)
        return made

    measuring = command("measure", measure_and_tell, "times both engines, in turns, and appends the times to a file")
    measuring.add_argument("file", type=Path, metavar="FILE")
    measuring.add_argument("--minutes", type=positive_float, default=10.0, help="at most; default: %(default).0f")
    measuring.add_argument("--seed", type=int, default=0, help="of the sizes that are drawn; default: %(default)d")
    fit = command("fit", fit_and_tell, "fits the table to the times in files and says how well")
    fit.add_argument("files", type=Path, nargs="+", metavar="FILE", help="of one machine")
    fit.add_argument("--out", type=Path, default=cost.TABLE_FILE, metavar="FILE", help="default: %(default)s")
    judge = command("judge", judge_and_tell, "times auto and both engines at sizes drawn anew, and compares")
    judge.add_argument("--points", type=positive_int, default=60, metavar="N", help="default: %(default)d")
    judge.add_argument("--seed", type=int, default=None, help="default: another in every run")
    judge.add_argument("--minutes", type=positive_float, default=10.0, help="at most; default: %(default).0f")
    for one in (measuring, judge):
        one.add_argument(
            "--threads", type=positive_int, nargs="+", default=counts, metavar="N", help=f"default: {counts}"
        )
    return parser


def measure_and_tell(options: argparse.Namespace) -> None:
    command_line.check_output("FILE", options.file)
    told = began = time.monotonic()

    def tell(count: int, point: Point) -> None:
        nonlocal told
        if time.monotonic() - told >= TOLD_SECONDS:
            told = time.monotonic()
            print(f"{told - began:.0f} s: {count} points; now {point}", file=sys.stderr)

    measure(planned(options.seed, options.threads), options.file, options.minutes, tell)


def fit_and_tell(options: argparse.Namespace) -> None:
    command_line.check_output("--out", options.out)
    where, timed = read(options.files[0])
    for path in options.files[1:]:
        timed += read(path)[1]
    table = fitting.fitted(timed)
    console = command_line.console_for_tables()
    shown = Table(box=SIMPLE_HEAD, title="log of predicted / taken")
    for heading in ("row", "points", "rms", "largest"):
        shown.add_column(heading, justify="left" if heading == "row" else "right", no_wrap=True)
    for name, (count, spread, largest) in fitting.residuals(timed, table).items():
        shown.add_row(name, str(count), f"{spread:.2f}", f"{largest:.2f}")
    console.print(shown)
    print(judging.summary([judging.regret(s, tables.predicted(table, p.sizes)) for p, s in timed], "these points"))
    print(judging.summary(list(left_out(timed)), "each fifth of them by the others"))
    for engine in cost.ENGINES:
        print(judging.summary([s[engine] / min(s.values()) - 1 for _, s in timed], f"always {engine}"))
    tables.write(options.out, where, table)


def left_out(timed: Sequence[Timed]) -> Iterator[float]:
    """How far the choice lies behind at points that the table was not fitted to."""
    for part in range(PARTS):
        table = fitting.fitted([one for number, one in enumerate(timed) if number % PARTS != part])
        for point, seconds in timed[part::PARTS]:
            yield judging.regret(seconds, tables.predicted(table, point.sizes))


def judge_and_tell(options: argparse.Namespace) -> None:
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    points = islice(drawn_points(seed, options.threads), options.points)
    end, results = time.monotonic() + 60 * options.minutes, []
    try:
        for point in track(points, "", total=options.points, console=Console(stderr=True), transient=True):
            if time.monotonic() >= end:
                break
            results.append(judging.judge(point))
    finally:
        console = command_line.console_for_tables()
        console.print(f"{report.machine_text(environment.describe())}; seed {seed}", highlight=False)
        if results:
            console.print(judging.table(results))
            print(judging.summary([one.behind for one in results]))
            for engine in cost.ENGINES:
                better = [min(one.seconds[each] for each in cost.ENGINES) for one in results]
                behind = [one.seconds[engine] / least - 1 for one, least in zip(results, better, strict=True)]
                print(judging.summary(behind, f"always {engine}"))


if __name__ == "__main__":
    sys.exit(main())
