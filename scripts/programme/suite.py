"""The tests that need a GPU: first those that compile nothing, then the others."""

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

from benchmark.facts import ROOT

from programme import commands
from programme.work import Piece, Row, Work

TESTS = ROOT / "tests" / "test_gpu.py"
COMPILED = "true"  # stands in the name of a test whose network is compiled
CODES = tuple(range(6))  # of pytest; what failed is in its report


def tests(work: Work, chosen: str) -> Row:
    """Counts of the tests that a `-k` expression chooses, and the names of those that failed."""
    report = work.folder / "tests.xml"
    options = ["-m", "gpu", "-k", chosen, "-p", "no:cacheprovider", f"--junitxml={report}"]
    done = commands.run(work, [sys.executable, "-m", "pytest", str(TESTS), *options], codes=CODES)
    with (work.folder / "tests.log").open("a") as file:
        file.write(done.text)  # why one failed
    if not report.exists():
        raise RuntimeError(f"pytest wrote no report:\n{done.text[-1500:]}")
    row = outcome(report)
    report.unlink()
    return row


def outcome(report: Path) -> Row:
    """What a JUnit file says."""
    cases = ET.parse(report).getroot().iter("testcase")
    marks = {f"{case.get('classname')}::{case.get('name')}": {mark.tag for mark in case} for case in cases}
    failed = [name for name, told in marks.items() if told & {"failure", "error"}]
    skipped = [name for name, told in marks.items() if "skipped" in told]
    row: Row = {"passed": len(marks) - len(failed) - len(skipped), "failed": len(failed), "not_run": len(skipped)}
    return {**row, "wrong": [f"{name} failed" for name in failed]}


PIECES = {
    "eager": Piece(2, lambda work: tests(work, f"not {COMPILED}")),
    "compiled": Piece(3, lambda work: tests(work, COMPILED), alike=True),
}
