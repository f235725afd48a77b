"""Films in files as a data set of clips: all of one length and size, classes from sub-folders, or none."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffgen.core.errors import DataError, UsageError, require
from diffgen.data import survey
from diffgen.data.base import DATASETS, InMemory, Source
from diffgen.data.clips import Clips
from diffgen.data.films import SEVERAL, Films
from diffgen.data.labels import Labelled, labelled
from diffgen.data.pictures import Pictures, Size, Undecodable
from diffgen.data.reading import Reading, Seen, UndecodableError, UnsuitableError
from diffgen.nets.base import DataShape

MOST_FRAMES = 1024
"""Of a clip."""


@DATASETS.register("video_folder")
def video_folder(
    *,
    root: str | None,
    frames: int,
    stride: int,
    clips: int | None,
    size: Size,
    channels: int,
    fps: float | None,
    background: str,
    range: tuple[float, ...] | None,
    undecodable: Undecodable,
    max_pixels: int,
    workers: int,
) -> Source:
    """Films below `root`: files of several frames, and folders of numbered frames.

    Args:
        root: The folder. Sub-folders that are no folders of frames are the classes; without them there are none.
        frames: Frames of a clip.
        stride: Every how many frames of the film is one of the clip.
        clips: At most so many of a film, spread evenly; null: all that do not overlap.
        size: Height (and width, if different) to resize and centre-crop to; null takes the films' own size.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).
        fps: Frames per second of clips, where films are written; null: what the first film says, or 8.
        background: What transparent pixels are laid on, unless there are 4 channels.
        range: [black, white] of frames that hold floats, or whole numbers of more than 8 bits.
        undecodable: What becomes of films that cannot be decoded: the set is refused, or they are left out and listed.
        max_pixels: A larger frame is refused.
        workers: Processes that decode.

    Raises:
        DataError: The folder is missing or empty, or a film cannot be read (the sentence names it).
    """
    require(2 <= frames <= MOST_FRAMES, f"frames={frames} must be in [2, {MOST_FRAMES}]")
    require(1 <= stride <= 1000, f"stride={stride} must be in [1, 1000]")
    require(clips is None or clips >= 1, f"clips={clips} must be at least 1, or null")
    require(fps is None or 0.1 <= fps <= 240, f"fps={fps} must be in [0.1, 240], or null")
    require(0 <= workers <= 256, f"workers={workers} must be in [0, 256]")
    reading = Reading(channels, background, range, max_pixels)
    if root is None:
        raise UsageError("root is missing: dataset.root=FOLDER names the folder of films")
    if not Path(root).is_dir():
        raise DataError(f"dataset.root={root!r} is not a folder; it must hold films, or one sub-folder a class")
    cut = Cut(frames, stride, clips)
    place = Films(Path(root))
    whole = place.lengths(cut.span, skip=undecodable == "skip")
    if not whole:
        told = f"no films of {cut.span} frames or more ({survey.told_left_out(place.left_out)})"
        raise DataError(f"dataset.root={root!r} holds {told}: dataset.frames and dataset.stride say how long clips are")
    return Videos(place, whole, cut, reading, size, fps, workers).read(skip=undecodable == "skip")


@dataclass(frozen=True)
class Cut:
    """How films become clips: frames of a clip, every how many of the film's, and at most how many clips of a film."""

    frames: int
    stride: int
    clips: int | None

    @property
    def span(self) -> int:
        """Frames of the film from the first to the last of a clip."""
        return (self.frames - 1) * self.stride + 1

    def starts(self, length: int) -> list[int]:
        """The first frames of the clips of a film."""
        fit = (length - self.span) // (self.frames * self.stride) + 1 if length >= self.span else 0
        if self.clips is None or fit <= self.clips:
            return [i * self.frames * self.stride for i in range(fit)]
        return [round(i * (length - self.span) / max(self.clips - 1, 1)) for i in range(self.clips)]

    def clips_of(self, lengths: Sequence[int]) -> list[tuple[int, int]]:
        """Number of the film and first frame of each clip, film by film."""
        return [(number, start) for number, length in enumerate(lengths) for start in self.starts(length)]

    def unused(self, lengths: Sequence[int]) -> int:
        """Frames of films that no clip holds, those aside that a stride steps over."""
        used = [
            {at for start in self.starts(n) for at in range(start, start + self.frames * self.stride)} for n in lengths
        ]
        return sum(length - len(held & set(range(length))) for length, held in zip(lengths, used, strict=True))


