"""`experiment=cifar10_fast` in parts: each stops before the time is over and leaves a checkpoint, the next goes on."""

import json
import signal
import statistics
from pathlib import Path

from benchmark.layouts import compose

from diffgen.storage.checkpoint import find_newest
from programme import commands, recipes, steps
from programme.work import Piece, Row, Unfinished, Work

RESERVE = 60.0  # seconds in which a part writes its checkpoint and is recorded


def run(work: Work) -> Row:
    """Train until the time is nearly over, or to the end.

    Raises:
        Unfinished: The run is not over.
        RuntimeError: It failed.
    """
    folder = place(work)
    reserve = 0.0 if work.tiny else RESERVE
    done = commands.run_until(
        work,
        commands.command("train", *settings(work), f"run_dir={folder}"),
        lambda: work.left() < reserve,
        signal.SIGTERM,
        log(work),
    )
    if done.code not in (0, 143):
        raise RuntimeError(f"the speed-run ended with {done.code}:\n{done.text[-1500:]}")
    row = figures(work, folder)
    if done.code == 143:
        raise Unfinished(f"{row['minutes']:.1f} of {minutes(work):g} minutes trained", row)
    return row


def recipe_minutes() -> float:
    """The length of the recipe."""
    return float(compose("experiment=cifar10_fast")["train"]["minutes"])


def minutes(work: Work) -> float:
    """The length of the run: that of the recipe unless another was asked for, or in tiny a few seconds."""
    return 0.03 if work.tiny else work.speed_run_minutes or recipe_minutes()


def length(work: Work) -> Row:
    """What a row says of a run that is not as long as the recipe."""
    whole = recipe_minutes()
    other = minutes(work) != whole and not work.tiny
    return {"length": f"{minutes(work):g} minutes instead of the recipe's {whole:g}"} if other else {}


def place(work: Work) -> Path:
    """The run directory; runs of other lengths do not share it, since the learning rate follows the length."""
    other = f"-{minutes(work):g}" if length(work) else ""
    return work.folder / f"speed-run{other}"


def log(work: Work) -> Path:
    """What the command says."""
    run = place(work)
    return run.with_name(f"{run.name}.log")


def settings(work: Work) -> list[str]:
    """The recipe, or in tiny a small part of it."""
    chosen = ["experiment=cifar10_fast", *work.dataset(), *work.network(), f"train.minutes={minutes(work)}"]
    few = ["train.batch_size=8", "train.log_every=8", "preview.n=4", "sampler.steps=2", "train.checkpoint_every=4000"]
    return chosen + (few if work.tiny else [])


def figures(work: Work, folder: Path) -> Row:
    """What the run's log says so far."""
    rows = commands.logged(folder)
    newest = find_newest(folder)
    seconds = json.loads((newest / "state.json").read_text())["seconds"] if newest else 0.0
    paces = [row["images_per_second"] for row in rows if row["images_per_second"]]
    row: Row = {
        "data": work.pictures,
        "minutes": seconds / 60,
        "images": int(newest.name) if newest else 0,
        **length(work),
        "parts": starts(log(work)),
        "first": commands.first_rows(folder),
        "loss": rows[-1]["loss"] if rows else None,
        "steps_skipped": rows[-1]["skipped"] if rows else 0,
    }
    if row["steps_skipped"]:
        row["wrong"] = [f"{row['steps_skipped']} steps were skipped, since their gradients were not finite"]
    if paces:
        gflop = recipes.cost([*recipes.RECIPES["cifar10_fast"], *work.network()])["gflop"]
        row |= steps.pace("float32" if work.tiny else "bfloat16", statistics.median(paces), gflop)
    return row


def starts(log: Path) -> int:
    """How often the run was begun or gone on with."""
    return log.read_text(errors="replace").count("diffgen-train: ") if log.exists() else 0


PIECES = {"cifar10_fast": Piece(3, run)}
