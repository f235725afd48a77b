"""Pictures in files as a data set: any size and channels, classes from sub-folders or a file of labels, or none."""

import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffgen.core.errors import DataError, UsageError, require
from diffgen.data import survey
from diffgen.data.base import DATASETS, RESIDENT_BYTES, Images, InMemory, Source, Stored
from diffgen.data.kinds import Kind, Pixels
from diffgen.data.labels import Labelled, labelled
from diffgen.data.places import Folder, LeftOut, Place, Zip
from diffgen.data.reading import Reading, Seen, UndecodableError, UnsuitableError
from diffgen.nets.base import DataShape

FEW = 256  # pictures that are decoded faster than workers start
CHUNK = 2**26  # bytes of 64 pictures, or fewer, that a worker decodes at a time
LOOKED_AT = 256  # pictures of a set too large to be decoded at the start

RESIZE = "set dataset.size to resize and crop them all"

Undecodable = Literal["refuse", "skip"]
Size = int | tuple[int, ...] | None
Item = tuple[Tensor, int, Seen] | DataError
"""Pixels uint8 [C, H, W], label, what the picture was; a fault as a value, since workers lose exceptions' texts."""


class Decoded(NamedTuple):
    """Some pictures, as a worker hands them over.

    Attributes:
        stored: Those that could be read.
        seen: What they were.
        faults: What is wrong with the others, and which they are of these.
    """

    stored: Stored
    seen: list[Seen]
    faults: dict[int, DataError]

    def check(self, *, skip: bool = False) -> None:
        """Raise the first fault; with `skip` those of files that are no whole pictures are none."""
        for fault in self.faults.values():
            if not (skip and isinstance(fault, UndecodableError)):
                raise fault


@DATASETS.register("image_folder")
def image_folder(
    *,
    root: str | None,
    size: Size,
    channels: int,
    labels: str | None,
    background: str,
    range: tuple[float, ...] | None,
    undecodable: Undecodable,
    max_pixels: int,
    workers: int,
) -> Source:
    """Pictures below `root`.

    Args:
        root: The folder, or a zip file of one. Sub-folders are the classes; without them there are none.
        size: Height (and width, if different) to resize and centre-crop to; null takes the pictures' own size, which
            must then be the same for all.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA); pictures are converted.
        labels: A file of labels, which then come from there alone; see `diffgen.data.labels`.
        background: What transparent pixels are laid on, unless there are 4 channels.
        range: [black, white] of pictures that hold floats, or whole numbers of more than 8 bits.
        undecodable: What becomes of files that are no whole pictures: the set is refused, or they are left out and
            listed.
        max_pixels: A larger picture is refused.
        workers: Processes that decode.

    Raises:
        DataError: The folder is missing or empty, or a picture cannot be read (the sentence names it).
    """
    reading = Reading(channels, background, range, max_pixels)
    if root is None:
        raise UsageError("root is missing: dataset.root=FOLDER names the folder of pictures")
    place = place_of(root)
    check_some(place, f"dataset.root={root!r}")
    return opened(place, labelled(place, labels), reading, size, undecodable, workers)


def check_some(place: Place, what: str) -> None:
    """Require that there are pictures; `what` names the setting for the sentence."""
    if not place.names:
        raise DataError(f"{what} holds no pictures ({survey.told_left_out(place.left_out)})")


def opened(
    place: Place, labelled: Labelled, reading: Reading, size: Size, undecodable: Undecodable, workers: int
) -> Source:
    """The pictures of a place with their labels, in memory if they fit."""
    require(0 <= workers <= 256, f"workers={workers} must be in [0, 256]")
    pictures = Pictures(place, labelled, reading, size, workers)
    return pictures.read(skip=undecodable == "skip")


def place_of(root: str) -> Place:
    """A folder or a zip file.

    Raises:
        DataError: It is neither.
    """
    path = Path(root)
    if path.is_dir():
        return Folder(path)
    if path.is_file() and path.suffix.lower() == ".zip":
        return Zip(path)
    raise DataError(f"dataset.root={root!r} is not a folder; it must hold pictures, or one sub-folder a class")


