"""Digits that move and bounce: clips that are made when asked for, whose labels and paths are known.

As in Moving MNIST (Srivastava et al. 2015), digits move with constant speed on straight lines, and walls reflect them.
Here they move by whole pixels, so that a digit is the very same on every frame. Nothing is stored but the digits; clip
number i is a function of the seed and i.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diffgen.core.errors import require
from diffgen.core.randomness import mix
from diffgen.data import mnist
from diffgen.data.base import DATASETS, Images, Source, Stored
from diffgen.data.clips import Clips
from diffgen.data.digits import digits as small_digits
from diffgen.nets.base import DataShape

FASTEST = 1 / 16
"""Sides of the frame by which a digit moves along either axis in a frame, at most."""

CLOSE = 0.75
"""Pixels by which a centre may be off a path that counts as one of the data."""

MOST_HELD_OUT = 10_000
"""Clips of the test split."""

Split = Literal["train", "test"]
Count = Literal[1, 2]


@DATASETS.register("moving_digits")
def moving_digits(*, frames: int, digits: Count, n: int, seed: int, split: Split) -> "Moving":
    """The embedded 8x8 digits, moving on 16x16; the test split has the held-out digits and other paths.

    Args:
        frames: Frames of a clip.
        digits: How many there are in a clip; clips of two have no label.
        n: Clips of an epoch.
        seed: Of the choice of digits and paths to train on.
        split: Which part.
    """
    return Moving(small_digits(split=split), Motion(16, frames, digits, n, seed), split)


@DATASETS.register("moving_mnist")
def moving_mnist(
    *, root: str, frames: int, size: Literal[32, 64], digits: Count, n: int, seed: int, split: Split
) -> "Moving":
    """MNIST's digits from the official files, moving on 32x32, where they are halved to 14x14, or on 64x64.

    Args:
        root: See `mnist.mnist`.
        frames: Frames of a clip.
        size: Side of a frame.
        digits: How many there are in a clip; clips of two have no label.
        n: Clips of an epoch.
        seed: Of the choice of digits and paths to train on.
        split: Which part.
    """
    own = mnist.mnist(root=root, split=split)
    if size == 32:
        halved = F.avg_pool2d(own.pixels.float(), 2).round().to(torch.uint8)
        own = Images(halved, own.labels, own.classes)
    return Moving(own, Motion(size, frames, digits, n, seed), split)


@dataclass(frozen=True)
class Motion:
    """How digits move: side of a frame, frames of a clip, digits in it, clips in an epoch, and the seed of all that."""

    canvas: int
    frames: int
    digits: int
    n: int
    seed: int

    def __post_init__(self) -> None:
        require(2 <= self.frames <= 256, f"frames={self.frames} must be in [2, 256]")
        require(1 <= self.n <= 100_000_000, f"n={self.n} must be in [1, 100000000]")
        require(0 <= self.seed < 2**63, f"seed={self.seed} must be in [0, 2^63)")


class Truth(NamedTuple):
    """What clips show.

    Attributes:
        labels: int64 [n, digits].
        sprites: The digits, uint8 [n, digits, side, side].
        corners: Where the upper left corner of each is, (row, column), int64 [n, T, digits, 2] in [0, room].
    """

    labels: Tensor
    sprites: Tensor
    corners: Tensor


class Moving(Source):
    """Clips of moving digits."""

    home = "made when asked for"

    def __init__(self, digits: Images, motion: Motion, split: Split) -> None:
        """Args: digits: which move; their test split for that of the clips."""
        self.digits, self.motion, self.split = digits, motion, split
        self.side = digits.shape.height
        self.room, self.fastest = motion.canvas - self.side, round(FASTEST * motion.canvas)
        self.classes = digits.classes if motion.digits == 1 else ()
        self.kind: Clips = Clips()
        self.shape = DataShape((1, motion.frames, motion.canvas, motion.canvas), len(self.classes))
        told = f"{motion.digits} of {len(digits):,} digits of {self.side}x{self.side} in each"
        self.found = f"{len(self):,} clips of {motion.frames} frames of {motion.canvas}x{motion.canvas}, {told}"

    def __len__(self) -> int:
        return self.motion.n if self.split == "train" else min(self.motion.n, MOST_HELD_OUT)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the digits and of how they move, in hex."""
        return hashlib.sha256(f"{self.digits.digest} {self.motion} {self.split}".encode()).hexdigest()

    def truth(self, entries: Tensor) -> Truth:
        """What the clips of these numbers, int64 [n], show."""
        count, seed = self.motion.digits, self.motion.seed if self.split == "train" else 0
        steps = torch.cartesian_prod(*[torch.arange(-self.fastest, self.fastest + 1)] * 2)
        steps = steps[steps.any(1)]  # those that go somewhere
        u, rng = torch.empty(len(entries), count, 4, dtype=torch.float64), torch.Generator()  # one for all: it is slow
        for row, entry in zip(u, entries.tolist(), strict=True):
            row.uniform_(generator=rng.manual_seed(mix(seed, f"moving {self.split}", entry)))
        which, step = ((u[..., i] * choices).long() for i, choices in enumerate((len(self.digits), len(steps))))
        start = (u[:, None, :, 2:] * (self.room + 1)).long()
        corners = reflected(start + steps[step][:, None] * torch.arange(self.motion.frames)[:, None, None], self.room)
        return Truth(self.digits.labels[which], self.digits.pixels[which, 0], corners)

    def straight(self, clips: Tensor) -> Tensor | None:
        """See `Source`: whether the centre of what is seen keeps to a path of the data, on the root mean square.

        What stands still is no path: of few frames a bounce is near to it. Where in a digit its centre is, is not
        asked; of clips of two digits nothing is told.
        """
        if self.motion.digits > 1:
            return None
        phases, steps = torch.arange(2 * self.room), torch.arange(self.fastest + 1)
        time = torch.arange(clips.shape[1])
        paths = reflected(phases[:, None] + steps[:, None, None] * time, self.room).double()
        away = centres(clips).double().transpose(1, 2)[:, :, None, None] - paths  # [n, axes, steps, phases, T]
        rows, columns = away.var(-1, correction=0).amin(-1).unbind(1)  # the mean is where in the digit its centre is
        off = (rows[:, :, None] + columns[:, None]).flatten(1)  # [n, steps x steps], the first of which stands still
        moving = off[:, 1:].amin(1)
        return (moving.sqrt() < CLOSE) & (moving < off[:, 0])

    def batches(self, entries: Iterator[Tensor], device: torch.device) -> Iterator[Stored]:
        """See `Source`."""
        for some in entries:
            truth = self.truth(some.cpu())
            labels = truth.labels[:, 0] if self.classes else torch.full((len(some),), -1)
            sprites, corners, labels = (_sent(each, device) for each in (truth.sprites, truth.corners, labels))
            yield Stored(drawn(sprites, corners, self.motion.canvas)[:, :, None], labels)


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """The same on a device, which a GPU takes while the host goes on."""
    pinned = torch.empty(values.shape, dtype=values.dtype, pin_memory=device.type == "cuda").copy_(values)
    return pinned.to(device, non_blocking=True)


