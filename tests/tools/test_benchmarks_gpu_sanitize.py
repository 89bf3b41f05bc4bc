"""Stage `sanitize` of `python -m benchmarks.gpu`: when a run under compute-sanitizer is clean, and what it computes."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks.gpu import sanitize, sanitized
from benchmarks.gpu.work import MARK
from fastrnn import extension
from tests.backends import cuda_host

pytest_plugins = ["tests.backends.cuda_fixtures"]

TOOL = """#!/bin/sh
printf '%s\\n' "$NV_COMPUTE_SANITIZER_MAX_RACECHECK_CLUSTER_RECORDS $FASTRNN_CUDA_WAY $*" >> "{asked}"
cat "{said}"
test {seconds} = 0 || exec sleep {seconds}
exit {status}
"""
RIGHT = {"case": "lstm", "ok": True, "share": 0.5}
WRONG = {"case": "gru", "ok": False, "wrong": {"h_n": {"error": 1.0}}}
REFUSED = {"case": "gru", "ok": None, "reason": "it takes heads of up to 3 units"}
RAISED = {"case": "gru", "failed": "RuntimeError: planted"}


class Tool:
    """A program in compute-sanitizer's place, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def says(self, *records: dict[str, Any], lines: str = "", status: int = 0, seconds: int = 0) -> None:
        """What it prints before it waits and ends."""
        said, program = self.folder / "said", self.folder / "compute-sanitizer"
        said.write_text("".join(f"{MARK}{json.dumps({'record': record})}\n" for record in records) + lines)
        program.write_text(TOOL.format(said=said, asked=self.folder / "asked", status=status, seconds=seconds))
        program.chmod(0o755)

    def asked(self) -> list[str]:
        """How it was called."""
        return (self.folder / "asked").read_text().splitlines()


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return Tool(tmp_path)


@pytest.mark.parametrize(
    ("records", "lines", "status", "told"),
    [
        ([RIGHT, REFUSED], "========= ERROR SUMMARY: 0 errors\n", 0, None),
        ([RIGHT, RIGHT], "", 9, "memcheck found something"),
        ([RIGHT, WRONG], "", 0, "under memcheck gru: {'h_n': {'error': 1.0}}"),
        ([RIGHT, RAISED], "", 0, "under memcheck gru: RuntimeError: planted"),
        ([RIGHT], "Segmentation fault\n", 139, "memcheck ended with 139"),
        (
            [REFUSED, REFUSED],
            "========= ERROR SUMMARY: 0 errors\n",
            0,
            "memcheck saw no layer computed: it takes heads",
        ),
        ([], "", 0, "memcheck saw no layer computed: "),
    ],
    ids=["clean", "found", "wrong", "raised", "died", "not served", "silent"],
)
def test_a_run_is_clean_where_layers_were_computed_and_right(
    tool: Tool, records: list[dict[str, Any]], lines: str, status: int, told: str | None
) -> None:
    tool.says(*records, lines=lines, status=status)
    row = sanitize.run("memcheck", "grid", 30)
    assert row.get("failed", "").startswith(told or "")
    assert ("failed" in row) == (told is not None)
    assert row["right"] == records.count(RIGHT)
    if told is None:
        assert row["said"] == [lines.strip()]


@pytest.mark.parametrize("status", [0, 1, 9])
def test_where_the_tool_gives_up_nothing_is_known(tool: Tool, status: int) -> None:
    tool.says(RIGHT, lines="========= Error: Device not supported\n", status=status)
    row = sanitize.run("memcheck", "grid", 30)
    assert row["not run"] == "the machine does not let compute-sanitizer at the device"
    assert "failed" not in row


def test_a_run_ends_with_its_share_of_the_time(tool: Tool) -> None:
    tool.says(RIGHT, seconds=60)
    assert sanitize.run("memcheck", "grid", 1)["not run"] == "it took more than 1 s"


def test_every_way_is_looked_at_by_both_tools(tool: Tool) -> None:
    tool.says(RIGHT)
    rows = {name: case() for name, case in sanitize.cases()}
    assert list(rows) == [
        *(f"memcheck {way}" for way in ("block", "cluster", "grid")),
        *(f"racecheck {way}" for way in ("grid", "block", "cluster")),
    ]
    assert all(row["right"] == 1 for row in rows.values())
    asked = tool.asked()
    assert len(asked) == 6
    for line in asked:
        way, options = line.split()[1], json.loads(line[line.index("{") :])
        assert options["way"] == way
        assert 0 < options["seconds"] <= sanitize.SECONDS / (3 if "--tool memcheck" in line else 1)
        assert line.startswith(f"0 {way} --tool {'racecheck' if '--num-cuda-barriers 8' in line else 'memcheck'} ")
    assert options["seconds"] > sanitize.SECONDS / 2  # what the others left


@pytest.mark.skipif(bool(cuda_host.missing()), reason=str(cuda_host.missing()))
def test_blocks_exchange(host_extension: ModuleType) -> None:
    """In clusters and teams; on its own is only what is to be."""
    limits = {"capability": (9, 0), "multiprocessors": 132, "shared_memory": 227 * 1024, "cluster": 16}
    for way, units in sanitized.UNITS.items():
        for cell in sanitized.CELLS:
            for operation in ("forward", "backward"):
                asked = {"operation": operation, "cell": cell, "element": "bfloat16", "units": units, "way": way}
                plan = host_extension.plan(**asked, batch=9, heads=1, directions=1, architectures="90a", **limits)
                assert (plan["blocks"] > 1) == (way != "block")


@pytest.mark.exhaustive
@pytest.mark.skipif(bool(cuda_host.missing()), reason=str(cuda_host.missing()))
@pytest.mark.parametrize("way", sanitized.UNITS)
def test_the_layers_are_right(way: str, host_extension: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "_load", lambda: host_extension)
    monkeypatch.setenv("FASTRNN_CUDA_WAY", way)
    for _, case in sanitized.cases(way, "cpu"):
        assert case()["ok"]
