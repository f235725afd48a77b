"""The kind of short films: how clips are stored, shown, written and read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffgen.core.errors import DataError, require
from diffgen.core.settings import check_fps
from diffgen.data import films, images
from diffgen.data.animations import animation
from diffgen.data.film import NO_VIDEOS, has_videos, mp4
from diffgen.data.kinds import KINDS, Kind, Pixels
from diffgen.data.reading import MODES, Reading

GRID_LIMIT = 64
"""Clips of an animation."""

FILM_PIXELS = 2**26
"""Of all frames of an animation; longer or larger clips are fewer, but one at least."""

STRIP = 64
"""Frames of a strip."""

LONGEST = 4096
"""Frames of a film which a task names whole."""


@KINDS.register("video")
@dataclass(frozen=True, kw_only=True)
class Clips(Kind):
    """Clips: uint8 [T, C, H, W], x0 [C, T, H, W] in [-1, 1].

    Attributes:
        background: What transparent pixels of a file are laid on.
        range: The numbers that are black and white in files that do not hold 8 bits; None where there were none.
        fps: Frames per second of the films that are written.
        stride: Every how many frames of a film were one of a training clip.
    """

    background: str = "white"
    range: tuple[float, ...] | None = None
    fps: float = 8.0
    stride: int = 1

    unit = "clips"
    short = "clips"
    axes = 4
    bounded = True
    mirrors = True
    moving = True
    shown = 32
    always = ("gif",)
    together = ("gif", "webp", "mp4", "npz")
    one_each = ("frames",)
    place = "frames"

    def __post_init__(self) -> None:
        """A checkpoint may say anything."""
        check_fps(self.fps)
        films.check_stride(self.stride)

    def channels_first(self, stored: Tensor) -> Tensor:
        """Channels before time."""
        return stored.transpose(1, 2)

    def encode(self, stored: Tensor) -> Tensor:
        """value / 127.5 - 1, channels first."""
        return self.channels_first(images.to_float(stored))

    def decode(self, x0: Tensor) -> Tensor:
        """The inverse, clipped to [0, 255]."""
        return images.to_uint8(x0).transpose(1, 2).contiguous()

    def played_at(self, fps: float) -> "Clips":
        """See `Kind`."""
        return replace(self, fps=fps)

    def show(self, examples: Tensor, labels: Sequence[int], columns: int | None = None) -> Image.Image:
        """A film strip for each clip, one below the other: time runs to the right; of long ones some frames, evenly."""
        frames = examples.shape[1]
        chosen = torch.linspace(0, frames - 1, min(frames, STRIP), dtype=torch.float64).round().long()
        return images.grid(examples[:, chosen].flatten(0, 1), columns=len(chosen))

    def array(self, examples: Tensor) -> np.ndarray:
        """uint8 [n, T, H, W, C]."""
        return examples.permute(0, 1, 3, 4, 2).numpy()

    def write(self, name: str, examples: Tensor, labels: Sequence[int], classes: Sequence[str]) -> bytes:
        """See `Kind`; `gif`, `webp` and `mp4` show the first clips side by side, as they move."""
        if name == "npz":
            return super().write(name, examples, labels, classes)
        frames = [images.grid(frame) for frame in _some(examples).unbind(1)]
        return mp4(frames, self.fps) if name == "mp4" else animation(frames, name, self.fps)

    def write_one(self, example: Tensor, path: Path) -> None:
        """A folder of numbered frames, which `dataset=video_folder` reads."""
        path.mkdir(exist_ok=True)
        for number, frame in enumerate(example):
            images.picture(frame).save(path / f"{number:04d}.png")

    def check_saves(self, names: Sequence[str]) -> None:
        """See `Kind`."""
        require("mp4" not in names or has_videos(), f"save=mp4 {NO_VIDEOS}; gif and webp need none")

    def read(self, path: str, size: tuple[int, ...]) -> Tensor:
        """The first frames of a film, resized and centre-cropped, read as the training clips were."""
        film, frames = self.film(path, size, size[1]), size[1]
        require(film.shape[1] == frames, f"{path!r} has {film.shape[1]} frames, and this model's clips have {frames}")
        return film

    def pace(self, path: str, stride: int | None = None) -> int:
        """See `Kind`; as in training, but for arrays, which hold clips and not films."""
        if stride is not None:
            films.check_stride(stride)
        return stride or (1 if films.is_array(Path(path)) else self.stride)

    def film(self, path: str, size: tuple[int, ...], first: int | None = None, stride: int | None = None) -> Tensor:
        """See `Kind`; frames are resized and centre-cropped, read as the training clips were."""
        require(size[0] in MODES, f"{path!r}: this model's clips have {size[0]} channels; films have 1, 3 or 4")
        how = Reading(size[0], self.background, self.range)
        frames = films.read(path, how, (size[2], size[3]), first or LONGEST + 1, self.pace(path, stride))
        if first is None and len(frames) > LONGEST:
            raise DataError(f"{path!r} has more than the {LONGEST:,} frames that are read of a film: cut out a part")
        return self.encode(frames[None])[0]

    def shade(self, path: str, size: tuple[int, ...]) -> Tensor:
        """See `Kind`; one picture for all frames, [1, 1, H, W]."""
        still = Pixels(background=self.background, range=self.range)
        return still.shade(path, (size[0], *size[2:]))[:, None]

    def mirror(self, stored: Tensor, chosen: Tensor) -> Tensor:
        """Left and right swapped, in the whole clip."""
        return torch.where(chosen[:, None, None, None, None], stored.flip(-1), stored)


def _some(clips: Tensor) -> Tensor:
    """The first clips, as many as an animation may show."""
    _, frames, _, height, width = clips.shape
    each = frames * height * width * images.enlargement(height) ** 2
    return clips[: max(1, min(GRID_LIMIT, FILM_PIXELS // each))]
