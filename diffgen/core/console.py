"""What a person sees: a header, a progress bar or plain lines, and where the pictures are."""

import math
import os
import re
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from diffgen.core.errors import printable

PLAIN_EVERY = 10.0  # seconds between lines where there is no terminal


class Terminal(Console):
    """A rich console that falls silent when its reader goes away or its disk is full; the work goes on."""

    def print(self, *objects: Any, **options: Any) -> None:
        """See rich."""
        try:
            super().print(*objects, **options)
        except OSError:
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """Say no more, here and when Python flushes at the end."""
        self.quiet = True
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115


class Reporter:
    """Speaks on the main process, silent elsewhere."""

    def __init__(self, *, speaks: bool) -> None:
        """Args: speaks: whether this process writes at all."""
        plain = False if Console().is_jupyter else None  # lines there: a notebook can go back over none
        self.console = Terminal(quiet=not speaks, soft_wrap=True, force_jupyter=False, force_terminal=plain)
        self.warned: set[str] = set()

    def header(self, title: str, rows: Mapping[str, str]) -> None:
        """What will run, as a small table."""
        self.console.print(Text(printable(title), style="bold"))
        if not self.console.is_terminal:  # a log: one line a row, whatever the width
            for key, value in rows.items():
                self.console.print(Text(f"{key:>10}  {printable(value)}"))
            return
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold cyan", justify="right")
        table.add_column(overflow="fold")
        for key, value in rows.items():
            table.add_row(key, Text(printable(value)))
        self.console.print(table, soft_wrap=False)

    def say(self, text: str) -> None:
        """A line, or several."""
        self.console.print(Text("\n".join(map(printable, text.splitlines()))))

    def warn(self, text: str) -> None:
        """Something went wrong and the work goes on; the same text is told once."""
        if text not in self.warned:
            self.warned.add(text)
            self.console.print(Text("warning: ", style="bold yellow") + Text(printable(text)))

    def progress(self, total: float, done: float) -> "ProgressLine":
        """A bar on a terminal, a line every few seconds elsewhere."""
        return ProgressLine(self.console, total, done)


class ProgressLine:
    """Progress of a loop with a few figures beside it."""

    def __init__(self, console: Console, total: float, done: float) -> None:
        self.console, self.total = console, total
        self.start(done)
        self.bar: Progress | None = None
        self.task = TaskID(0)
        if console.is_terminal and not console.quiet:
            self.bar = Progress(
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[figures]}"),
                TimeElapsedColumn(),
                TextColumn("ETA {task.fields[eta]}"),
                console=console,
            )
            self.task = self.bar.add_task("", total=total, figures="", eta="-:--")

    def __enter__(self) -> "ProgressLine":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def start(self, done: float) -> None:
        """Reckon the pace from here on."""
        self.first = self.done = done
        self.started = self.spoken = time.monotonic()

    def advance(self, done: float) -> None:
        """Move on without new figures."""
        self.done = done
        if self.bar:
            self.bar.update(self.task, completed=done, eta=self.eta())

    def update(self, done: float, figures: str, *, keep: bool = False) -> None:
        """Move on and show figures such as `loss 0.123  850 img/s`; `keep` makes them a line of their own."""
        self.done = done
        now = time.monotonic()
        if self.bar:
            self.bar.update(self.task, completed=done, figures=figures, eta=self.eta())
        if keep:
            self.console.print(Text(figures))
        elif not self.bar and (now - self.spoken >= PLAIN_EVERY or done >= self.total):
            self.spoken = now
            self.console.print(Text(f"{done / self.total:4.0%}  {figures}  ETA {self.eta()}"))

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def left(self) -> float:
        """Seconds left at the pace so far; infinite before the first move."""
        pace = (self.done - self.first) / max(self.elapsed(), 1e-9)
        return (self.total - self.done) / pace if pace > 0 else math.inf

    def eta(self) -> str:
        """The same as m:ss."""
        return clock(self.left()) if self.left() < math.inf else "-:--"


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def count(n: float) -> str:
    """A count in at most four digits: 950, 1.2 k, 35.7 M."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if n >= size:
            return f"{n / size:.3g}{unit}" if n >= 1000 * size else f"{n / size:.1f}{unit}"
    return f"{n:.0f}" if n >= 10 else f"{n:.2g}"


def unit_of(n: int, units: str) -> str:
    """What n things are called whose plural this is: 1 sequence, 2 sequences."""
    return units.removesuffix("s") if n == 1 else units


WARNED: set[str] = set()
"""What has been told of since the command began."""


def tell_warning(message: Warning | str, *where: Any, **options: Any) -> None:
    """A warning of Python's in one line on standard error, once on each machine; for `warnings.showwarning`."""
    text = re.sub(r"\(Triggered internally at .*?\)", "", str(message))
    line = printable(" ".join(text.split()))
    if line not in WARNED and int(os.environ.get("LOCAL_RANK", "0")) == 0:
        WARNED.add(line)
        print(f"warning: {line}", file=sys.stderr, flush=True)  # a progress bar makes room for what is printed


def complain(sentence: str) -> None:
    """An error, on standard error."""
    Console(stderr=True, soft_wrap=True).print(Text("error: ", style="bold red") + Text(printable(sentence)))
