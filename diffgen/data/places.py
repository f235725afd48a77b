"""Where pictures lie, a folder or a zip file: which files are pictures, and which are left out and why."""

import os
import zipfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

from diffgen.core.errors import DataError
from diffgen.data import reading

SYSTEM = {"@eadir", "__macosx", "#recycle", "$recycle.bin", "system volume information", "lost+found"}
"""Folders that systems and storage boxes keep beside pictures; @eaDir holds thumbnails of each."""

SYSTEM_FILES = {"thumbs.db", "desktop.ini"}

RAW = {".3fr", ".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw"}
"""Raw camera files, of which Pillow would read the small preview that they begin with."""

LARGEST = 2**29
"""Bytes of one file of a zip."""

BEGIN = 2**16
"""Bytes from which Pillow knows a picture."""


class LeftOut(NamedTuple):
    """A file that is not used: its name below the place, and why, in few words."""

    name: str
    reason: str


class Place(Protocol):
    """Pictures by name; names are paths below the place, with slashes, in the order of their parts."""

    title: str
    """What sentences call the place."""

    @property
    def root(self) -> Path | None:
        """The folder, if it is one."""

    names: list[str]
    left_out: list[LeftOut]

    def open(self, name: str) -> Path | bytes:
        """A picture's file, or what it holds."""

    def called(self, name: str) -> str:
        """What sentences call a picture."""

    def text(self, name: str) -> bytes | None:
        """What another file there holds, or None where there is none."""

    def others(self) -> list[str]:
        """What `dataset.labels` would call the files in its top folder that are no pictures."""


class Folder:
    """Pictures below a folder; links are followed."""

    def __init__(self, root: Path, also: Collection[str] = ()) -> None:
        """List them, and files with other endings that are asked for.

        Raises:
            DataError: The folder cannot be read.
        """
        self.root: Path = root
        self.title = str(root)
        walked = _walk(root, "", ())
        found = [(name, "" if reason in also else reason) for name, reason in walked]
        self.names = sorted((name for name, reason in found if not reason), key=_parts)
        self.left_out = sorted(LeftOut(name, reason) for name, reason in found if reason)

    def open(self, name: str) -> Path:
        """See `Place`."""
        return self.root / name

    def called(self, name: str) -> str:
        """See `Place`."""
        return str(self.root / name)

    def text(self, name: str) -> bytes | None:
        """See `Place`."""
        path = self.root / name
        return path.read_bytes() if path.is_file() else None

    def others(self) -> list[str]:
        """See `Place`."""
        return [str(self.root / name) for name, _ in self.left_out if "/" not in name]


Mark = tuple[int, int]
"""Of a folder, wherever links lead to it from: its device and its number there."""


def _walk(
    folder: Path, prefix: str, above: tuple[Mark, ...], why: str = "", seen: set[Mark] | None = None
) -> Iterator[tuple[str, str]]:
    """Each file below a folder with why it is left out, if it is.

    Args:
        folder: Where to look.
        prefix: Its name below the root, with a slash.
        above: The folders that it is in.
        why: Why the whole folder is left out, if it is.
        seen: Folders of the same class: links between folders could lead to each a thousand times.
    """
    try:
        at = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield prefix.rstrip("/") or str(folder), f"cannot be read ({error.strerror})"
        return
    here, seen = (at.st_dev, at.st_ino), set() if seen is None else seen
    if here in above or here in seen:
        yield prefix.rstrip("/"), "a link to a folder above it" if here in above else "a folder that was there before"
        return
    seen.add(here)
    if prefix and not entries and not why:
        yield prefix.rstrip("/"), "an empty folder"
    for entry in entries:
        name = prefix + entry.name
        if _is_folder(entry):
            reason = why or _unwanted_folder(entry.name)
            yield from _walk(Path(entry.path), f"{name}/", (*above, here), reason, seen if prefix else None)
        else:
            yield name, why or _unwanted(entry.name, Path(entry.path))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is one, also by a link; a link to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _unwanted_folder(name: str) -> str:
    system = name.casefold() in SYSTEM
    return f"in {name}" if system else "hidden" if name.startswith(".") else ""


def _unwanted(name: str, path: Path) -> str:
    """Why a file is left out, or an empty text."""
    if reason := _unwanted_name(name):
        return reason
    if not path.exists():
        return "a broken link"
    if not path.is_file():
        return "no file"
    known = PurePosixPath(name).suffix.lower() in reading.suffixes()
    return "" if known or reading.is_picture(path) else _no_picture(name)


