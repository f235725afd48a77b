"""The folder of a run: which one, and its log, config and loss curve.

config.yaml   metrics.jsonl   loss.png   samples/<images>.png   checkpoints/<images>/   checkpoints/latest
"""

import json
from pathlib import Path
from typing import Any

from diffgen import checkpoint
from diffgen.errors import CheckpointError, UsageError
from diffgen.files import append_line, explained, write_atomically


def choose_run(run_dir: str | None, resume: str, default: str) -> tuple[Path, Path | None]:
    """Where to write, and the checkpoint folder to go on from, if any.

    Args:
        run_dir: The user's run directory, or None.
        resume: `auto`, `none` or a path to a checkpoint folder or run directory.
        default: The run directory of a new run; a number is appended where it exists.

    Raises:
        UsageError: The directory holds a run and `resume` is none, or a run that goes on beyond the checkpoint, or
            files of somebody else's.
        CheckpointError: The path holds no checkpoint, or an incomplete one.
        EnvironmentFault: The directory cannot be made.
    """
    if resume not in ("auto", "none"):
        folder = _checkpoint_folder(Path(resume))
        target = Path(run_dir) if run_dir else folder.parent.parent
        newest = checkpoint.find_newest(target)
        if newest and newest.resolve() != folder.resolve():
            raise UsageError(f"run_dir={str(target)!r} holds {newest.name}, beyond {folder}: give another run_dir")
        return _make(target), folder
    if run_dir is None:
        return _make(_unused(Path(default))), None
    newest = checkpoint.find_newest(Path(run_dir))
    if newest and resume == "none":
        raise UsageError(
            f"run_dir={run_dir!r} holds a run and train.resume=none: choose another run_dir, or resume=auto"
        )
    if newest is None and not (Path(run_dir) / "metrics.jsonl").exists() and _holds_files(Path(run_dir)):
        raise UsageError(f"run_dir={run_dir!r} holds files that are no run of diffgen's: choose another folder")
    return _make(Path(run_dir)), newest


def _holds_files(path: Path) -> bool:
    return any(not item.is_dir() for item in path.rglob("*"))


def _checkpoint_folder(path: Path) -> Path:
    folder = path.parent if path.is_file() else path
    if (folder / "state.json").is_file():
        return folder
    newest = checkpoint.find_newest(folder)
    if newest is None:
        raise CheckpointError(f"train.resume={str(path)!r} holds no complete checkpoint; choose auto, none or a path")
    return newest


def _unused(path: Path) -> Path:
    """The path itself, or with the first number that makes it new; the folder is made, so nobody else can take it."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        number, candidate = 1, path
        while True:
            try:
                candidate.mkdir()
                return candidate
            except FileExistsError:
                number += 1
                candidate = path.with_name(f"{path.name}-{number}")


def _make(path: Path) -> Path:
    with explained(path):
        for folder in (path / "samples", path / "checkpoints"):
            folder.mkdir(parents=True, exist_ok=True)
        (path / ".writable").touch()
        (path / ".writable").unlink()
    return path


class RunLog:
    """`metrics.jsonl`, one row per logged step, and the files drawn from it."""

    def __init__(self, run_dir: Path) -> None:
        """The log in `run_dir`; `start` begins to write it."""
        self.run_dir, self.path = run_dir, run_dir / "metrics.jsonl"

    def start(self, config_yaml: str, images: int) -> None:
        """Write the config, and drop rows from beyond `images`, where the run stands."""
        rows = [row for row in self.rows() if row["images"] <= images]
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        write_atomically(self.run_dir / "config.yaml", config_yaml)

    def append(self, row: dict[str, Any]) -> None:
        """Add a row."""
        append_line(self.path, json.dumps(row))

    def rows(self) -> list[dict[str, Any]]:
        """All whole rows; a line cut short by a crash is skipped."""
        rows = []
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return rows

    def plot(self) -> None:
        """Draw `loss.png`."""
        from diffgen.plots import loss_curve

        rows = self.rows()
        write_atomically(self.run_dir / "loss.png", loss_curve([r["images"] for r in rows], [r["loss"] for r in rows]))
