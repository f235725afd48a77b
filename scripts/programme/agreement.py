"""Digits trained eager and compiled, from one seed: the losses must agree."""

import json
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path

import benchmark

from programme import commands
from programme.work import Piece, Row, Work

FIRST_STEP = Path(benchmark.__path__[0]) / "first_step.py"
TOLERANCE = 0.02
"""Of the mean loss of the last quarter; lines of the log drift apart, as rounding does in any training."""


def compared(work: Work, precision: str) -> Row:
    """One precision, eager and compiled: losses, speed, and seconds from `import torch` to the first step's end."""
    with ExitStack() as stack:
        folder = work.scratch(stack)
        eager, compiled = (trained(work, folder, precision, compiles) for compiles in ("false", "true"))
    pairs = list(zip(eager["losses"], compiled["losses"], strict=True))
    last = pairs[-max(len(pairs) // 4, 1) :]
    ends = [statistics.fmean(losses) for losses in zip(*last, strict=True)]
    row: Row = {
        "largest_difference": max(difference(*pair) for pair in pairs),
        "last_difference": difference(ends[0], ends[1]),
        "rows": [{key: told[key] for key in told if key != "losses"} for told in (eager, compiled)],
    }
    apart = row["last_difference"] > TOLERANCE
    return row | ({"wrong": [f"the last losses differ by {row['last_difference']:.1%}"]} if apart else {})


def trained(work: Work, folder: Path, precision: str, compiles: str) -> Row:
    """A short run of the quickstart: `losses` of its lines, and figures."""
    images, every = (128, 16) if work.tiny else (12_800, 640)
    settings = ["experiment=quickstart", *work.network(), *(["model.patch=1"] if work.tiny else [])]
    settings += [f"train.precision={precision}", f"train.compile={compiles}", f"train.images={images}"]
    settings += [f"train.log_every={every}", "preview.n=2", "sampler.steps=2", f"train.batch_size={min(every, 64)}"]
    name = "compiled" if compiles == "true" else "eager"
    program = [sys.executable, str(FIRST_STEP), "--whole", *settings, f"run_dir={folder / name}"]
    said = commands.run(work, program).text.splitlines()
    told = json.loads(next(line for line in said if line.startswith("{")))
    rows = commands.logged(folder / name)
    pace = statistics.median(row["images_per_second"] for row in rows if row["images_per_second"])
    return {
        "name": name,
        "images_per_second": pace,
        "first_step_seconds": told["first_step_done"],
        "loss": rows[-1]["loss"],
        "losses": [row["loss"] for row in rows],
    }


def difference(a: float, b: float) -> float:
    """Relative difference."""
    return abs(a - b) / abs(a)


PIECES = {
    "float32": Piece(2.5, lambda work: compared(work, "no")),
    "bfloat16": Piece(2.5, lambda work: compared(work, "bf16"), alike=True),
}
