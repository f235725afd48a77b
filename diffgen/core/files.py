"""Writing that survives a crash: a file or folder is there whole, or not at all."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from diffgen.core.errors import EnvironmentFault

MARK = ".writable"
"""A file that is there for a moment, to see whether a folder can be written."""


def cache_folder() -> Path:
    """Where things are kept that can be made again: $XDG_CACHE_HOME/diffgen, or ~/.cache/diffgen."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffgen"


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write a file through a temporary neighbour, fsync and rename.

    Raises:
        EnvironmentFault: The folder is not writable or the disk is full; whatever stood at `path` is untouched.
    """
    with file_atomically(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def file_atomically(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary neighbour, whose file becomes `path` when the block ends well, and else vanishes.

    Raises:
        EnvironmentFault: See `write_atomically`.
    """
    temporary = path.with_name(f".tmp_{path.name}_{secrets.token_hex(4)}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


@contextmanager
def folder_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` by one rename when the block ends well, and vanishes otherwise.

    A folder already at `path` is replaced, and is whole until the rename.
    """
    temporary = path.with_name(f".tmp_{path.name}_{secrets.token_hex(4)}")
    with writing(path):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.iterdir():
                _fsync(file)
            _fsync(temporary)
            _replace_folder(temporary, path)
            _fsync(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _replace_folder(new: Path, path: Path) -> None:
    if not path.exists():
        new.rename(path)
        return
    old = path.with_name(f".old_{path.name}_{secrets.token_hex(4)}")
    path.rename(old)
    try:
        new.rename(path)
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def tidy(folder: Path) -> None:
    """Take away what a killed process left in a folder, and bring back what it was about to replace."""
    with writing(folder):
        for old in folder.glob(".old_*"):
            path = folder / old.name.removeprefix(".old_").rpartition("_")[0]
            if not path.exists():
                old.rename(path)
        for kind in (".tmp_*", ".old_*", ".del_*"):
            for left in folder.glob(kind):
                remove(left)


def remove(path: Path) -> None:
    """Delete a file or a folder; what cannot be deleted stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into one sentence that names the path and the reason."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise EnvironmentFault(f"cannot write {path}: {reason}") from error


def make_writable(folder: Path) -> None:
    """Make a folder, and see now whether it can be written, before hours of work for it.

    Raises:
        EnvironmentFault: It cannot.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK).touch()
        (folder / MARK).unlink()


def _fsync(path: Path) -> None:
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a log that are JSON objects; one may have been cut short by a crash, or damaged."""
    rows = []
    for line in path.read_text(errors="replace").splitlines():
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict):
                rows.append(row)
    return rows


def append_text(path: Path, text: str) -> None:
    """Append to a log, as `append_bytes` does."""
    append_bytes(path, text.encode())


def append_bytes(path: Path, data: bytes) -> None:
    """Append to a log, all or nothing.

    Raises:
        EnvironmentFault: It cannot be written.
    """
    with writing(path), path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            with suppress(OSError):
                file.truncate(end)
            raise
