"""diffgen's commands in processes of their own, as a user types them."""

import json
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmark import facts

from diffgen.core.files import read_rows
from diffgen.storage.checkpoint import find_newest
from programme.work import Row, Work

PATIENCE = 120.0  # seconds in which a run that is told to stop may write its checkpoint

environment = partial(facts.environment, COLUMNS="200")
"""Of a command, whose lines are kept."""


@dataclass(frozen=True)
class Done:
    """What became of a command.

    Attributes:
        code: Its exit code.
        text: What it wrote, errors included.
        seconds: How long it took.
    """

    code: int
    text: str
    seconds: float


def command(name: str, *settings: str) -> list[str]:
    """The command line of `diffgen-NAME`, for a checkout that need not be installed."""
    return [sys.executable, "-m", f"diffgen.cli.{name}", *settings]


def run(work: Work, arguments: list[str], codes: tuple[int, ...] = (0,), **more: str) -> Done:
    """Run a command to its end.

    Args:
        work: Its folder is the command's.
        arguments: Program and arguments.
        codes: Exit codes that are in order.
        more: Further variables of its environment.

    Raises:
        RuntimeError: It ended otherwise; the text is the end of what it said.
    """
    began = time.monotonic()
    done = subprocess.run(
        arguments, cwd=work.folder, env=environment(**more), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode not in codes:
        raise RuntimeError(f"{' '.join(arguments[2:])} ended with {done.returncode}:\n{done.stdout[-1500:]}")
    return Done(done.returncode, done.stdout, time.monotonic() - began)


def run_until(work: Work, arguments: list[str], enough: Callable[[], bool], signum: int, log: Path) -> Done:
    """Run a command and send it a signal once `enough`; `seconds` are from the signal to its end, 0 without one.

    Args:
        work: Its folder is the command's.
        arguments: Program and arguments.
        enough: Asked a few times a second.
        signum: The signal.
        log: Where its output is added.
    """
    began = log.stat().st_size if log.exists() else 0
    with log.open("ab") as file:
        process = subprocess.Popen(arguments, cwd=work.folder, env=environment(), stdout=file, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None and not enough():
                time.sleep(0.1)
            told = time.monotonic()
            running = process.poll() is None
            if running:
                process.send_signal(signum)
            code = process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait()
    text = log.read_bytes()[began:].decode(errors="replace")
    return Done(code, text, time.monotonic() - told if running else 0.0)


def train(work: Work, settings: list[str], run_dir: Path, reserve: float) -> tuple[bool, str]:
    """Train until so many seconds are left, or to the end: whether it is over, and what the command said.

    Raises:
        RuntimeError: The command failed.
    """
    line, log = command("train", *settings, f"run_dir={run_dir}"), run_dir.with_name(f"{run_dir.name}.log")
    done = run_until(work, line, lambda: work.left() < reserve, signal.SIGTERM, log)
    if done.code not in (0, 143):
        raise RuntimeError(f"the run {run_dir.name} ended with {done.code}:\n{done.text[-1500:]}")
    return done.code == 0, done.text


def logged(run_dir: Path) -> list[Row]:
    """The rows of a run's log, none before it has one."""
    path = run_dir / "metrics.jsonl"
    return list(read_rows(path)) if path.exists() else []


def first_rows(run_dir: Path, count: int = 5) -> list[Row]:
    """Images, seconds and learning rate of a run's first lines."""
    return [{key: row[key] for key in ("images", "seconds", "lr")} for row in logged(run_dir)[:count]]


def progress(run_dir: Path) -> Row:
    """How far a run is, and what its log says; steps that were skipped are not as it should be."""
    rows, newest = logged(run_dir), find_newest(run_dir)
    paces = [row["images_per_second"] for row in rows if row["images_per_second"]]
    skipped = rows[-1]["skipped"] if rows else 0
    told: Row = {
        "minutes": json.loads((newest / "state.json").read_text())["seconds"] / 60 if newest else 0.0,
        "images": int(newest.name) if newest else 0,
        "loss": rows[-1]["loss"] if rows else None,
        "steps_skipped": skipped,
    }
    told |= {"images_per_second": statistics.median(paces)} if paces else {}
    wrong = f"{skipped} steps were skipped, since their gradients were not finite"
    return told | ({"wrong": [wrong]} if skipped else {})


def peak(text: str) -> Row:
    """The memory that a run says it took at most, where it says so: of the GPU, or of the process without one."""
    found = PEAK.findall(text)
    return {"peak_gb": float(found[-1])} if found else {}


PEAK = re.compile(r"  ([\d.]+) GiB")

SIGNALS = {143: signal.SIGTERM, 138: signal.SIGUSR1}
"""By the exit code that README promises."""
