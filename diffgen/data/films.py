"""From a film to its frames: animated pictures, folders of numbered frames, arrays, and videos through PyAV."""

import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import torch
from PIL import Image, ImageFile
from torch import Tensor

from diffgen.core.errors import DataError
from diffgen.data import reading
from diffgen.data.array_file import load
from diffgen.data.places import Folder, LeftOut
from diffgen.data.reading import Loaded, Reading, Seen, UndecodableError, UnsuitableError
from diffgen.data.survey import several
from diffgen.data.unbounded import UNBOUNDED

VIDEOS = {".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ogv", ".wmv", ".flv"}
"""Endings of files that PyAV reads."""

ANIMATED = {".gif", ".webp", ".apng", ".tif", ".tiff", ".avif"}
"""Endings of pictures that may have several frames, so that each is looked at; of PNGs the first of a folder is."""

NO_VIDEOS = "needs a library that is not installed: pip install 'diffgen[video]'"

SEVERAL = "set dataset.size to resize and crop them all"

Frame = Callable[[], tuple[Tensor, Seen]]
"""Reads a frame, uint8 [C, H, W], and says what it was; those that nobody reads cost little."""


@dataclass(frozen=True)
class Film:
    """Frames in a file, or in several.

    Attributes:
        name: What sentences call it.
        files: The file, or one for each frame.
        folder: Whether each frame has a file.
    """

    name: str
    files: tuple[Path, ...]
    folder: bool = False

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
        if self.folder:
            return len(self.files)
        with reading.faults(self.name):
            return _count_video(self) if self.video else _count_pages(self)

    def fps(self, how: Reading) -> float | None:
        """Frames per second, if the file says so."""
        if self.folder:
            return None
        with suppress(UndecodableError), reading.faults(self.name):
            rate = _rate_of_video(self) if self.video else _rate_of_pages(self, how)
            return rate if rate and 0.1 <= rate <= 240 else None
        return None

    def frames(self, how: Reading, size: tuple[int, int] | None) -> Iterator[Frame]:
        """Each frame, which must be read before the next one is asked for, or is skipped.

        Raises:
            UndecodableError: A frame is damaged.
            UnsuitableError: A setting is missing to read it.
        """
        if self.folder:
            yield from (partial(self._still, file, how, size) for file in self.files)
            return
        pages = _video(self, how) if self.video else _pages(self, how)
        while True:
            with reading.faults(self.name):
                page = next(pages, None)
            if page is None:
                return
            yield partial(self._page, page, how, size)

    def _still(self, file: Path, how: Reading, size: tuple[int, int] | None) -> tuple[Tensor, Seen]:
        pixels, seen = how.read(file, str(file), size)
        if seen.frames:
            raise UnsuitableError(f"{file} has several frames, and stands among single ones", "give it another folder")
        return pixels, seen

    def _page(self, page: Callable[[], Loaded], how: Reading, size: tuple[int, int] | None) -> tuple[Tensor, Seen]:
        with reading.faults(self.name):
            return how.told(page(), self.name, size)


# --- pictures of several frames -----------------------------------------------------------------------------------


def _opened(file: Path) -> ImageFile.ImageFile:
    """A picture; Pillow would refuse a PNG for the size of its notes."""
    with file.open("rb") as begin:
        png = begin.read(len(reading.PNG)) == reading.PNG
    with UNBOUNDED:
        return Image.open(
            io.BytesIO(reading.without_notes(file.read_bytes())) if png else file, formats=reading.formats()
        )


def _hidden(image: ImageFile.ImageFile) -> int:
    """Frames before the first of the film: a PNG may have a picture for those who know of no films."""
    return int(bool(image.info.get("default_image")))


def _count_pages(film: Film) -> int:
    file = film.files[0]
    with UNBOUNDED, _opened(file) as image:
        if image.format == "GIF" and not gif_ends(file):
            raise UndecodableError(f"{film.name} cannot be decoded: it is cut off")
        return getattr(image, "n_frames", 1) - _hidden(image)


def gif_ends(file: Path) -> bool:
    """Whether a GIF goes on to its end: of one that is cut off Pillow counts the frames that are left."""
    with file.open("rb") as gif:
        _skip_palette(gif, gif.read(13)[10:11])
        while mark := gif.read(1):
            if mark == b";":
                return True
            if mark == b"!":
                gif.seek(1, os.SEEK_CUR)
            elif mark == b",":
                _skip_palette(gif, gif.read(9)[8:])
                gif.seek(1, os.SEEK_CUR)
            else:
                continue
            while size := int.from_bytes(gif.read(1)):
                gif.seek(size, os.SEEK_CUR)
    return False


