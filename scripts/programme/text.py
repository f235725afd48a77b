"""`experiment=text8`: what it learns in its minutes, or in a few of them, and how fast."""

import json
import statistics
from pathlib import Path

from benchmark.layouts import compose

from programme import commands
from programme.work import Piece, Row, Work

SHORT = 2.0  # minutes, where text8 is not at hand and Python's help stands for it
FILES = ("text8.zip", "text8")


def run(work: Work) -> Row:
    """Train, and judge by held-out text."""
    folder = work.folder / "text8"
    done = commands.run(work, commands.command("train", *settings(work), f"run_dir={folder}"))
    rows = commands.logged(folder)
    paces = [row["images_per_second"] for row in rows if row["images_per_second"]]
    row: Row = {
        "data": "text8" if archive(work) else "Python's help, 256 characters a sequence",
        "minutes": minutes(work),
        "images": rows[-1]["images"],
        "loss": rows[-1]["loss"],
        "steps_skipped": rows[-1]["skipped"],
        "first": commands.first_rows(folder),
        "command_seconds": done.seconds,
        **({"images_per_second": statistics.median(paces)} if paces else {}),
    }
    return row | {"figures": judged(work, folder)}


def archive(work: Work) -> Path | None:
    """The folder with the official text, if it lies where CIFAR-10 does."""
    there = work.data is not None and any((work.data / name).is_file() for name in FILES)
    return work.data if there else None


def minutes(work: Work) -> float:
    """The recipe's, or fewer where other text stands for its own; in tiny a few seconds."""
    whole = float(compose("experiment=text8")["train"]["minutes"])
    return 0.03 if work.tiny else whole if archive(work) else SHORT


def settings(work: Work) -> list[str]:
    """The recipe, on text that is there."""
    text = [f"dataset.root={archive(work)}"] if archive(work) else ["dataset=python_docs", "dataset.length=256"]
    few = ["model.width=16", "model.depth=1", "model.heads=2", "train.batch_size=8", "train.log_every=8", "preview.n=2"]
    chosen = ["experiment=text8", *text, f"train.minutes={minutes(work)}"]
    return chosen + ([*few, "sampler.steps=2", "train.checkpoint_every=4000"] if work.tiny else [])


def judged(work: Work, folder: Path) -> Row:
    """`diffgen-eval` of the run: bits per character beside n-grams."""
    few = ["n=4"] if work.tiny else []
    commands.run(work, commands.command("eval", f"ckpt={folder}", "metrics=bits", *few))
    row: Row = json.loads((folder / "eval" / "results.jsonl").read_text().splitlines()[-1])
    return row | {"ckpt": "text8"}  # wherever it lies


PIECES = {"text8, 6 x 384": Piece(4, run)}
