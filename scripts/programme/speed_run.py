"""`experiment=cifar10_fast` in parts: each stops before the time is over and leaves a checkpoint, the next goes on."""

from pathlib import Path

from benchmark.layouts import compose

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
    over, _ = commands.train(work, settings(work), folder, 0.0 if work.tiny else RESERVE)
    row = figures(work, folder)
    if not over:
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
    told = commands.progress(folder)
    row = {"data": work.pictures, **told, **length(work)}
    row |= {"parts": starts(log(work)), "first": commands.first_rows(folder)}
    if "images_per_second" in told:
        gflop = recipes.cost([*recipes.RECIPES["cifar10_fast"], *work.network()])["gflop"]
        row |= steps.pace("float32" if work.tiny else "bfloat16", told["images_per_second"], gflop)
    return row


def starts(log: Path) -> int:
    """How often the run was begun or gone on with."""
    return log.read_text(errors="replace").count("diffgen-train: ") if log.exists() else 0


PIECES = {"cifar10_fast": Piece(3, run)}