def reflected(place: Tensor, room: int) -> Tensor:
    """Where something is that moves on a line between two walls, at 0 and `room`, had there been none: a triangle."""
    return room - (place.remainder(2 * room) - room).abs()


def centres(clips: Tensor) -> Tensor:
    """Centroid of the brightness of each frame, (row, column) in pixels, float [n, T, 2]; the middle of black ones."""
    frames = clips.float().mean(2)
    weight = frames.sum((-2, -1), keepdim=True)
    share = torch.where(weight > 0, frames / weight.clamp(min=1e-9), 1 / (frames.shape[-1] * frames.shape[-2]))
    places = [torch.arange(side, device=clips.device, dtype=share.dtype) for side in frames.shape[-2:]]
    return torch.stack([(share.sum(-1) * places[0]).sum(-1), (share.sum(-2) * places[1]).sum(-1)], -1)


def drawn(sprites: Tensor, corners: Tensor, canvas: int) -> Tensor:
    """Frames of sprites at their places; where they overlap, the brighter one.

    Args:
        sprites: uint8 [n, digits, side, side].
        corners: int64 [n, T, digits, 2], (row, column) in [0, canvas - side].
        canvas: Side of a frame.

    Returns:
        uint8 [n, T, canvas, canvas].
    """
    side, pixels = sprites.shape[-1], torch.arange(canvas, device=sprites.device)
    rows, columns = (pixels - corner[..., None] for corner in corners.unbind(-1))  # of the sprite, at each pixel
    edged = F.pad(sprites, (1, 1, 1, 1))[:, None].expand(-1, corners.shape[1], -1, -1, -1)
    rows, columns = ((place + 1).clamp(0, side + 1) for place in (rows, columns))
    found = edged.gather(-2, rows[..., None].expand(*rows.shape, side + 2))
    return found.gather(-1, columns[..., None, :].expand(*found.shape[:-1], canvas)).amax(2)
