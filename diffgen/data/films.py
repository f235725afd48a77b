"""From a film to its frames: animated pictures, folders of numbered frames, arrays, and videos through PyAV."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageSequence
from torch import Tensor

from diffgen.core.errors import DataError
from diffgen.data import reading
from diffgen.data.places import Folder, LeftOut
from diffgen.data.reading import LARGER, UNBOUNDED, Loaded, Reading, Seen, UndecodableError, UnsuitableError

VIDEOS = {".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ogv", ".wmv", ".flv"}
"""Endings of files that PyAV reads."""

ANIMATED = {".gif", ".webp", ".apng", ".tif", ".tiff", ".avif"}
"""Endings of pictures that may have several frames, so that each is looked at; of PNGs the first of a folder is."""

NO_VIDEOS = "needs a library that is not installed: pip install 'diffgen[video]'"

SEVERAL = "set dataset.size to resize and crop them all"


@dataclass(frozen=True)
class Film:
    """Frames in a file, or in several.

    Attributes:
        name: What sentences call it.
        files: The file, or one for each frame.
    """

    name: str
    files: tuple[Path, ...]
    folder: bool = field(default=False)

    @property
    def video(self) -> bool:
        """Whether PyAV reads it."""
        return not self.folder and self.files[0].suffix.lower() in VIDEOS

    def count(self) -> int:
        """How many frames there are.

        Raises:
            UndecodableError: It is no film.
            DataError: It cannot be read.
        """
        return len(self.files) if self.folder else self._read(_count_video if self.video else _count_pages)

    def fps(self) -> float | None:
        """Frames per second, if the file says so."""
        if self.folder:
            return None
        rate: float | None = self._read(_rate_of_video if self.video else _rate_of_pages)
        return rate if rate and 0.1 <= rate <= 240 else None

    def frames(self, how: Reading, size: tuple[int, int] | None) -> Iterator[tuple[Tensor, Seen]]:
        """Each frame, uint8 [C, H, W], and what it was; nothing of those before it is kept.

        Raises:
            UndecodableError: A frame is damaged.
            UnsuitableError: A setting is missing to read it.
        """
        if self.folder:
            yield from self._files(how, size)
        else:
            yield from self._guarded(lambda: _video(self, how, size) if self.video else _pages(self, how, size))

    def _files(self, how: Reading, size: tuple[int, int] | None) -> Iterator[tuple[Tensor, Seen]]:
        for file in self.files:
            pixels, seen = how.read(file, str(file), size)
            if seen.frames:
                raise UnsuitableError(
                    f"{file} has several frames, and stands among single ones", "give it another folder"
                )
            yield pixels, seen

    def _guarded(self, read: Callable[[], Iterator[tuple[Tensor, Seen]]]) -> Iterator[tuple[Tensor, Seen]]:
        frames = self._read(lambda file: read())
        while (frame := self._read(lambda file: next(frames, None))) is not None:
            yield frame

    def _read(self, read: Callable[[Path], Any]) -> Any:
        """What a decoder gives, whatever it raises on damaged files."""
        try:
            return read(self.files[0])
        except (DataError, MemoryError):
            raise
        except OSError as error:  # a disk's has a number, a decoder's has none
            if error.errno and not self.video:
                raise DataError(f"{self.name} cannot be read: {error.strerror}") from None
            raise UndecodableError(f"{self.name} cannot be decoded: {error}") from None
        except Exception as error:
            raise UndecodableError(f"{self.name} cannot be decoded: {error}") from None


# --- pictures of several frames -----------------------------------------------------------------------------------


def _opened(file: Path) -> Image.Image:
    return Image.open(file, formats=reading.formats())


def _count_pages(file: Path) -> int:
    with UNBOUNDED, _opened(file) as image:
        return getattr(image, "n_frames", 1)


def _rate_of_pages(file: Path) -> float | None:
    with UNBOUNDED, _opened(file) as image:
        with suppress(EOFError):
            image.seek(1)  # WebP says how long a frame is once it is there
        milliseconds = image.info.get("duration")
        return 1000 / milliseconds if isinstance(milliseconds, int | float) and milliseconds > 0 else None


def _pages(film: Film, how: Reading, size: tuple[int, int] | None) -> Iterator[tuple[Tensor, Seen]]:
    """Frames as a viewer shows them: Pillow lays those that are parts on what is there."""
    with UNBOUNDED, _opened(film.files[0]) as image:
        for page in ImageSequence.Iterator(image):
            if page.width * page.height > how.max_pixels:
                told = f"{page.height:,} x {page.width:,} pixels, more than {how.max_pixels:,}"
                raise UnsuitableError(f"{film.name} has frames of {told}", LARGER)
            yield how.told(Loaded(page.copy(), deep=False, frames=True, range=None), film.name, size)


# --- videos -------------------------------------------------------------------------------------------------------


def _av(film: str) -> Any:
    try:
        import av
    except ImportError:
        raise DataError(f"{film} {NO_VIDEOS}") from None
    return av


def _count_video(file: Path) -> int:
    with _av(str(file)).open(str(file)) as video:
        stream = video.streams.video[0]
        return stream.frames or sum(1 for packet in video.demux(stream) if packet.size)


def _rate_of_video(file: Path) -> float | None:
    with _av(str(file)).open(str(file)) as video:
        rate = video.streams.video[0].average_rate
        return float(rate) if rate else None


def _video(film: Film, how: Reading, size: tuple[int, int] | None) -> Iterator[tuple[Tensor, Seen]]:
    with _av(film.name).open(str(film.files[0])) as video:
        for frame in video.decode(video=0):
            if frame.width * frame.height > how.max_pixels:
                told = f"{frame.height:,} x {frame.width:,} pixels, more than {how.max_pixels:,}"
                raise UnsuitableError(f"{film.name} has frames of {told}", LARGER)
            yield how.told(Loaded(frame.to_image(), deep=False, frames=True, range=None), film.name, size)


# --- a folder of films --------------------------------------------------------------------------------------------


class Films(Folder):
    """Films below a folder: files of several frames, and folders of numbered frames, each of which is one film."""

    def __init__(self, root: Path) -> None:
        """List them; `names` are those of files and of folders of frames."""
        super().__init__(root, VIDEOS)
        by_folder: dict[str, list[str]] = {}
        for name in self.names:
            by_folder.setdefault(name.rpartition("/")[0], []).append(name)
        self.films: dict[str, Film] = {}
        for folder, names in by_folder.items():
            self._list(folder, names)
        self.names = sorted(self.films, key=lambda name: name.split("/"))
        self.left_out = sorted(self.left_out)

    def _list(self, folder: str, names: list[str]) -> None:
        """The films of one folder."""
        films = self._of_several_frames(names)
        stills = sorted(set(names) - set(films), key=natural)
        if films:
            self.films |= {name: Film(self.called(name), (self.root / name,)) for name in films}
            self.left_out += [LeftOut(name, "a single frame among films") for name in stills]
        else:
            called = self.called(folder) if folder else self.title
            self.films[folder or "."] = Film(called, tuple(self.root / name for name in stills), folder=True)

    def _of_several_frames(self, names: list[str]) -> list[str]:
        pngs = [name for name in names if _suffix(name) == ".png"]
        looked_at = names if pngs and _moves(self.root / pngs[0]) else [name for name in names if name not in set(pngs)]
        return [name for name in looked_at if _suffix(name) in VIDEOS or self._animated(name)]

    def _animated(self, name: str) -> bool:
        return _suffix(name) in (*ANIMATED, ".png") and _moves(self.root / name)

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
                count = self.films[name].count()
            except UndecodableError:
                if not skip:
                    raise
                self.left_out.append(LeftOut(name, "cannot be decoded"))
                continue
            if count >= frames:
                found[name] = count
            else:
                self.left_out.append(LeftOut(name, "a single frame" if count == 1 else "too short"))
        self.names, self.left_out = list(found), sorted(self.left_out)
        return found

    @property
    def gaps(self) -> int:
        """Folders of frames whose numbers leave some out."""
        return sum(_has_gaps([file.name for file in film.files]) for film in self.films.values() if film.folder)


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _moves(file: Path) -> bool:
    """Whether a picture has several frames; one that cannot be read is left for decoding to refuse."""
    try:
        return _count_pages(file) > 1
    except Exception:  # decoders raise anything
        return True


def natural(name: str) -> list[tuple[int, str]]:
    """A key by which 2 comes before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def _has_gaps(names: Sequence[str]) -> bool:
    numbers = [int(found[-1]) for name in names if (found := re.findall(r"[0-9]+", PurePosixPath(name).stem))]
    return bool(numbers) and len(set(numbers)) == len(numbers) and max(numbers) - min(numbers) + 1 != len(numbers)


