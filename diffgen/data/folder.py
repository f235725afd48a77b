"""A folder of pictures: any size and channels, classes from its sub-folders or none."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffgen.core.errors import DataError, UsageError, require
from diffgen.data.base import DATASETS, Images, Source, Stored
from diffgen.data.images import MODES, eight_bit
from diffgen.data.kinds import Pixels
from diffgen.nets.base import DataShape

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
RESIDENT_BYTES = 2 * 2**30  # decoded sets up to this size are kept in memory and decoded once
FEW = 256  # pictures that are decoded faster than workers start


@DATASETS.register("image_folder")
def image_folder(
    *, root: str | None, size: int | tuple[int, ...] | None, channels: int, workers: int
) -> "Images | Folder":
    """Pictures below `root`.

    Args:
        root: The folder. Its sub-folders, sorted by name, are the classes; without sub-folders there are none.
        size: Height (and width, if different) to resize and centre-crop to; null takes the pictures' own size, which
            must then be the same for all.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA); pictures are converted.
        workers: Processes that decode.

    Raises:
        DataError: The folder is missing or empty, or a picture cannot be decoded (the sentence names it).
    """
    require(channels in MODES, f"channels={channels} must be one of [1, 3, 4]")
    require(0 <= workers <= 256, f"workers={workers} must be in [0, 256]")
    folder = Folder(_existing(root), size, channels, workers)
    return folder.in_memory() if folder.nbytes <= RESIDENT_BYTES else folder


def _existing(root: str | None) -> Path:
    if root is None:
        raise UsageError("root is missing: dataset.root=FOLDER names the folder of pictures")
    if not Path(root).is_dir():
        raise DataError(f"dataset.root={root!r} is not a folder; it must hold pictures, or one sub-folder a class")
    return Path(root)


class Folder(Source, Dataset[tuple[Tensor, int] | DataError]):
    """Pictures that are decoded when asked for, in worker processes."""

    def __init__(self, root: Path, size: int | tuple[int, ...] | None, channels: int, workers: int) -> None:
        """List the pictures; see `image_folder`."""
        self.paths = sorted(p for p in root.rglob("*") if _is_picture(p, root))
        if not self.paths:
            raise DataError(f"dataset.root={str(root)!r} holds no pictures ({', '.join(sorted(SUFFIXES))})")
        parts = [path.relative_to(root).parts for path in self.paths]
        labelled = any(len(part) > 1 for part in parts)
        loose = [path for path, part in zip(self.paths, parts, strict=True) if len(part) == 1]
        if labelled and loose:
            raise DataError(
                f"{loose[0]} stands beside sub-folders of pictures, which are the classes: move it into one"
            )
        self.classes = tuple(sorted({part[0] for part in parts})) if labelled else ()
        self.labels = [self.classes.index(part[0]) if labelled else -1 for part in parts]
        self.mode, self.workers = MODES[channels], workers
        self.home = f"streamed by {workers} workers" if workers else "streamed by the main process"
        self.height, self.width = self._size(size)
        self.kind = Pixels()
        self.shape = DataShape((channels, self.height, self.width), len(self.classes))
        self.nbytes = len(self) * channels * self.height * self.width

    def _size(self, size: int | tuple[int, ...] | None) -> tuple[int, int]:
        self.crop = size is not None
        if size is None:
            with _opened(self.paths[0]) as picture:
                return picture.height, picture.width
        sides = (size, size) if isinstance(size, int) else tuple(size)
        if len(sides) != 2 or not all(1 <= side <= 4096 for side in sides):
            raise UsageError(f"size={size} must be one or two whole numbers in [1, 4096], height first")
        return sides[0], sides[1]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, entry: int) -> tuple[Tensor, int] | DataError:
        """Pixels uint8 [C, H, W] and label; an error as a value, since workers lose the text of exceptions."""
        try:
            return self._decode(self.paths[entry]), self.labels[entry]
        except DataError as error:
            return error

    def _decode(self, path: Path) -> Tensor:
        with _opened(path) as opened:
            picture = eight_bit(opened, self.mode)
        if self.crop:
            picture = ImageOps.fit(picture, (self.width, self.height), Image.Resampling.LANCZOS)
        if picture.size != (self.width, self.height):
            found = f"{picture.height}x{picture.width}, others {self.height}x{self.width}"
            raise DataError(f"{path} is {found}: set dataset.size to resize and crop them all")
        pixels = np.asarray(picture).reshape(self.height, self.width, -1)
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy())

    def _decoded(self, entries: Iterator[list[int]], workers: int, *, pin: bool = False) -> Iterator[Stored]:
        loader = DataLoader(
            self,
            batch_sampler=entries,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=pin,
            worker_init_fn=_leave_signals_to_the_main_process,
        )
        for batch in loader:
            if isinstance(batch, DataError):
                raise batch
            yield batch

    def batches(self, entries: Iterator[Tensor], device: torch.device) -> Iterator[Stored]:
        """See `Source`."""
        lists = (chosen.tolist() for chosen in entries)
        for pixels, labels in self._decoded(lists, self.workers, pin=device.type == "cuda"):
            yield Stored(pixels.to(device, non_blocking=True), labels.to(device, non_blocking=True))

    def in_memory(self) -> Images:
        """Decode everything once."""
        chunks = (list(range(i, min(i + 64, len(self)))) for i in range(0, len(self), 64))
        workers = 0 if len(self) <= FEW else min(self.workers, os.cpu_count() or 1)
        pixels = torch.empty(len(self), self.shape.channels, self.height, self.width, dtype=torch.uint8)
        labels, start = torch.empty(len(self), dtype=torch.long), 0
        for some, their_labels in self._decoded(chunks, workers):  # copied at once: workers' batches hold file handles
            end = start + len(some)
            pixels[start:end], labels[start:end], start = some, their_labels, end
        return Images(pixels, labels, self.classes)


def _leave_signals_to_the_main_process(worker: int) -> None:
    """Launchers signal whole groups, and the main process still needs pictures to finish its step."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)


def _is_picture(path: Path, root: Path) -> bool:
    """Whether it looks like one; hidden files and folders are other programs' notes."""
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return not hidden and path.suffix.lower() in SUFFIXES and path.is_file()


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The picture, upright: cameras note how they were held."""
    try:
        with Image.open(path) as picture:
            ImageOps.exif_transpose(picture, in_place=True)
            yield picture
    except DataError:
        raise
    except Exception as error:  # decoders raise anything on damaged files
        raise DataError(f"{path} cannot be decoded: {error}") from None


def _collate(items: list[tuple[Tensor, int] | DataError]) -> Stored | DataError:
    for item in items:
        if isinstance(item, DataError):
            return item
    pixels, labels = zip(*items, strict=True)
    return Stored(torch.stack(pixels), torch.tensor(labels))
