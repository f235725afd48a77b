"""What a path is that holds no checkpoint, in the sentence that helps."""

from collections.abc import Iterator
from pathlib import Path

from diffgen.core.errors import CheckpointError, DiffgenError, UsageError

DEPTH = 4
"""Levels below a folder in which runs are looked for: outputs/sweeps/<time>/<job>, as `diffgen-train` makes them."""

NAMED = 5
"""Runs that a sentence names."""

BESIDE = (".yaml", ".json", ".jsonl", ".png")
"""Files of a run that hold no weights end so."""


def follow(path: Path, key: str) -> Path:
    """A path, or the checkpoint folder that it names if it is `checkpoints/latest` of a run.

    Raises:
        CheckpointError: It is a link to nothing, or names a folder that is not there.
    """
    if path.is_symlink() and not path.exists():
        raise CheckpointError(f"{key}={str(path)!r} is a link to {path.readlink()}, which does not exist")
    file = path.resolve()
    if file.name != "latest" or not file.is_file():
        return path
    name = file.read_bytes()[:32].decode("ascii", "replace").strip()
    newest = (file if path.is_symlink() else path).parent / name
    if not name.isdecimal() or not newest.is_dir():
        raise CheckpointError(f"{key}={str(path)!r} names the checkpoint {name!r}, which is not beside it")
    return newest


def refusal(path: Path, key: str, lacking: str) -> DiffgenError:
    """The error for a path in which no checkpoint was found.

    Args:
        path: As the user gave it.
        key: The setting that it stands at.
        lacking: What the sentence says of a path of which nothing is known: `holds no ...`.
    """
    given = f"{key}={str(path)!r}"
    if not path.exists():
        return CheckpointError(f"{given} does not exist")
    if of_diffusers(path):
        return CheckpointError(f"{given} is a model of diffusers: diffgen-export with format=diffgen brings it in")
    if around := _around(path):
        return CheckpointError(f"{given} is a part of a run, and holds no weights: give {key}={str(around)!r}")
    if runs := sorted(str(run) for run in _runs_below(path, DEPTH)):
        more = [f"{len(runs) - NAMED} more"] if len(runs) > NAMED else []
        return UsageError(f"{given} is a folder of runs: give one of [{', '.join(runs[:NAMED] + more)}]")
    return CheckpointError(f"{given} {lacking}")


def of_diffusers(path: Path) -> bool:
    """Whether a folder, or that of a file, is laid out by diffusers."""
    folder = path if path.is_dir() else path.parent
    if (folder / "model_index.json").is_file() or (folder / "unet" / "config.json").is_file():
        return True
    config = folder / "config.json"
    return config.is_file() and b"_diffusers_version" in config.read_bytes()[: 2**16]


def holds_no_model(file: Path) -> bool:
    """Whether it is one of those files of a run that hold no weights, or one of diffusers'."""
    theirs = file.is_file() and file.name != "model.safetensors" and of_diffusers(file)
    return theirs or (file.suffix in BESIDE and _around(file) is not None)


def _around(path: Path) -> Path | None:
    """The checkpoint folder or the run that holds a path, at most three levels up."""
    above = list(path.parents)[:3]
    return next((each for each in above if (each / "model.safetensors").is_file() or _is_run(each)), None)


def _runs_below(folder: Path, depth: int) -> Iterator[Path]:
    for below in folder.iterdir() if depth and folder.is_dir() else ():
        if below.is_dir() and not below.is_symlink():
            yield from [below] if _is_run(below) else _runs_below(below, depth - 1)


def _is_run(folder: Path) -> bool:
    checkpoints = folder / "checkpoints"
    return checkpoints.is_dir() and any(path.name.isdecimal() for path in checkpoints.iterdir())
