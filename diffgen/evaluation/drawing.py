"""Samples drawn to be judged, with a bar that moves and a word where it will take long."""

import time
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from diffgen.core.console import ProgressLine, Reporter, clock, count
from diffgen.core.processes import share_of
from diffgen.core.settings import DrawSettings
from diffgen.sampling.drawing import Sampling, batch_size

T = TypeVar("T")

SOON, LONG = 10.0, 600.0
"""Seconds after which the time of drawing is foretold on a CPU, and from how long a time on it is worth telling."""


def draw(
    settings: DrawSettings,
    sampling: Sampling,
    share: Callable[[int, Callable[[int], None]], T],
    accelerator: Accelerator,
    reporter: Reporter,
    n: int,
) -> T:
    """What `share(batch, progress)` draws, each process its own, with a bar for all n."""
    trained = sampling.trained
    batch = batch_of(settings, sampling)
    each = "img" if trained.kind.unit == "images" else trained.kind.unit
    started, drawn, expected = time.monotonic(), 0, sampling.expected_nfe()
    foretold = accelerator.device.type != "cpu"  # elsewhere the first calls compile, and tell nothing
    with reporter.progress(n, 0) as line:

        def moved() -> None:  # before each network call: a batch may take minutes
            nonlocal foretold
            part = min((sampling.nfe - 1) / expected, 1)
            line.advance(drawn + part * min(batch * accelerator.num_processes, n - drawn))
            if not foretold and line.done and line.elapsed() > SOON:
                _foretell(reporter, line, n, trained.kind.unit)
                foretold = True

        def progress(done: int) -> None:
            nonlocal drawn
            drawn = done
            line.update(done, f"{done} {each}  {count(done / (time.monotonic() - started))} {each}/s")

        sampling.before_each = moved
        return share(batch, progress)


def examples(
    sampling: Sampling, labels: list[int], accelerator: Accelerator, batch: int, progress: Callable[[int], None]
) -> Tensor:
    """This process's share of examples 0 .. n - 1 as they are stored, see `share_of`.

    Args:
        sampling: How to draw.
        labels: Of all n.
        accelerator: Says which share, and the precision of the network.
        batch: Examples at once.
        progress: Hears how many are done, by all processes.
    """
    mine, parts, done = share_of(len(labels), accelerator), list[Tensor](), 0
    with accelerator.autocast():
        for part in sampling.examples(mine, [labels[i] for i in mine], batch):
            parts.append(part)
            done += len(part)
            progress(min(done * accelerator.num_processes, len(labels)))
    return torch.cat(parts)


def batch_of(settings: DrawSettings, sampling: Sampling) -> int:
    """How many to draw at once on each process."""
    given = settings.batch_size
    return given if isinstance(given, int) else batch_size(sampling.trained.shape, sampling.device)


def _foretell(reporter: Reporter, line: ProgressLine, n: int, unit: str) -> None:
    """Say that drawing will take long, if it will, and what would take less."""
    total = line.elapsed() + line.left()
    if total > LONG:
        less = f"; n=1000 takes about {clock(1000 / n * total)}" if n > 1000 else ""
        reporter.say(f"drawing {n:,} {unit} takes about {clock(total)} on this CPU{less}")