def _skip_palette(gif: BinaryIO, flags: bytes) -> None:
    if flags and flags[0] & 128:
        gif.seek(3 << (flags[0] & 7) + 1, os.SEEK_CUR)


def _rate_of_pages(film: Film, how: Reading) -> float | None:
    with UNBOUNDED, _opened(film.files[0]) as image:
        how.check_size(image.height, image.width, film.name)
        image.load()  # WebP says then how long a frame is
        milliseconds = image.info.get("duration")
        return 1000 / milliseconds if isinstance(milliseconds, int | float) and milliseconds > 0 else None


def _pages(film: Film, how: Reading) -> Iterator[Callable[[], Loaded]]:
    """Frames as a viewer shows them: Pillow lays those that are parts on what is there."""
    with _opened(film.files[0]) as image:
        for number in count(_hidden(image)):
            how.check_size(image.height, image.width, film.name)  # of the frame before, on which this one is laid
            try:
                with UNBOUNDED:
                    image.seek(number)
            except EOFError:
                return
            how.check_size(image.height, image.width, film.name)
            yield partial(_of_page, image)


def _of_page(image: ImageFile.ImageFile) -> Loaded:
    found = reading.loaded(image, frames=True)
    return found._replace(image=found.image.copy())


# --- videos -------------------------------------------------------------------------------------------------------


def _av(film: Film) -> Any:
    """A video that is open."""
    try:
        import av
    except ImportError:
        raise DataError(f"{film.name} {NO_VIDEOS}") from None
    video = av.open(str(film.files[0]))
    if not video.streams.video:
        video.close()
        raise UndecodableError(f"{film.name} holds no moving pictures")
    return video


def _count_video(film: Film) -> int:
    with _av(film) as video:
        stream = video.streams.video[0]
        return stream.frames or sum(1 for packet in video.demux(stream) if packet.size)


def _rate_of_video(film: Film) -> float | None:
    with _av(film) as video:
        rate = video.streams.video[0].average_rate
        return float(rate) if rate else None


def _video(film: Film, how: Reading) -> Iterator[Callable[[], Loaded]]:
    with _av(film) as video:
        for frame in video.decode(video=0):
            how.check_size(frame.height, frame.width, film.name)
            if frame.is_corrupt:
                raise UndecodableError(f"{film.name} has a damaged frame")
            yield partial(_of_frame, frame)


def _of_frame(frame: Any) -> Loaded:
    """A frame, turned as the camera was."""
    upright = frame.to_image().rotate(frame.rotation, expand=True)
    return Loaded(upright, deep=False, frames=True, range=None)


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
        self.names = sorted(self.films, key=self._order)
        self.left_out = sorted(self.left_out)

    def _order(self, name: str) -> list[list[tuple[int, str]]]:
        """By numbers, and without the ending: the order is the same in every form."""
        plain = name if self.films[name].folder else str(PurePosixPath(name).with_suffix(""))
        return [natural(part) for part in plain.split("/")]

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
        looked_at = {*ANIMATED, ".png"} if pngs and _moves(self.root / pngs[0]) else ANIMATED
        return [
            name
            for name in names
            if _suffix(name) in VIDEOS or (_suffix(name) in looked_at and _moves(self.root / name))
        ]

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


def _moves(file: Path) -> bool:
    """Whether a picture has several frames; a PNG that cannot be read is taken for a frame, and others for films."""
    try:
        with UNBOUNDED, _opened(file) as image:
            return bool(getattr(image, "is_animated", False))
    except Exception:  # decoders raise anything, and will be told of where frames are counted or read
        return file.suffix.lower() != ".png"


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
    try:
        if file.suffix.lower() in (".npy", ".npz") and file.is_file():
            return _of_array(file, path, how, size)[:most]
        frames = [frame()[0] for frame in islice(_named(file, path).frames(how, size), most)]
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
    values = next((array for array in load(file, repr(path)).values() if array.ndim in (3, 4, 5)), None)
    if values is None:
        raise DataError(f"{path!r} holds no clip: it must be [T, H, W, {how.channels}]")
    clip = values[0] if values.ndim == 5 and len(values) == 1 else values
    clip = clip[..., None] if clip.ndim == 3 else clip
    if clip.ndim != 4 or not clip.size or clip.shape[-1] != how.channels:
        raise DataError(f"{path!r} must hold one clip, [T, H, W, {how.channels}], and has {list(values.shape)}")
    frames = torch.from_numpy(reading.eight_bits(clip, how.range, repr(path)).copy()).permute(0, 3, 1, 2)
    return torch.stack([reading.fitted(frame, size) for frame in frames.contiguous()])
