"""Kinds: what an example is, however it is stored, shown and written.

A kind owns everything that differs between pictures, vectors, sequences and clips. The trainer, the sampler and the
checkpoint know examples by this interface alone: nobody else asks for a number of dimensions or a type of numbers.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffgen.core.devices import layout
from diffgen.core.errors import DataError, UsageError, require
from diffgen.core.registry import Table
from diffgen.data import augment, images
from diffgen.data.reading import MODES, Reading, UnsuitableError

KINDS = Table("kind")
"""Rows are classes, called as row(**settings); a data set holds one and a checkpoint names it."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What every kind offers, and what holds unless it says otherwise: tensors of real numbers, as they are.

    Attributes:
        unit: What several examples are called.
        short: The same in a line of progress.
        axes: Number of sides of x0, if it is always the same.
        bounded: Whether x0 lies in [-1, 1], so that a sampler may clip x0_hat to it.
        textual: Whether `lines` says what examples are, and a person reads them; else `show` draws them.
        mirrors: Whether `mirror` makes examples as good as the stored ones.
        augment_labels: Numbers that describe an augmentation; 0 where there is none.
        tiled: Whether `show` puts examples side by side in columns, so that films and paths can be shown.
        judged: Whether stored examples are pictures, uint8 [C, H, W], as extractors and their metrics take.
        moving: Whether examples are films, whose frames are the second axis of x0.
        shown: How many examples `show` can lay out in one picture at most.
        one_each: What `save=` may name for a file an example, `<place>/000000.<name>`.
        place: The folder of these.
        together: What `save=` may name for a file of all examples, `samples.<name>`.
        always: Those of the latter that are written whatever is named.
    """

    unit: ClassVar[str] = "examples"
    short: ClassVar[str] = "img"
    axes: ClassVar[int | None] = None
    bounded: ClassVar[bool] = False
    textual: ClassVar[bool] = False
    mirrors: ClassVar[bool] = False
    augment_labels: ClassVar[int] = 0
    tiled: ClassVar[bool] = True
    judged: ClassVar[bool] = False
    moving: ClassVar[bool] = False
    shown: ClassVar[int] = 400
    one_each: ClassVar[tuple[str, ...]] = ()
    place: ClassVar[str] = "images"
    together: ClassVar[tuple[str, ...]] = ("npz",)
    always: ClassVar[tuple[str, ...]] = ()

    @property
    def vocabulary(self) -> int:
        """How many tokens there are where x0 is tokens, whole numbers from 0; 0 where it is real numbers."""
        return 0

    @property
    def measure(self) -> str:
        """What the loss of tokens is measured in; empty where a loss has no unit."""
        return ""

    def sized(self, size: tuple[int, ...]) -> str:
        """The size of x0 in a header: `3x32x32`, `128 characters`."""
        return "x".join(map(str, size))

    def as_tokens(self, levels: int) -> "Kind":
        """The kind of the same stored examples whose x0 is tokens.

        Args:
            levels: Values that a channel of a picture has then.

        Raises:
            UsageError: There is none.
        """
        raise UsageError(f"objective=unmask is for tokens and pictures, and the data is {self.unit}: objective=denoise")

    def as_numbers(self) -> "Kind":
        """The kind of the same stored examples whose x0 is real numbers."""
        return self

    def check(self, size: tuple[int, ...]) -> None:
        """Require a size that x0 of this kind can have.

        Raises:
            UsageError: It cannot; a checkpoint may say anything.
        """
        require(
            self.axes in (None, len(size)),
            f"data.size={list(size)} has {len(size)} sides, and {self.unit} have {self.axes}",
        )

    def channels_first(self, stored: Tensor) -> Tensor:
        """Stored examples [B, ...], with their sides in the order of x0's."""
        return stored

    def encode(self, stored: Tensor) -> Tensor:
        """Stored examples [B, ...] -> x0, float32 or, where there is a vocabulary, int64 [B, *size]."""
        return stored

    def decode(self, x0: Tensor) -> Tensor:
        """x0 of any float type, or tokens and -1 for hidden ones, [B, *size] -> examples as they are stored."""
        return x0

    def strays(self, x0: Tensor) -> Tensor:
        """Which parts of x0 stand for nothing, and are decoded as the nearest: bool [B, ...]; [B, 0] if none can."""
        return torch.zeros(len(x0), 0, dtype=torch.bool)

    def show(self, examples: Tensor, labels: Sequence[int], columns: int | None = None) -> Image.Image:
        """What a person looks at: stored examples [n, ...] on one sheet.

        Args:
            examples: As they are stored.
            labels: One each, -1 for none.
            columns: Examples in a row where that makes sense; None for a square.
        """
        raise NotImplementedError

    def played_at(self, fps: float) -> "Kind":
        """The same kind, whose films are written with so many frames per second.

        Raises:
            UsageError: Examples of this kind are no clips.
        """
        raise UsageError(f"fps={fps:g} is for clips, and this model makes {self.unit}: leave it out")

    def lines(self, examples: Tensor) -> list[str]:
        """Stored examples [n, ...] as text, one each."""
        raise NotImplementedError

    def array(self, examples: Tensor) -> np.ndarray:
        """Stored examples as `arr_0` of samples.npz."""
        return examples.numpy()

    def beside(self) -> dict[str, np.ndarray]:
        """What samples.npz holds beside examples and labels."""
        return {}

    def write(self, name: str, examples: Tensor, labels: Sequence[int], classes: Sequence[str]) -> bytes:
        """The file `samples.<name>` of all examples.

        `npz` holds `arr_0`, `arr_1`, int64 labels, -1 for none, `classes`, their names, where they have some, and what
        `beside` gives.
        """
        buffer = io.BytesIO()
        arrays = {"arr_0": self.array(examples), "arr_1": np.asarray(labels, np.int64), **self.beside()}
        np.savez(buffer, **arrays, **({"classes": np.asarray(classes, np.str_)} if classes else {}))  # type: ignore[arg-type]
        return buffer.getvalue()

    def write_one(self, example: Tensor, path: Path) -> None:
        """The file of one stored example, whose format is the path's suffix.

        Raises:
            OSError: It cannot be written.
        """
        raise NotImplementedError

    def check_saves(self, names: Sequence[str]) -> None:
        """Require what is needed to write files of these names, before anything is drawn.

        Raises:
            UsageError: It is not there.
        """

    def read(self, path: str, size: tuple[int, ...]) -> Tensor:
        """x0 [*size] of a file that a task names.

        Raises:
            UsageError: Examples of this kind are not read from files.
            DataError: The file cannot be read.
        """
        raise UsageError(f"image={path!r} is for pictures, and this model makes {self.unit}: task=generate")

    def original(self, path: str, size: tuple[int, ...]) -> Tensor:
        """A file that a task names as an example is stored, as the model reads it."""
        return self.decode(self.read(path, size)[None])[0]

    def shade(self, path: str, size: tuple[int, ...]) -> Tensor:
        """Brightness of a picture that a task names, in [0, 255], float [1, H, W] or what is broadcast to x0.

        Raises:
            UsageError: Examples of this kind are not read from files.
            DataError: The file cannot be read.
        """
        return self.decode(self.read(path, size)[None])[0].float().mean(0, keepdim=True)

    def pace(self, path: str, stride: int | None = None) -> int:
        """Every how many frames of a film that a task names is taken; `stride` if that is not None."""
        return stride or 1

    def film(self, path: str, size: tuple[int, ...], first: int | None = None, stride: int | None = None) -> Tensor:
        """x0 [C, n, H, W] of the frames of a clip that a task names.

        Args:
            path: Where it is.
            size: Of x0, but for the number of frames.
            first: So many frames from the start, or fewer where there are fewer; None: all of them.
            stride: See `pace`.

        Raises:
            UsageError: Examples of this kind are no clips.
            DataError: The file cannot be read.
        """
        raise UsageError(f"video={path!r} is for clips, and this model makes {self.unit}: task=generate")

    def template(self, text: str, mark: str, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """x0 [*size] of a text with gaps, and what of it is free, bool [*size].

        Args:
            text: What is given, or the path of a file of it.
            mark: Stands for one unknown token.
            size: Of x0.

        Raises:
            UsageError: Examples of this kind are no text, or the text does not suit them.
        """
        raise UsageError(f"text={text[:40]!r} is for text, and this model makes {self.unit}: task=generate or inpaint")

    def mirror(self, stored: Tensor, chosen: Tensor) -> Tensor:
        """Stored examples [B, ...], mirrored where chosen, bool [B]."""
        raise NotImplementedError

    def draws(self, n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Random numbers for the augmentation of n examples, each [n, ...], drawn for a global batch."""
        raise NotImplementedError

    def augment(self, x0: Tensor, draws: tuple[Tensor, ...], p: float) -> tuple[Tensor, Tensor]:
        """x0 distorted with probability p, and what was done, float [B, augment_labels]."""
        raise NotImplementedError

    def put(self, device: torch.device) -> None:
        """Move what encodes and decodes, if it is more than arithmetic."""

    def layout(self, device: torch.device) -> torch.memory_format:
        """How a network for such examples lies in memory."""
        return torch.contiguous_format


@KINDS.register("pixels")
@dataclass(frozen=True, kw_only=True)
class Pixels(Kind):
    """Pictures: uint8 [C, H, W], x0 in [-1, 1].

    Attributes:
        background: What transparent pixels of a file are laid on.
        range: The numbers that are black and white in files that do not hold 8 bits; None where there were none.
    """

    background: str = "white"
    range: tuple[float, ...] | None = None

    unit = "images"
    axes = 3
    bounded = True
    mirrors = True
    augment_labels = augment.LABELS
    judged = True
    one_each = ("png",)

    def encode(self, stored: Tensor) -> Tensor:
        """value / 127.5 - 1."""
        return images.to_float(stored)

    def decode(self, x0: Tensor) -> Tensor:
        """The inverse, clipped to [0, 255]."""
        return images.to_uint8(x0)

    def show(self, examples: Tensor, labels: Sequence[int], columns: int | None = None) -> Image.Image:
        """A grid of pictures."""
        return images.grid(examples, columns)

    def array(self, examples: Tensor) -> np.ndarray:
        """uint8 [n, H, W, C], the convention of the public ADM evaluator."""
        return examples.permute(0, 2, 3, 1).numpy()

    def write_one(self, example: Tensor, path: Path) -> None:
        """A picture file."""
        images.picture(example).save(path)

    def read(self, path: str, size: tuple[int, ...]) -> Tensor:
        """A picture, resized and centre-cropped, read as the training pictures were."""
        require(
            size[0] in MODES, f"image={path!r}: this model's images have {size[0]} channels; pictures have 1, 3 or 4"
        )
        reading = Reading(size[0], self.background, self.range)
        try:
            pixels, _ = reading.read(Path(path), path, (size[1], size[2]))
        except UnsuitableError as error:  # a task has no such setting
            raise DataError(error.fact) from None
        return images.to_float(pixels)

    def mirror(self, stored: Tensor, chosen: Tensor) -> Tensor:
        """Left and right swapped: as bytes, a fourth of the work."""
        return torch.where(chosen[:, None, None, None], stored.flip(-1), stored)

    def draws(self, n: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Gates and values of `diffgen.data.augment`."""
        return augment.draw(n, generator)

    def augment(self, x0: Tensor, draws: tuple[Tensor, ...], p: float) -> tuple[Tensor, Tensor]:
        """Non-leaky augmentation; see `diffgen.data.augment`."""
        return augment.augment(x0, augment.Draws(*draws), p)

    def layout(self, device: torch.device) -> torch.memory_format:
        """Channels last is faster on a GPU, and not on a CPU."""
        return layout(device)

    def as_tokens(self, levels: int) -> Kind:
        """Levels of brightness."""
        return Levels(background=self.background, range=self.range, levels=levels)


@KINDS.register("levels")
@dataclass(frozen=True, kw_only=True)
class Levels(Pixels):
    """The same pictures, x0 int64 [C, H, W]: each value one of some evenly spaced levels, a token.

    Attributes:
        levels: How many; with fewer than 256 a value becomes the nearest.
    """

    levels: int

    bounded = False
    augment_labels = 0

    @property
    def vocabulary(self) -> int:
        """The levels."""
        return self.levels

    @property
    def measure(self) -> str:
        """As for likelihoods of pictures."""
        return "bits/dim"

    def check(self, size: tuple[int, ...]) -> None:
        """See `Kind`; a checkpoint may say anything of its levels, too."""
        super().check(size)
        require(2 <= self.levels <= 256, f"data.kind.levels={self.levels} must be in [2, 256]")

    def encode(self, stored: Tensor) -> Tensor:
        """The nearest level."""
        return (stored * ((self.levels - 1) / 255)).round().long()

    def decode(self, x0: Tensor) -> Tensor:
        """The level's brightness, and a mean one of hidden tokens."""
        level = torch.where(x0 < 0, (self.levels - 1) / 2, x0.float())
        return (level * (255 / (self.levels - 1))).round().to(torch.uint8)

    def as_numbers(self) -> Kind:
        """Pixels."""
        return Pixels(background=self.background, range=self.range)

    def read(self, path: str, size: tuple[int, ...]) -> Tensor:
        """See `Pixels`."""
        return self.encode(images.to_uint8(super().read(path, size)))

    def layout(self, device: torch.device) -> torch.memory_format:
        """Tokens have no channels."""
        return torch.contiguous_format


@KINDS.register("vectors")
@dataclass(frozen=True, kw_only=True)
class Vectors(Kind):
    """Vectors of real numbers: float32 [D], x0 itself."""

    unit = "vectors"
    axes = 1
    tiled = False
    shown = 10_000_000

    def show(self, examples: Tensor, labels: Sequence[int], columns: int | None = None) -> Image.Image:
        """A scatter plot of the first two values, coloured by label."""
        from diffgen.core.plots import scatter

        return Image.open(io.BytesIO(scatter({"samples": (examples, torch.tensor(labels))})))
