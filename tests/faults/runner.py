"""Which tests find which fault: pytest runs in a copy of the tree, once for each fault that is planted there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from tests.faults.fault import Fault, Misplaced, planted
from tests.faults.record import PLACE

PASSED, FAILED = 0, 1
"""pytest's exit statuses that say all: the others need a remark."""
NO_TESTS = 5
KEPT = Path(".pytest_cache", "d")
"""What tests keep for later runs: the extension compiled for the CPU. A fault must not leave its own there."""
BUILT = ("_C*.so", "_C*.txt")
"""Within fastrnn/: the extension, or the reason why it is not there, which git ignores."""


class Outcome(NamedTuple):
    """What became of one fault."""

    fault: Fault
    found: bool
    tests: list[str]
    """that failed: the first, or all"""
    remark: str
    """how it was found otherwise, or why nothing could find it"""
    seconds: float


class Run(NamedTuple):
    """What pytest did in one tree."""

    status: int | None
    """None where it was stopped because it took too long; negative where a signal ended it"""
    tests: list[str]
    broken: list[str]
    """what could not be collected"""
    output: str
    seconds: float


class NotHealthy(Exception):
    """Without any fault the tests fail, or there are none: nothing can be said of faults."""


def copy_tree(root: Path, target: Path) -> None:
    """What git tracks or would track, the built extension, and what tests keep for later runs."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    names = [name for name in listed.split("\0") if name and (root / name).is_file()]
    built = [path.relative_to(root) for pattern in BUILT for path in (root / "fastrnn").glob(pattern)]
    for name in (*names, *built):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, target / name)
    if (root / KEPT).is_dir():
        shutil.copytree(root / KEPT, target / KEPT)


def environment(tree: Path) -> dict[str, str]:
    """In which fastrnn and the tests are those of the tree, whatever is installed: PYTHONPATH comes first."""
    paths = [str(tree), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def check_import(tree: Path) -> None:
    """Raises NotHealthy where Python would take fastrnn from elsewhere."""
    ask = [sys.executable, "-c", "import fastrnn; print(fastrnn.__file__)"]
    done = subprocess.run(ask, cwd=tree, env=environment(tree), capture_output=True, text=True)
    if done.returncode or not Path(done.stdout.strip()).is_relative_to(tree.resolve()):
        raise NotHealthy(f"fastrnn is not imported from {tree}: {done.stdout}{done.stderr}")


def run_tests(tree: Path, arguments: Sequence[str], keep_going: bool, longest: float) -> Run:
    """Runs pytest in a tree, for `longest` seconds at most, until the first test fails or all have run."""
    record = tree.with_name(f"{tree.name}.failed")
    record.write_text("")
    command = [sys.executable, "-m", "pytest", "-q", "--tb=line", "-p", "tests.faults.record"]
    command += [*([] if keep_going else ["-x"]), *arguments]
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=tree,
        env=environment(tree) | {PLACE: str(record)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # so that all that a test starts ends with it
    )
    _running.add(process)
    status: int | None
    try:
        output, _ = process.communicate(timeout=longest)
        status = process.returncode
    except subprocess.TimeoutExpired:
        end(process)
        output, _ = process.communicate()
        status = None
    finally:
        _running.discard(process)
        if process.returncode is None:  # stopped by hand
            end(process)
    lines = [json.loads(line) for line in dict.fromkeys(record.read_text().splitlines())]
    tests, broken = ([name for kind, name in lines if kind == wanted] for wanted in ("test", "collection"))
    return Run(status, tests, broken, output, time.monotonic() - began)


_running: set[subprocess.Popen[str]] = set()


def end(process: subprocess.Popen[str]) -> None:
    """With all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def judged(fault: Fault, run: Run, longest: float) -> Outcome:
    """What a run says of the fault that was planted in it."""
    remark = ""
    if run.status is None:
        remark = f"still running after {longest:.0f} s"
    elif run.broken:
        remark = f"tests cannot be collected: {' '.join(run.broken)}"
    elif run.status < 0:
        remark = f"ended by signal {-run.status}"
    elif run.status == NO_TESTS:
        remark = "no tests ran"
    elif run.status not in (PASSED, FAILED):
        remark = f"pytest's exit status was {run.status}"
    found = bool(run.tests or run.broken) or run.status is None or run.status < 0 or run.status == FAILED
    return Outcome(fault, found, run.tests, remark, run.seconds)


def search(
    root: Path,
    folder: Path,
    faults: Sequence[Fault],
    arguments: Sequence[str],
    *,
    keep_going: bool = False,
    jobs: int = 1,
    longest: float = 3600.0,
    is_healthy: bool = False,
    told: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Plants each fault into a copy of the tree at `root` and runs pytest there.

    Args:
        folder: an empty one, for the copies: one for each job.
        arguments: pytest's.
        keep_going: whether all tests run, else up to the first that fails.
        jobs: how many faults are tried at the same time.
        longest: seconds after which a run counts as one that hangs.
        is_healthy: whether it is known that the tests pass without a fault; else they run so first.
        told: called with each outcome as it is there, never twice at the same time.

    Returns:
        The outcomes in the order of `faults`.

    Raises:
        NotHealthy: the tests do not pass without a fault, or fastrnn is not that of the copy.
    """
    template = folder / "tree"
    copy_tree(root, template)
    if (template / "fastrnn").is_dir():
        check_import(template)
    if not is_healthy:
        run = run_tests(template, arguments, False, longest)
        if run.status != PASSED:
            raise NotHealthy(f"without any fault the tests do not pass:\n{run.output}")
    trees: SimpleQueue[Path] = SimpleQueue()
    for job in range(jobs):
        tree = folder / f"tree{job}"
        shutil.copytree(template, tree)
        trees.put(tree)

    def attempt(fault: Fault) -> Outcome:
        tree = trees.get()
        try:
            with planted(fault, tree):
                return judged(fault, run_tests(tree, arguments, keep_going, longest), longest)
        except (Misplaced, OSError) as error:
            return Outcome(fault, False, [], str(error), 0.0)
        finally:
            shutil.rmtree(tree / KEPT, ignore_errors=True)
            if (template / KEPT).is_dir():
                shutil.copytree(template / KEPT, tree / KEPT)
            trees.put(tree)

    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(attempt, fault): number for number, fault in enumerate(faults)}
        outcomes = {}
        try:
            for done in as_completed(running):
                outcomes[running[done]] = done.result()
                told(done.result())
        except BaseException:  # stopped by hand: what was started ends as well
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(_running):
                end(process)
            raise
    return [outcomes[number] for number in range(len(faults))]