# --- one film that a user names -----------------------------------------------------------------------------------


def read(path: str, how: Reading, size: tuple[int, int], most: int) -> Tensor:
    """The frames of one film, uint8 [T, C, H, W]: a file, a folder of frames, or an .npy or .npz of [T, H, W, C].

    Args:
        path: Where it is.
        how: To read frames.
        size: Height and width to resize and centre-crop to.
        most: Frames to read; what follows is not looked at.

    Raises:
        DataError: It is none, or cannot be read.
    """
    file = Path(path)
    if file.suffix.lower() in (".npy", ".npz") and file.is_file():
        return _of_array(file, path, how, size)[:most]
    film = _named(file, path)
    try:
        return torch.stack([pixels for pixels, _ in islice(film.frames(how, size), most)])
    except UnsuitableError as error:  # a task has no such setting
        raise DataError(error.fact) from None


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
    from diffgen.data.arrays import load

    values = next((array for array in load(file, repr(path)).values() if array.ndim in (3, 4, 5)), None)
    if values is not None and values.ndim == 5 and len(values) == 1:
        values = values[0]
    values = values[..., None] if values is not None and values.ndim == 3 else values
    if values is None or values.ndim != 4 or values.dtype != np.uint8 or values.shape[-1] != how.channels:
        found = "none" if values is None else f"{values.dtype} {list(values.shape)}"
        raise DataError(f"{path!r} must hold one clip, uint8 [T, H, W, {how.channels}], and has {found}")
    frames = torch.from_numpy(np.ascontiguousarray(values)).permute(0, 3, 1, 2)
    return torch.stack([reading.fitted(frame, size) for frame in frames])
