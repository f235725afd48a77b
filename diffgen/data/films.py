"""Films in a folder, and a film that a user names, which may be an array."""

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from diffgen.core.errors import DataError, require
from diffgen.data import reading
from diffgen.data.array_file import channels_first, load, named
from diffgen.data.film import VIDEOS, Film, moves
from diffgen.data.places import Folder, LeftOut
from diffgen.data.reading import Reading, UndecodableError, UnsuitableError
from diffgen.data.survey import several


class Films(Folder):
    """Films below a folder: files of several frames, and folders of numbered frames, each of which is one film."""

    def __init__(self, root: Path) -> None:
        """List them; `names` are those of files and of folders of frames."""
        super().__init__(root, VIDEOS)
        by_folder: dict[str, list[str]] = {}
        for name in self.names:
            by_folder.setdefault(name.rpartition("/")[0], []).append(name)
        self.films: dict[str, Film] = {}
        self._frames = set[Path]()
        for folder, names in by_folder.items():
            self._list(folder, names)
        self.names = sorted(self.films, key=self._order)
        self.left_out = sorted(self.left_out)

    def _order(self, name: str) -> list[list[tuple[int, str]]]:
        """By numbers, and without the ending: the order is the same in every form."""
        plain = name if self.films[name].folder else str(PurePosixPath(name).with_suffix(""))
        return [natural(part) for part in plain.split("/")]

    def _list(self, folder: str, names: list[str]) -> None:
        """The films of one folder; what cannot be read goes with the others, and will be told of with them."""
        several = {name: _suffix(name) in VIDEOS or moves(self.root / name) for name in names}
        if any(several.values()) or not any(each is False for each in several.values()):
            self.films |= {
                name: Film(self.called(name), (self.root / name,)) for name in names if several[name] is not False
            }
            self.left_out += [LeftOut(name, "a single frame among films") for name in names if several[name] is False]
        else:
            self._list_frames(folder, sorted(names, key=natural))

    def _list_frames(self, folder: str, names: list[str]) -> None:
        """The film that a folder is; two links in one class are found before, and here those beside classes."""
        place = (self.root / folder).resolve()
        if place in self._frames and "/" not in folder:
            self.left_out.append(LeftOut(folder, "a folder that was there before"))
            return
        self._frames.add(place)
        called = self.called(folder) if folder else self.title
        self.films[folder or "."] = Film(called, tuple(self.root / name for name in names), folder=True)

    def lengths(self, frames: int, *, skip: bool) -> dict[str, int]:
        """Frames of each film that has so many; the others are left out.

        Args:
            frames: The fewest that are of use.
            skip: Leave out what cannot be decoded, too, instead of raising.

        Raises:
            UndecodableError: A film cannot be decoded.
        """
        found: dict[str, int] = {}
        for name in self.names:
            try:
                length = self.films[name].count()
            except UndecodableError:
                if not skip:
                    raise
                self.left_out.append(LeftOut(name, "cannot be decoded"))
                continue
            if length >= frames:
                found[name] = length
            elif length > 1:
                self.left_out.append(LeftOut(name, "too short"))
            else:
                only = self.films[name].files[0].relative_to(self.root).as_posix()
                self.left_out.append(LeftOut(only, "a single frame"))
        self.names, self.left_out = list(found), sorted(self.left_out)
        return found

    def others(self) -> list[str]:
        """See `Place`; films have no file of labels."""
        return []

    def doubts(self) -> list[str]:
        """What a user should know of the numbers of frames."""
        folders = [self.films[name] for name in self.names if self.films[name].folder]
        odd = [(film.name, why) for film in folders if (why := _odd([file.name for file in film.files]))]
        if not odd:
            return []
        (first, why), more = odd[0], f" (and the like in {several(len(odd) - 1, 'folder')} more)" if odd[1:] else ""
        return [f"{first}: {why}{more}; frames are taken one after the other, in the order of their names"]


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def natural(name: str) -> list[tuple[int, str]]:
    """A key by which 2 comes before 10."""
    parts = re.split(r"([0-9]+)", name)  # every other one is a number
    return [(int(part), part) if i % 2 else (-1, part) for i, part in enumerate(parts)]


