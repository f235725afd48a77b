"""Ending a run by a signal: finish the step, write a checkpoint, leave with 128 + the signal's number."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffgen.errors import DiffgenError


class Stopped(DiffgenError):
    """A signal ended the run; a checkpoint was written."""

    def __init__(self, signum: int, images: int, run_dir: Path) -> None:
        name = signal.Signals(signum).name
        super().__init__(f"stopped by {name} at {images:,} images; go on with the same command and run_dir={run_dir}")
        self.exit_code = 128 + signum


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of dying; a second one has its usual effect."""
    caught: list[int] = []
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def note(signum: int, frame: object) -> None:
        caught.append(signum)
        signal.signal(signum, before[signal.Signals(signum)])

    for signum in before:
        signal.signal(signum, note)
    try:
        yield caught
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