class Videos(Pictures):
    """Clips that are decoded when asked for, in worker processes."""

    def __init__(
        self,
        films: Films,
        lengths: dict[str, int],
        cut: Cut,
        reading: Reading,
        size: Size,
        fps: float | None,
        workers: int,
    ) -> None:
        """Args: lengths: Frames of each film, by its name; see `video_folder` for the others."""
        self.cut, self.films, self.lengths = cut, films, lengths
        of_films = labelled(films, None)
        self.clips = cut.clips_of(list(lengths.values()))
        numbers = [of_films.numbers[film] for film, _ in self.clips]
        self.reader = Reader(films, cut)
        super().__init__(films, Labelled(of_films.classes, numbers, of_films.notes), reading, size, workers)
        self.names = [films.names[film] for film, _ in self.clips]
        self.groups = torch.tensor([film for film, _ in self.clips])
        rate = fps or films.films[films.names[0]].fps()
        rate = fps or (rate / cut.stride if rate else 8.0)
        self.kind = Clips(background=reading.background, range=reading.range, fps=min(max(rate, 0.1), 240.0))
        self.stored = (cut.frames, reading.channels, self.height, self.width)
        sides = (reading.channels, cut.frames, self.height, self.width)
        self.shape = DataShape(sides, len(self.classes))

    def __len__(self) -> int:
        return len(self.clips)

    def _read(self, entry: int) -> tuple[Tensor, Seen]:
        film, start = self.clips[entry]
        return self.reader.read(self.films.names[film], start, self.reading, self.wanted)

    def _keep(self, entries: list[int]) -> None:
        super()._keep(entries)
        self.clips = [self.clips[entry] for entry in entries]

    def _first_size(self) -> tuple[int, int]:
        pixels, _ = self._read(0)
        return pixels.shape[-2], pixels.shape[-1]

    def _all(self, stored: Tensor, labels: Tensor) -> InMemory:
        return InMemory(stored, labels, self.classes, self.kind)

    def _doubts(self, some: Tensor, looked_at: int | None = None) -> list[str]:
        gaps = self.films.gaps
        told = [f"the numbers of the frames leave some out in {gaps} folders: they are read as if none were missing"]
        return [*super()._doubts(some.flatten(0, 1), looked_at), *(told if gaps else [])]

    def _found(self, seen: list[Seen]) -> str:
        cut, lengths = self.cut, list(self.lengths.values())
        every = f", every {cut.stride} frames" if cut.stride > 1 else ""
        first = survey.sizes(seen, (self.height, self.width))
        rest = cut.unused(lengths)
        parts = [f"{len(lengths):,} films give {len(self):,} clips of {cut.frames} frames{every}", first]
        parts += [f"{rest:,} of {sum(lengths):,} frames are in no clip"] if rest else []
        return "; ".join([*parts, survey.told_left_out(self.left_out)])


class Reader:
    """Frames of clips; of one film after the other each is decoded once, and little of it is kept."""

    def __init__(self, films: Films, cut: Cut) -> None:
        self.films, self.cut = films, cut
        self.open: tuple[str, int, Iterator[tuple[Tensor, Seen]]] | None = None

    def read(self, name: str, start: int, how: Reading, size: tuple[int, int] | None) -> tuple[Tensor, Seen]:
        """uint8 [T, C, H, W] of a film from a frame on, and what the first one was.

        Raises:
            UndecodableError: The film ends before, or is damaged.
            UnsuitableError: A setting is missing to read it.
        """
        film = self.films.films[name]
        at, frames = (
            self.open[1:]
            if self.open and self.open[0] == name and self.open[1] <= start
            else (0, film.frames(how, size))
        )
        self.open, found = None, list[tuple[Tensor, Seen]]()
        for number, frame in enumerate(frames, at):
            if number >= start and (number - start) % self.cut.stride == 0:
                found.append(frame)
            if len(found) == self.cut.frames:
                self.open = (name, number + 1, frames)
                break
        else:
            raise UndecodableError(f"{film.name} ends after {at + len(found)} frames, and says that it has more")
        if len({pixels.shape for pixels, _ in found}) > 1:
            raise UnsuitableError(f"{film.name} has frames of several sizes", SEVERAL)
        return torch.stack([pixels for pixels, _ in found]), found[0][1]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "open": None}
