"""Films in files as a data set of clips: all of one length and size, classes from sub-folders, or none."""

import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from diffgen.core.errors import DataError, UsageError, require
from diffgen.core.settings import check_fps
from diffgen.data import survey
from diffgen.data.base import DATASETS, InMemory, Source
from diffgen.data.clips import Clips
from diffgen.data.film import Film, Frame
from diffgen.data.films import Films, check_stride
from diffgen.data.labels import Labelled, labelled
from diffgen.data.pictures import RESIZE, Decoded, Pictures, Size, Undecodable
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
    check_stride(stride)
    require(clips is None or clips >= 1, f"clips={clips} must be at least 1, or null")
    if fps is not None:
        check_fps(fps)
    require(0 <= workers <= 256, f"workers={workers} must be in [0, 256]")
    reading = Reading(channels, background, range, max_pixels)
    if root is None:
        raise UsageError("root is missing: dataset.root=FOLDER names the folder of films")
    if not Path(root).is_dir():
        zipped = "; unpack a zip of films" if Path(root).is_file() else ""
        raise DataError(f"dataset.root={root!r} is not a folder; it must hold films, or one sub-folder a class{zipped}")
    cut = Cut(frames, stride, clips)
    place = Films(Path(root))
    whole = place.lengths(cut.span, skip=undecodable == "skip")
    if not whole:
        told = f"no films of {cut.span} frames or more ({survey.told_left_out(place.left_out)})"
        raise DataError(f"dataset.root={root!r} holds {told}")
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
        fit = (length - self.span) // self.step + 1
        if self.clips is None or fit <= self.clips:
            return [i * self.step for i in range(fit)]
        return [round(i * (length - self.span) / max(self.clips - 1, 1)) for i in range(self.clips)]

    @property
    def step(self) -> int:
        """Frames of the film from a clip to the next."""
        return self.frames * self.stride


class Videos(Pictures):
    """Clips that are decoded when asked for, in worker processes."""

    what = "clips"

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
        of_films = labelled(films, None)
        self.films, self.lengths, self.cut, self.reader = films, lengths, cut, Reader(cut)
        self.clips = [(film, start) for film in films.names for start in cut.starts(lengths[film])]
        numbers = {film: number for number, film in enumerate(films.names)}
        own = [of_films.numbers[numbers[film]] for film, _ in self.clips]
        super().__init__(films, Labelled(of_films.classes, own, of_films.notes), reading, size, workers)
        self.names = [film for film, _ in self.clips]
        self.groups = torch.tensor([numbers[film] for film, _ in self.clips])
        self.kind = Clips(background=reading.background, range=reading.range, fps=fps or self._fps(), stride=cut.stride)
        self.stored = (cut.frames, reading.channels, self.height, self.width)
        sides = (reading.channels, cut.frames, self.height, self.width)
        self.shape = DataShape(sides, len(self.classes))

    def _fps(self) -> float:
        """Of the first film, as far as it says."""
        rate = self.films.films[self.films.names[0]].fps(self.reading)
        return max(rate / self.cut.stride, 0.1) if rate else 8.0

    def __len__(self) -> int:
        return len(self.clips)

    def _read(self, entry: int) -> tuple[Tensor, Seen]:
        film, start = self.clips[entry]
        return self.reader.read(self.films.films[film], start, self.reading, self.wanted)

    def _decoded(self, entries: Iterator[list[int]], workers: int, *, pin: bool = False) -> Iterator[Decoded]:
        """Workers are forked: one that closed a film of this process would wait for threads that it has not."""
        self.reader.close()
        return super()._decoded(entries, workers, pin=pin)

    def _keep(self, entries: list[int]) -> None:
        self.names = [f"{film} from frame {start}" for film, start in self.clips]  # the others are left out by these
        super()._keep(entries)
        self.clips = [self.clips[entry] for entry in entries]

    def _all(self, stored: Tensor, labels: Tensor) -> InMemory:
        return InMemory(stored, labels, self.classes, self.kind)

    def _doubts(self, some: Tensor, looked_at: int | None = None) -> list[str]:
        return [*super()._doubts(some.flatten(0, 1), looked_at), *self.films.doubts(), *self._alone()]

    def _alone(self) -> list[str]:
        """Classes of one film each are most likely folders of films, one for each."""
        films = {(film, label) for (film, _), label in zip(self.clips, self.labels, strict=True)}
        if len(self.classes) < 2 or len(films) > len(self.classes):
            return []
        alone = f"each of the {len(self.classes)} classes holds one film"
        return [f"{alone}: films that are of no class lie in dataset.root itself, without sub-folders"]

    def _found(self, seen: list[Seen]) -> str:
        films, total = len({film for film, _ in self.clips}), sum(self.lengths.values())
        rest = total - sum(min(self.cut.step, self.lengths[film] - start) for film, start in self.clips)
        clips = f"{survey.several(len(self), 'clip')} of {self.cut.frames} frames{survey.looked(seen, len(self))}"
        every = f", each {self.cut.stride} after the other" if self.cut.stride > 1 else ""
        first = f"{survey.several(films, 'film')} give{'s' * (films == 1)} {clips}{every}"
        parts = [survey.sizes(seen, (self.height, self.width)), *survey.colours(seen, self.reading)]
        parts += [f"{rest:,} of {total:,} frames are in no clip"] if rest else []
        return "; ".join([first, *parts, survey.told_left_out(self.left_out)])


