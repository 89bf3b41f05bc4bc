"""A plugin of pytest that writes down which tests fail as soon as they do: a line of JSON for each."""

from __future__ import annotations

import json
import os

import pytest

PLACE = "FASTRNN_FAULTS_RECORD"
"""The environment variable that names the file."""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        _write("test", report.nodeid)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _write("collection", report.nodeid)


def _write(kind: str, name: str) -> None:
    with open(os.environ[PLACE], "a") as file:  # of several processes each writes a whole line
        file.write(json.dumps([kind, name]) + "\n")
