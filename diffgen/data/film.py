"""One film and its frames: animated pictures, folders of numbered frames, and videos through PyAV."""

import io
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, ImageFile
from torch import Tensor

from diffgen.core.errors import DataError
from diffgen.core.settings import plays
from diffgen.data import reading
from diffgen.data.reading import Loaded, Reading, Seen, UndecodableError
from diffgen.data.unbounded import UNBOUNDED

VIDEOS = {".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".mpg", ".mpeg", ".ogv", ".wmv", ".flv"}
"""Endings of files that PyAV reads."""

HEADED = {"matroska,webm", "flv"}
"""Formats, as PyAV calls them, that begin with how long the film lasts."""

MISSING = 4
"""Frames by which that may be wrong: it is rounded, and says how long the last ones are seen."""

MICROSECONDS = 1_000_000

TIMED = 50
"""Frames by which it is told how fast a film is."""

JPEG = b"\xff\xd8\xff"

NO_VIDEOS = "needs a library that is not installed: pip install 'diffgen[video]'"

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
            return rate if rate and plays(rate) else None
        return None

    def frames(self, how: Reading, size: tuple[int, int] | None) -> Generator[Frame]:
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
        return how.read(file, str(file), size)

    def _page(self, page: Callable[[], Loaded], how: Reading, size: tuple[int, int] | None) -> tuple[Tensor, Seen]:
        with reading.faults(self.name):
            return how.told(page(), self.name, size)


# --- pictures of several frames -----------------------------------------------------------------------------------


def _opened(file: Path) -> ImageFile.ImageFile:
    """A picture; Pillow would refuse a PNG for the size of its notes."""
    with file.open("rb") as begin:
        png = begin.read(len(reading.PNG)) == reading.PNG
    with UNBOUNDED:
        plain = io.BytesIO(reading.without_notes(file.read_bytes())) if png else file
        return Image.open(plain, formats=reading.formats())


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
    """By the first frames that last about as long as the first one: formats round, a GIF to hundredths of a second."""
    lasts = list[float]()
    with suppress(Exception), UNBOUNDED, _opened(film.files[0]) as image:  # what is damaged is told of where it is read
        for number in range(_hidden(image), _hidden(image) + TIMED):
            image.seek(number)
            how.check_size(image.height, image.width, film.name)
            image.load()  # WebP says then how long a frame is
            lasts.append(float(image.info["duration"]))
    near = [each for each in lasts if abs(each - lasts[0]) <= 10]
    return 1000 * len(near) / sum(near) if sum(near) > 0 else None


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
            yield partial(reading.loaded, image, frames=True)


def moves(file: Path) -> bool | None:
    """Whether a picture has several frames, whatever it is called; None where it cannot be read."""
    try:
        with file.open("rb") as begin:
            first = begin.read(len(reading.PNG))
            if first.startswith(JPEG):  # telephones add a second picture, which is no frame
                return False
            if first == reading.PNG:
                return _png_moves(begin)
        with UNBOUNDED, _opened(file) as image:
            several = bool(getattr(image, "is_animated", False))
            return None if image.format == "GIF" and not several and not gif_ends(file) else several
    except Exception:  # decoders raise anything, and will be told of where frames are counted or read
        return None


def _png_moves(png: BinaryIO) -> bool | None:
    """Of a PNG after its first bytes: what stands before its pixels says how many frames there are."""
    while len(head := png.read(8)) == 8:
        size, kind = int.from_bytes(head[:4]), head[4:]
        if kind == b"acTL":
            return int.from_bytes(png.read(4)) > 1
        if kind == b"IDAT":
            return False
        png.seek(size + 4, os.SEEK_CUR)
    return None


# --- videos -------------------------------------------------------------------------------------------------------


def _av(film: Film) -> Any:
    """A video that is open."""
    if not has_videos():
        raise DataError(f"{film.name} {NO_VIDEOS}")
    import av

    video = av.open(str(film.files[0]))
    if not video.streams.video:
        video.close()
        raise UndecodableError(f"{film.name} holds no moving pictures")
    return video


def _count_video(film: Film) -> int:
    with _av(film) as video:
        stream = video.streams.video[0]
        return stream.frames or _count_packets(film, video)


def _count_packets(film: Film, video: Any) -> int:
    """Frames of a file whose header does not say how many, but how long all that is in it lasts."""
    stream, number, last = video.streams.video[0], 0, 0.0
    for packet in video.demux():
        number += bool(packet.size) and packet.stream_index == stream.index
        if packet.size and packet.pts is not None:
            last = max(last, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    missing = (video.duration or 0) / MICROSECONDS - last
    if video.format.name in HEADED and missing > MISSING / float(stream.average_rate or 8):
        raise UndecodableError(f"{film.name} cannot be decoded: it is cut off")
    return number


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


def has_videos() -> bool:
    """Whether PyAV is there."""
    try:
        import av  # noqa: F401
    except ImportError:
        return False
    return True


def mp4(frames: Sequence[Image.Image], fps: float) -> bytes:
    """The bytes of an MP4 (H.264) of pictures of one size; odd sides lose their last line, which the format needs."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height = (side - side % 2 for side in frames[0].size)
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            cropped = frame.convert("RGB").crop((0, 0, stream.width, stream.height))
            file.mux(stream.encode(av.VideoFrame.from_image(cropped)))
        file.mux(stream.encode())
    return buffer.getvalue()