class Opened(NamedTuple):
    """A film that was read up to a frame, by a process: one forked from it would share its place in the file."""

    film: Film
    at: int
    frames: Generator[Frame]
    process: int


class Reader:
    """Frames of clips; the clips of a film, one after the other, decode it once, and little of it is kept."""

    def __init__(self, cut: Cut) -> None:
        """Args: cut: how films become clips."""
        self.cut = cut
        self.opened: Opened | None = None

    def read(self, film: Film, start: int, how: Reading, size: tuple[int, int] | None) -> tuple[Tensor, Seen]:
        """uint8 [T, C, H, W] of a film from a frame on, and what the first one was.

        Raises:
            UndecodableError: The film ends before, or is damaged.
            UnsuitableError: A setting is missing to read it.
        """
        at, frames = self._from(film, start, how, size)
        try:
            at, found = self._clip(film, start, at, frames)
        except DataError:
            frames.close()
            raise
        self.opened = Opened(film, at, frames, os.getpid())
        return torch.stack([pixels for pixels, _ in found]), _together([seen for _, seen in found])

    def close(self) -> None:
        """Leave no film open; one that another process opened is its own."""
        opened, self.opened = self.opened, None
        if opened and opened.process == os.getpid():
            opened.frames.close()

    def _clip(self, film: Film, start: int, at: int, frames: Iterator[Frame]) -> tuple[int, list[tuple[Tensor, Seen]]]:
        """The frames of a clip, from those of a film that go on at a number, and where they go on now."""
        found = list[tuple[Tensor, Seen]]()
        for number, frame in enumerate(frames, at):
            if number >= start and (number - start) % self.cut.stride == 0:
                found.append(frame())
            if len(found) == self.cut.frames:
                break
        else:
            raise UndecodableError(f"{film.name} has fewer frames than it says")
        if len({pixels.shape for pixels, _ in found}) > 1:
            raise UnsuitableError(f"{film.name} has frames of several sizes", RESIZE)
        return number + 1, found

    def _from(self, film: Film, start: int, how: Reading, size: tuple[int, int] | None) -> tuple[int, Generator[Frame]]:
        """Where a film is open, if that is not too far, and its frames from there."""
        before = self.opened
        if before and before.film is film and before.at <= start and before.process == os.getpid():
            self.opened = None
            return before.at, before.frames
        self.close()
        return 0, film.frames(how, size)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "opened": None}


def _together(seen: list[Seen]) -> Seen:
    """What the frames of a clip were, as one."""
    others = frozenset(each.size for each in seen) - {seen[0].size}
    return seen[0]._replace(transparent=any(each.transparent for each in seen), others=others)