def _odd(names: Sequence[str]) -> str:
    """What is odd about the numbers of frames, or an empty text."""
    numbers = [int(found[-1]) for name in names if (found := re.findall(r"[0-9]+", PurePosixPath(name).stem))]
    if len(numbers) < len(names):
        return f"{len(names) - len(numbers):,} of {len(names):,} frames have no number"
    if len(set(numbers)) < len(numbers):
        return "two frames have one number"
    missing = max(numbers) - min(numbers) + 1 - len(numbers)
    return f"{several(missing, 'number')} missing between the first frame and the last" if missing else ""


# --- one film that a user names -----------------------------------------------------------------------------------


def check_stride(stride: int) -> None:
    """Require a stride that a film can have.

    Raises:
        UsageError: It is none.
    """
    require(1 <= stride <= 1000, f"stride={stride} must be in [1, 1000]")


def is_array(file: Path) -> bool:
    """Whether a file is an array of a clip, and no film."""
    return file.suffix.lower() in (".npy", ".npz") and file.is_file()


def read(path: str, how: Reading, size: tuple[int, int], most: int, stride: int = 1) -> Tensor:
    """The frames of one film, uint8 [T, C, H, W]: a file, a folder of frames, or one clip in an .npy or .npz.

    Args:
        path: Where it is.
        how: To read frames.
        size: Height and width to resize and centre-crop to.
        most: Frames to read; what follows is not looked at.
        stride: Every how many frames is read.

    Raises:
        DataError: It is none, or cannot be read.
    """
    file = Path(path)
    try:
        if is_array(file):
            return _of_array(file, path, how, size)[::stride][:most]
        film = _named(file, path)
        film.count()  # refuses one that is cut off
        frames = [frame()[0] for frame in islice(film.frames(how, size), 0, most * stride, stride)]
    except UnsuitableError as error:  # a task has no such setting
        raise DataError(error.fact) from None
    if not frames:
        raise DataError(f"{path!r} has no frames")
    return torch.stack(frames)


def _named(file: Path, path: str) -> Film:
    if file.is_dir():
        films = Films(file).films
        if set(films) != {"."}:
            raise DataError(f"{path!r} is no folder of numbered frames: name one film in it")
        return films["."]
    if not file.is_file():
        raise DataError(f"{path!r} does not exist: it must be a film, a folder of frames, an .npy or .npz")
    return Film(path, (file,))


def _of_array(file: Path, path: str, how: Reading, size: tuple[int, int]) -> Tensor:
    found = load(file, repr(path))
    values = found[named(found, repr(path))]
    clip = values[0] if values.ndim == 5 and len(values) == 1 else values
    told = f"{path!r} must hold one clip, [T, H, W, {how.channels}] or [T, {how.channels}, H, W]"
    if clip.ndim not in (3, 4) or not clip.size or _is_picture(clip):
        raise DataError(f"{told}, and has {list(values.shape)}")
    frames = channels_first(clip, "auto", f"{told}, and it cannot be told which of them has {list(values.shape)}")
    if frames.shape[1] != how.channels:
        raise DataError(f"{told}, and has {list(values.shape)}")
    pixels = torch.from_numpy(np.array(reading.eight_bits(frames, how.range, repr(path)), order="C"))
    return torch.stack([reading.fitted(frame, size) for frame in pixels])


def _is_picture(values: np.ndarray) -> bool:
    """Whether three axes are those of a picture, [H, W, C], and not of grey frames."""
    return values.ndim == 3 and values.shape[2] in reading.MODES and values.shape[2] < min(values.shape[:2])