def _unwanted_name(name: str) -> str:
    if name.startswith(".") or name.casefold() in SYSTEM_FILES:
        return "hidden"
    return "raw" if PurePosixPath(name).suffix.lower() in RAW else ""


def _no_picture(name: str) -> str:
    return PurePosixPath(name).suffix.lower() or "no picture"


def _parts(name: str) -> list[str]:
    return name.split("/")


class Zip:
    """Pictures in a zip file, which is not unpacked; a folder that holds all else is the zip's own name for itself."""

    def __init__(self, path: Path) -> None:
        """List them.

        Raises:
            DataError: It is no zip file, or one that needs a password.
        """
        self.path, self.title = path, str(path)
        self.root: Path | None = None
        self._open: tuple[int, zipfile.ZipFile] | None = None
        entries = [(_clean(info.filename), info) for info in self._zip().infolist() if not info.is_dir()]
        files = dict(entries)  # of several with one name the last, as when it is unpacked
        twice = [LeftOut(name, "of one name with another") for name, info in entries if files[name] is not info]
        reasons = {name: self._why_not(name, info) for name, info in files.items()}
        names = [name for name, reason in reasons.items() if not reason]
        self.top = _common_top(names)
        self.members = {name.removeprefix(self.top): info for name, info in files.items()}
        self.names = sorted((name.removeprefix(self.top) for name in names), key=_parts)
        left = [LeftOut(name.removeprefix(self.top), reason) for name, reason in reasons.items() if reason]
        self.left_out = sorted([*left, *(each._replace(name=each.name.removeprefix(self.top)) for each in twice)])
        secret = next((name for name in self.names if self.members[name].flag_bits & 1), None)
        if secret:
            raise DataError(f"{self.called(secret)} needs a password: unpack {path} and give the folder")

    def _zip(self) -> zipfile.ZipFile:
        """The file, opened by this process: workers must not share one position in it."""
        if self._open is None or self._open[0] != os.getpid():
            try:
                self._open = os.getpid(), zipfile.ZipFile(self.path)
            except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
                raise DataError(f"{self.path} cannot be read as a zip file: {error}") from None
        return self._open[1]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": None}

    def _why_not(self, name: str, info: zipfile.ZipInfo) -> str:
        """Why a file is left out, or an empty text."""
        *folders, file = _parts(name)
        unwanted = (_unwanted_folder(folder) for folder in folders)
        reason = next((reason for reason in unwanted if reason), "") or _unwanted_name(file)
        if reason or PurePosixPath(file).suffix.lower() in reading.suffixes():
            return reason
        return "" if reading.is_picture(self._begin(info)) else _no_picture(file)

    def _begin(self, info: zipfile.ZipInfo) -> bytes:
        """The first bytes of a file, or none of one that cannot be read."""
        try:
            with self._zip().open(info) as file:
                return file.read(BEGIN)
        except Exception:  # damaged, or a password is wanted
            return b""

    def open(self, name: str) -> bytes:
        """See `Place`.

        Raises:
            DataError: The file in it is damaged, or far larger than any picture.
        """
        info = self.members[name]
        if info.file_size > LARGEST:
            raise DataError(
                f"{self.called(name)} has {info.file_size:,} bytes, more than the {LARGEST:,} of any picture"
            )
        try:
            return self._zip().read(info)
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error}") from None
        except MemoryError:
            raise
        except Exception as error:  # each way of compression has errors of its own
            raise reading.UndecodableError(f"{self.called(name)} cannot be unpacked: {error}") from None

    def called(self, name: str) -> str:
        """See `Place`."""
        return f"{self.path}/{self.top}{name}"

    def text(self, name: str) -> bytes | None:
        """See `Place`."""
        return self.open(name) if name in self.members else None

    def others(self) -> list[str]:
        """See `Place`."""
        return [name for name, _ in self.left_out if "/" not in name]


def _clean(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./")


def _common_top(names: Sequence[str]) -> str:
    """`pictures/` where all lie in that folder."""
    tops = {name.partition("/")[0] for name in names if "/" in name}
    return f"{tops.pop()}/" if len(tops) == 1 and all("/" in name for name in names) else ""