class Pictures(Source, Dataset[Item]):
    """Pictures that are decoded when asked for, in worker processes."""

    what = "pictures"
    """What its examples are called."""

    def __init__(self, place: Place, labelled: Labelled, reading: Reading, size: Size, workers: int) -> None:
        """See `image_folder`."""
        self.place, self.reading, self.workers = place, reading, workers
        self.names, self.left_out = place.names, tuple(place.left_out)
        self.classes, self.labels, self.notes = labelled
        self.home = f"streamed by {workers} workers" if workers else "streamed by the main process"
        self.wanted = sides(size)
        self.height, self.width = self.wanted or self._first_size()
        self.kind: Kind = Pixels(background=reading.background, range=reading.range)
        self.shape = DataShape((reading.channels, self.height, self.width), len(self.classes))
        self.stored: tuple[int, ...] = self.shape.size

    def _first_size(self) -> tuple[int, int]:
        """The size of the first picture that can be decoded."""
        fault: UndecodableError | None = None
        for entry in range(len(self)):
            try:
                pixels, _ = self._read(entry)
                return pixels.shape[-2], pixels.shape[-1]
            except UndecodableError as error:
                fault = fault or error
        raise fault or DataError(f"{self.place.title} holds no {self.what}")

    def _read(self, entry: int) -> tuple[Tensor, Seen]:
        name = self.names[entry]
        return self.reading.read(self.place.open(name), self.place.called(name), self.wanted)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, entry: int) -> Item:
        """See `Item`."""
        try:
            pixels, seen = self._read(entry)
        except DataError as error:
            return error
        if pixels.shape[-2:] == (self.height, self.width):
            return pixels, self.labels[entry], seen
        own, others = ("x".join(map(str, size)) for size in (pixels.shape[-2:], (self.height, self.width)))
        fact = f"{self.place.called(self.names[entry])} is {own}, others {others}"
        return UnsuitableError(fact, RESIZE)

    def _decoded(self, entries: Iterator[list[int]], workers: int, *, pin: bool = False) -> Iterator[Decoded]:
        return iter(
            DataLoader(
                self,
                batch_sampler=entries,
                num_workers=workers,
                collate_fn=_collate,
                pin_memory=pin,
                worker_init_fn=_leave_signals_to_the_main_process,
            )
        )

    def batches(self, entries: Iterator[Tensor], device: torch.device) -> Iterator[Stored]:
        """See `Source`."""
        lists = (chosen.tolist() for chosen in entries)
        for decoded in self._decoded(lists, self.workers, pin=device.type == "cuda"):
            decoded.check()
            yield Stored(*(values.to(device, non_blocking=True) for values in decoded.stored))

    def read(self, *, skip: bool) -> Source:
        """All of them, in memory if they fit; see `in_memory`."""
        return (self.in_memory if len(self) * math.prod(self.stored) <= RESIDENT_BYTES else self.streamed)(skip=skip)

    def in_memory(self, *, skip: bool) -> InMemory:
        """Decode everything once.

        Args:
            skip: Leave out and list what is no whole picture, instead of raising.
        """
        pixels = torch.empty(len(self), *self.stored, dtype=torch.uint8)
        kept, seen = list[int](), list[Seen]()
        for chosen, decoded in self._in_turn(range(len(self)), skip=skip):
            # copied at once: workers' batches hold file handles
            pixels[len(kept) : len(kept) + len(chosen)] = decoded.stored.examples
            kept += chosen
            seen += decoded.seen
        self._keep(kept)
        found = self._all(pixels[: len(kept)], torch.tensor(self.labels))
        found.left_out, found.found, found.groups = self.left_out, self._found(seen), self.groups
        found.notes = (*self.notes, *self._doubts(found.stored))
        return found

    def streamed(self, *, skip: bool) -> "Pictures":
        """Itself, after a look at some of the pictures, or at all if `skip` asks which of them are whole."""
        every = max(1, len(self) // LOOKED_AT)
        kept, seen, pixels = list[int](), list[Seen](), list[Tensor]()
        for chosen, decoded in self._in_turn(range(0, len(self), 1 if skip else every), skip=skip):
            kept += chosen
            seen += decoded.seen
            few = [i for i, entry in enumerate(chosen) if entry % every == 0]  # from all over the set
            pixels += [decoded.stored.examples[few].clone()]
        if skip:
            self._keep(kept)
        some = torch.cat(pixels)
        self.found = self._found(seen)
        self.notes = (*self.notes, *self._doubts(some, looked_at=len(some)))
        return self

    def _all(self, stored: Tensor, labels: Tensor) -> InMemory:
        return Images(stored, labels, self.classes, self.kind)

    def _doubts(self, some: Tensor, looked_at: int | None = None) -> list[str]:
        return survey.notes(some, self.classes, self.place.root, looked_at=looked_at)

    def _in_turn(self, entries: range, *, skip: bool) -> Iterator[tuple[list[int], Decoded]]:
        """Those of the entries that could be read, with what was read, decoded by workers where there are many."""
        some = min(64, max(1, CHUNK // math.prod(self.stored)))
        chunks = [list(entries[i : i + some]) for i in range(0, len(entries), some)]
        workers = 0 if len(entries) <= FEW else min(self.workers, os.cpu_count() or 1)
        for chunk, decoded in zip(chunks, self._decoded(iter(chunks), workers), strict=True):
            decoded.check(skip=skip)
            if decoded.seen:
                yield [entry for i, entry in enumerate(chunk) if i not in decoded.faults], decoded

    def _keep(self, entries: list[int]) -> None:
        """Forget all other pictures: they are left out."""
        if not entries:
            raise DataError(f"none of the {len(self)} {self.what} of {self.place.title} can be decoded")
        gone = sorted(set(range(len(self))) - set(entries))
        self.left_out = (*self.left_out, *(LeftOut(self.names[entry], "cannot be decoded") for entry in gone))
        self.groups = None if self.groups is None else self.groups[entries]
        self.names = [self.names[entry] for entry in entries]
        self.labels = [self.labels[entry] for entry in entries]

    def _found(self, seen: list[Seen]) -> str:
        return survey.found(seen, (self.height, self.width), self.reading, self.left_out, len(self))


def _collate(items: list[Item]) -> Decoded:
    good = [item for item in items if not isinstance(item, DataError)]
    faults = {i: item for i, item in enumerate(items) if isinstance(item, DataError)}
    pixels = torch.stack([item[0] for item in good]) if good else torch.empty(0, 1, 1, 1, dtype=torch.uint8)
    return Decoded(Stored(pixels, torch.tensor([item[1] for item in good])), [item[2] for item in good], faults)


def _leave_signals_to_the_main_process(worker: int) -> None:
    """Launchers signal whole groups, and the main process still needs pictures to finish its step."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        if name in signal.Signals.__members__:  # systems have different ones
            signal.signal(signal.Signals[name], signal.SIG_IGN)


def sides(size: Size) -> tuple[int, int] | None:
    """Height and width; None where pictures keep their own."""
    if size is None:
        return None
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(1 <= side <= 4096 for side in sides):
        raise UsageError(f"size={size} must be one or two whole numbers in [1, 4096], height first")
    return sides[0], sides[1]
