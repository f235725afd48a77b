"""The folder of a run: which one, and its log, config and loss curve.

config.yaml   metrics.jsonl   loss.png   status.json   samples/<images>.png   checkpoints/<images>/   checkpoints/latest
left_out.txt, where some of the data is not used
"""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffgen.core.errors import CheckpointError, EnvironmentFault, UsageError, printable
from diffgen.core.files import (
    MARK,
    append_text,
    make_writable,
    read_rows,
    tidy,
    write_atomically,
    write_json,
    writing,
)
from diffgen.core.lock import RunLock
from diffgen.core.paths import setting
from diffgen.data.places import LeftOut
from diffgen.storage import checkpoint
from diffgen.storage.instead import follow, holds_no_model, refusal

OUR_MARKS = (".lock", MARK)
"""Files of a run that was killed before it had written anything."""


def run_of(model: Path) -> Path | None:
    """The run directory of `<run>/checkpoints/<images>/model.safetensors`; None of a model that lies elsewhere."""
    folders = model.resolve().parents
    return folders[2] if len(folders) > 2 and folders[1].name == "checkpoints" else None


@dataclass(frozen=True)
class Place:
    """Where a run writes, and what it goes on from.

    Attributes:
        run_dir: Its directory.
        resumed_from: The checkpoint folder to go on from, or None for a new run.
        notes: What the user should know about that choice.
    """

    run_dir: Path
    resumed_from: Path | None = None
    notes: tuple[str, ...] = ()


def choose_run(run_dir: str | None, resume: str, default: str, lock: RunLock) -> Place:
    """Where to write, and the checkpoint folder to go on from, if any; the directory is then locked.

    Args:
        run_dir: The user's run directory, or None.
        resume: `auto`, `none` or a path to a checkpoint folder or run directory.
        default: The run directory of a new run; a number is appended where it exists.
        lock: Takes the directory, before anything in it is changed.

    Raises:
        UsageError: The directory holds a run and `resume` is none, or a run that goes on beyond the checkpoint, or
            files of somebody else's.
        CheckpointError: The path holds no checkpoint, or an incomplete one, or no checkpoint of the run is whole.
        EnvironmentFault: The directory cannot be made, or another run is in it.
    """
    target, named = _asked(run_dir, resume)
    if target is None:
        return Place(_make(_unused(Path(default)), lock))
    made = _make(target, lock)
    return Place(made, named) if named else _newest_whole(made)


def going_on_from(run_dir: str | None, resume: str) -> Path | None:
    """The checkpoint folder that `choose_run` will go on from, or None; nothing is changed.

    For what is to be known before the long work that comes before a run.

    Raises:
        UsageError: See `choose_run`.
        CheckpointError: Alike.
    """
    target, named = _asked(run_dir, resume)
    return named or (None if target is None else _whole(target)[0])


def _asked(run_dir: str | None, resume: str) -> tuple[Path | None, Path | None]:
    """The run directory that is meant, None for a new one, and the checkpoint folder, None for the newest in there.

    Raises:
        UsageError: See `choose_run`.
        CheckpointError: The path holds no checkpoint, or an incomplete one.
    """
    if resume in ("auto", "none"):
        if run_dir is not None:
            _check_target(run_dir, resume)
        return None if run_dir is None else Path(run_dir), None
    folder = _checkpoint_folder(Path(resume))
    target = Path(run_dir) if run_dir else folder.parent.parent
    newest = checkpoint.find_newest(target)
    if newest and run_dir and _began_at(newest, resume):
        return target, None  # the same command, typed again
    if newest and newest.resolve() != folder.resolve():
        raise UsageError(f"run_dir={str(target)!r} holds {newest.name}, beyond {folder}: give another run_dir")
    return target, folder


def _began_at(newest: Path, resume: str) -> bool:
    """Whether the run that `newest` belongs to was itself begun with this train.resume."""
    try:
        return bool(checkpoint.load_state(newest)[0]["config"]["train"]["resume"] == resume)
    except (CheckpointError, KeyError, TypeError):
        return False


def _check_target(run_dir: str, resume: str) -> None:
    """Require a folder that a run may be in, by the user's word."""
    target = Path(run_dir)
    newest = checkpoint.find_newest(target)
    if newest and resume == "none":
        raise UsageError(
            f"run_dir={run_dir!r} holds a run and train.resume=none: choose another run_dir, or train.resume=auto"
        )
    if newest is None and not (target / "metrics.jsonl").exists() and _holds_files(target):
        raise UsageError(f"run_dir={run_dir!r} holds files that are no run of diffgen's: choose another folder")


def _newest_whole(run_dir: Path) -> Place:
    """The newest checkpoint that is not damaged; damaged ones beyond it are set aside, not deleted."""
    folder, damaged, notes = _whole(run_dir)
    for other in damaged:
        other.rename(other.with_name(f"{other.name}-damaged-{secrets.token_hex(2)}"))
    return Place(run_dir, folder, tuple(notes))


def _whole(run_dir: Path) -> tuple[Path | None, list[Path], list[str]]:
    """The newest checkpoint that is not damaged, those beyond it, and what is wrong with each.

    Raises:
        CheckpointError: There are some, and all are damaged.
    """
    damaged: list[Path] = []
    notes: list[str] = []
    for folder in checkpoint.numbered(run_dir / "checkpoints"):
        if checkpoint.thinned(folder):
            continue
        whole = (folder / "state.json").is_file()
        reason = checkpoint.damage(folder) if whole else f"{folder} has no state.json"
        if reason is None:
            return folder, damaged, notes
        damaged.append(folder)
        notes.append(f"{reason}; set aside, going on from an earlier one")
    if damaged:
        raise CheckpointError(f"{notes[0].partition('; set aside')[0]}; no other checkpoint of the run is whole")
    return None, [], []


def _holds_files(path: Path) -> bool:
    return any(not item.is_dir() and item.name not in OUR_MARKS for item in path.rglob("*"))


def _checkpoint_folder(given: Path) -> Path:
    """The checkpoint folder that a path means: itself, that of its file, or the newest of a run."""
    key, words = "train.resume", f"train.resume={str(given)!r}"
    try:
        path = follow(given, key)
        if not path.exists():
            raise CheckpointError(f"{words} does not exist; choose auto, none or a path")
        folder = path.parent if path.is_file() else path
        if _is_weights(path) or _holds_weights_alone(folder):
            raise CheckpointError(f"{words} holds weights alone, and nothing can go on from them: {begin_from(given)}")
        if (folder / "state.json").is_file():
            return folder
        newest = next(iter(checkpoint.complete(folder)), None) or checkpoint.find_newest(folder)
        if newest is None:
            raise refusal(path, key, "holds no complete checkpoint; choose auto, none or a path")
    except OSError as error:
        raise CheckpointError(f"{words} cannot be read: {error.strerror}") from None
    return newest


def begin_from(path: Path) -> str:
    """The advice to whom going on is refused, and beginning anew is open."""
    return f"{setting('train.init', path)} begins a new run from its weights"


def _is_weights(path: Path) -> bool:
    """Whether it is a file that is no part of a checkpoint folder: a model's, if it is one of diffgen's.

    Raises:
        CheckpointError: It is something else.
    """
    lone = path.is_file() and not (path.parent / "state.json").is_file() and not holds_no_model(path)
    return lone and bool(checkpoint.describe(path, "train.resume"))


def _holds_weights_alone(folder: Path) -> bool:
    return (folder / "model.safetensors").is_file() and not (folder / "state.json").is_file()


def _unused(path: Path) -> Path:
    """The path itself, or with the first number that makes it new; the folder is made, so nobody else can take it."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        number, candidate = 1, path
        while True:
            try:
                candidate.mkdir()
                return candidate
            except FileExistsError:
                number += 1
                candidate = path.with_name(f"{path.name}-{number}")


def _make(path: Path, lock: RunLock) -> Path:
    make_writable(path)
    with writing(path):
        lock.take(path)
        for folder in (path / "samples", path / "checkpoints"):
            folder.mkdir(exist_ok=True)
    for folder in (path, path / "samples", path / "checkpoints"):
        tidy(folder)
    return path


def _sound(row: dict[str, Any]) -> bool:
    """Whether a row of the log has its numbers."""
    return {"images", "loss"} <= row.keys() and all(
        isinstance(number, int | float) for number in (row["images"], row["loss"] or 0.0)
    )


class RunLog:
    """`metrics.jsonl`, one row per logged step, and the files drawn from it."""

    def __init__(self, run_dir: Path) -> None:
        """The log in `run_dir`; `start` begins to write it."""
        self.run_dir, self.path = run_dir, run_dir / "metrics.jsonl"
        self.pending: list[str] = []

    def start(self, config_yaml: str, images: int, left_out: Sequence[LeftOut] = ()) -> None:
        """Write the config, and what of the data is not used; drop rows from beyond `images`, where the run stands."""
        rows = [row for row in self.rows() if row["images"] <= images]
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        write_atomically(self.run_dir / "config.yaml", config_yaml)
        if left_out:
            lines = (f"{printable(f'{name}: {reason}')}\n" for name, reason in left_out)
            write_atomically(self.run_dir / "left_out.txt", "".join(lines))

    def append(self, row: dict[str, Any]) -> None:
        """Add a row, and those that a full disk did not take before.

        Raises:
            EnvironmentFault: It cannot be written now; it is kept for the next time.
        """
        self.pending.append(json.dumps(row) + "\n")
        append_text(self.path, "".join(self.pending))
        self.pending.clear()

    def rows(self) -> list[dict[str, Any]]:
        """All whole rows.

        Raises:
            EnvironmentFault: Something else stands in the log's place.
        """
        if not self.path.exists():
            return []
        if not self.path.is_file():
            raise EnvironmentFault(f"{self.path} is not a file: move it away; the run writes its log there")
        return [row for row in read_rows(self.path) if _sound(row)]

    def plot(self, measure: str, unit: str) -> None:
        """Draw `loss.png`; `measure` is what losses are measured in, or empty, and `unit` what examples are called."""
        from diffgen.core.plots import loss_curve

        rows = [row for row in self.rows() if row["loss"] is not None]
        images, losses = [row["images"] for row in rows], [row["loss"] for row in rows]
        label = f"loss, {measure}" if measure else "loss"
        write_atomically(self.run_dir / "loss.png", loss_curve(images, losses, label, unit))

    def status(self, state: str, images: int, code: int | None = None, reason: str = "") -> None:
        """Write `status.json`: what became of the run; launchers of several processes hide their exit codes.

        Args:
            state: running, stopping, done, stopped or failed.
            images: Training images seen.
            code: The exit code, once there is one.
            reason: The sentence that the user was told.
        """
        write_json(
            self.run_dir / "status.json", {"state": state, "images": images, "exit_code": code, "reason": reason}
        )
