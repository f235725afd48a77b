"""From a file to pixels: the one reader of pictures, for data sets and for what a task names."""

import io
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageColor, ImageFile, ImageOps
from torch import Tensor

from diffgen.core.errors import DataError, require
from diffgen.data.unbounded import UNBOUNDED

MODES = {1: "L", 3: "RGB", 4: "RGBA"}

NEVER = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
"""Formats for which Pillow would start another program, or that it knows by name alone."""

SIGNED = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "JPEG2000", "AVIF", "BMP")
"""Formats that are known by their first bytes, whatever the file is called."""

PNG = b"\x89PNG\r\n\x1a\n"
NOTES = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
"""Chunks of a PNG that Pillow bounds in size, and that no pixel depends on here."""

DEEPEST = 65535
MAX_PIXELS = 178_956_970
"""Of one picture: half a gigabyte of RGB, where Pillow begins to fear an attack."""

RANGE = "dataset.range=[{:g},{:g}], say, tells which of them are black and white"
LARGER = "raise dataset.max_pixels if it is meant"


class UndecodableError(DataError):
    """A file is no whole picture."""


class UnsuitableError(DataError):
    """A picture is whole, and a setting of its data set is missing to read it."""

    def __init__(self, fact: str, advice: str) -> None:
        """Args: fact: what is the matter; advice: which setting helps, for who has a data set."""
        super().__init__(fact, advice)
        self.fact = fact

    def __str__(self) -> str:
        """Both in a sentence."""
        return ": ".join(self.args)


class Seen(NamedTuple):
    """What a picture was before it was read.

    Attributes:
        mode: Pillow's name of its channels, L, RGB, P, I;16, ...
        size: Height and width.
        transparent: Whether something shines through, and was laid on the background.
        frames: Whether there are several, of which the first was read.
        others: Sizes of further frames of a clip, where they are not that of the first.
    """

    mode: str
    size: tuple[int, int]
    transparent: bool
    frames: bool
    others: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True)
class Reading:
    """How pictures become pixels.

    Attributes:
        channels: 1 (grey), 3 (RGB) or 4 (RGBA); pictures are converted.
        background: The colour that transparent pixels are laid on, a name or #rrggbb.
        range: The numbers that are black and white, in pictures that do not hold 8 bits; None where none do.
        max_pixels: A larger picture is refused before it takes memory.
    """

    channels: int
    background: str = "white"
    range: tuple[float, ...] | None = None
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        require(self.channels in MODES, f"channels={self.channels} must be one of [1, 3, 4]")
        require(
            is_colour(self.background), f"background={self.background!r} must be a colour: white, black or '#8080ff'"
        )
        check_range(self.range)
        require(self.max_pixels >= 1, f"max_pixels={self.max_pixels} must be at least 1")

    def read(self, file: Path | bytes, name: str, size: tuple[int, int] | None) -> tuple[Tensor, Seen]:
        """The pixels of a picture, upright: cameras note how they were held.

        Args:
            file: Its path, or what the file holds.
            name: What sentences call it.
            size: Height and width to resize and centre-crop to; None keeps the picture's own.

        Returns:
            uint8 [channels, H, W], and what the picture was.

        Raises:
            UndecodableError: It is no whole picture.
            DataError: Its values have no known range, or it is too large.
        """
        with faults(name):
            return self.told(self._loaded(file, name), name, size)

    def told(self, loaded: "Loaded", name: str, size: tuple[int, int] | None) -> tuple[Tensor, Seen]:
        """The same of what is decoded already, as a frame of a film."""
        picture, seen = self._told(loaded, name)
        return _pixels(picture, size), seen

    def check_size(self, height: int, width: int, name: str) -> None:
        """Require no more pixels than there may be, before they take memory."""
        if width * height > self.max_pixels:
            raise UnsuitableError(f"{name} has {height:,} x {width:,} pixels, more than {self.max_pixels:,}", LARGER)

    def _loaded(self, file: Path | bytes, name: str) -> "Loaded":
        try:
            return self._load(file, name)
        except ValueError:
            data = file.read_bytes() if isinstance(file, Path) else file
            if not data.startswith(PNG):
                raise
            return self._load(without_notes(data), name)

    def _load(self, file: Path | bytes, name: str) -> "Loaded":
        with UNBOUNDED, Image.open(file if isinstance(file, Path) else io.BytesIO(file), formats=formats()) as image:
            self.check_size(image.height, image.width, name)
            frames = image.format != "MPO" and getattr(image, "n_frames", 1) > 1  # phones add a second picture
            return loaded(image, frames=frames)

    def _told(self, loaded: "Loaded", name: str) -> tuple[Image.Image, Seen]:
        """The picture in our channels, and what it was."""
        image, shows = loaded.image, False
        mode, size = image.mode, (image.height, image.width)
        if mode[0] in "IF":
            image = _of_numbers(image, self.range or loaded.range, name)
        elif self.range and mode != "1":  # which is black and white alone
            image = _stretched(image, self.range, name)
        if image.has_transparency_data and self.channels != 4:
            image, shows = _laid(image, self.background)
        picture = image.convert(MODES[self.channels])
        if loaded.deep:
            _check_deep(picture, self.range, name)
        return picture, Seen(mode, size, shows, loaded.frames)


def _pixels(picture: Image.Image, size: tuple[int, int] | None) -> Tensor:
    if size and picture.size != size[::-1]:
        picture = ImageOps.fit(picture, size[::-1], Image.Resampling.LANCZOS)
    pixels = np.asarray(picture).reshape(picture.height, picture.width, -1)
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


@contextmanager
def faults(name: str) -> Iterator[None]:
    """Say in a sentence what a decoder raises.

    Raises:
        UndecodableError: For all but what a disk, or memory, is at fault for.
        DataError: For a disk.
    """
    try:
        yield
    except (DataError, MemoryError):
        raise
    except OSError as error:  # a disk's has a number, a decoder's has none
        if error.errno:
            raise DataError(f"{name} cannot be read: {error.strerror}") from None
        raise UndecodableError(f"{name} cannot be decoded: {error}") from None
    except Exception as error:  # decoders raise anything on damaged files
        raise UndecodableError(f"{name} cannot be decoded: {getattr(error, 'strerror', None) or error}") from None


# --- decoding -----------------------------------------------------------------------------------------------------


@cache
def formats() -> list[str]:
    """What Pillow can read here, without starting another program; the usual ones are tried first."""
    Image.init()
    usual = [kind for kind in SIGNED if kind in Image.OPEN]
    return [*usual, *sorted(set(Image.OPEN) - NEVER - set(usual))]


@cache
def suffixes() -> set[str]:
    """Endings of files that hold pictures."""
    known = set(formats())
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in known}


def is_picture(file: Path | bytes) -> bool:
    """Whether a file holds a picture, by its first bytes; some of them are enough."""
    try:
        with Image.open(file if isinstance(file, Path) else io.BytesIO(file), formats=SIGNED):
            return True
    except Exception:  # decoders raise anything
        return False


class Loaded(NamedTuple):
    """A picture, upright.

    Attributes:
        image: The picture.
        deep: Whether its colours have more bits than Pillow keeps.
        frames: Whether it is the first of several.
        range: The numbers that are black and white, if its format says so.
    """

    image: Image.Image
    deep: bool
    frames: bool
    range: tuple[float, ...] | None


def loaded(image: ImageFile.ImageFile, *, frames: bool) -> Loaded:
    """The pixels of an open picture, or of the frame that it is at."""
    deep = image.mode[0] not in "IF" and any(";16" in str(tile) for tile in image.tile)
    image.load()
    told = (0.0, float(DEEPEST)) if image.format == "PPM" and image.mode == "I" else None  # scaled by its own white
    return Loaded(_upright(image), deep, frames, told)


def without_notes(data: bytes) -> bytes:
    """A PNG without its text and colour profile, whose size Pillow bounds; pixels count."""
    kept, at = [PNG], len(PNG)
    while at + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        end = at + 12 + length
        if kind not in NOTES:
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _upright(image: Image.Image) -> Image.Image:
    """Turned as the camera notes; a note that cannot be read turns nothing, since the pixels are whole."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # readers of metadata raise anything
        return image


# --- colours ------------------------------------------------------------------------------------------------------


def is_colour(name: str) -> bool:
    """Whether Pillow knows a colour."""
    try:
        return bool(ImageColor.getrgb(name))
    except ValueError:
        return False


def _laid(image: Image.Image, background: str) -> tuple[Image.Image, bool]:
    """A picture on a background, and whether that shows: what is hidden under transparent pixels is no picture."""
    colours = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    see_through = colours.getchannel("A").getextrema() != (255, 255)
    sheet = Image.new("RGBA", colours.size, ImageColor.getrgb(background))
    sheet.alpha_composite(colours)
    return sheet.convert("RGB"), see_through


def _of_numbers(image: Image.Image, given: tuple[float, ...] | None, name: str) -> Image.Image:
    """A picture of floats or of many bits as grey levels."""
    if image.has_transparency_data:
        raise DataError(f"{name} holds numbers of more than 8 bits, one of which is transparent: save it with alpha")
    return Image.fromarray(eight_bits(np.asarray(image), given, name))


def _stretched(image: Image.Image, given: tuple[float, ...], name: str) -> Image.Image:
    """A picture of bytes with its range widened to [0, 255]; what nobody sees need not be in it."""
    mode = "RGBA" if image.has_transparency_data else "L" if image.mode == "L" else "RGB"
    values = np.array(image.convert(mode))
    seen = values[..., 3] > 0 if mode == "RGBA" else np.full(values.shape[:2], True)
    colours = values[..., :3] if mode == "RGBA" else values
    if seen.any():
        colours[seen] = eight_bits(colours[seen], given, name)
    return Image.fromarray(values)


# --- ranges -------------------------------------------------------------------------------------------------------


def check_range(given: tuple[float, ...] | None) -> None:
    """Require two numbers that rise."""
    fits = given is None or (len(given) == 2 and given[0] < given[1])
    require(fits, f"range={list(given or ())} must be [black, white], two numbers that rise, or null")


def eight_bits(values: np.ndarray, given: tuple[float, ...] | None, name: str) -> np.ndarray:
    """Numbers as grey levels, uint8; see `settled`."""
    check_numbers(values.dtype, name)
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    settled_range = settled(values.dtype, float(values.min()), float(values.max()), given, name)
    return values if settled_range is None else scaled(values, settled_range)


def check_numbers(dtype: np.dtype, name: str) -> None:
    """Require numbers, or true and false."""
    if dtype.kind not in "biuf":
        raise DataError(f"{name} holds {dtype}, which are no grey levels")


def settled(
    dtype: np.dtype, low: float, high: float, given: tuple[float, ...] | None, name: str
) -> tuple[float, ...] | None:
    """Which numbers are black and white; None where they are grey levels as they are.

    Bytes are grey levels, unless a range inside [0, 255] says otherwise. Unsigned numbers of 16 bits are taken for
    such if they reach the upper half; below it nobody knows whether they are dark or have 10, 12 or 14 bits.

    Args:
        dtype: Of the numbers.
        low: The smallest.
        high: The largest.
        given: [black, white] as the user says, or None.
        name: What sentences call the numbers.

    Raises:
        DataError: The range is not known, or not kept to.
    """
    if dtype == np.uint8 and (given is None or given[1] > 255):
        return None
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(f"{name} holds values that are not finite")
    if given is None and dtype.kind in "iu" and low >= 0 and (DEEPEST // 2 < high <= DEEPEST or high == 0):
        given = (0, DEEPEST)
    if given is None:
        found = f"{name} holds {dtype} values from {low:.6g} to {high:.6g}"
        raise UnsuitableError(found, _suggestion(dtype, low, high))
    black, white = given
    slack = 1e-6 * (white - black)
    if low < black - slack or high > white + slack:
        raise DataError(
            f"{name} holds values from {low:.6g} to {high:.6g}, outside dataset.range=[{black:g},{white:g}]"
        )
    return given


def scaled(values: np.ndarray, given: tuple[float, ...]) -> np.ndarray:
    """Numbers from black to white as uint8, rounded."""
    black, white = given
    return np.rint((values.astype(np.float64) - black) * (255 / (white - black))).clip(0, 255).astype(np.uint8)


def fitted(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [C, H, W] of any channels, resized and centre-cropped as pictures are."""
    if pixels.shape[1:] == size:
        return pixels
    bands = [ImageOps.fit(Image.fromarray(band), size[::-1], Image.Resampling.LANCZOS) for band in pixels.numpy()]
    return torch.from_numpy(np.stack([np.asarray(band) for band in bands]))


def _suggestion(dtype: np.dtype, low: float, high: float) -> str:
    """The narrowest usual range that holds them."""
    whole = [(0, 2**bits - 1) for bits in (8, 10, 12, 14, 16)]
    usual = [*([(0, 1), (-1, 1)] if dtype.kind == "f" else []), *whole, (low, high)]
    return RANGE.format(*next((a, b) for a, b in usual if a <= low and high <= b))


def _check_deep(picture: Image.Image, given: tuple[float, ...] | None, name: str) -> None:
    """Require 16-bit colours that use their range: Pillow keeps the upper 8 bits of each."""
    highest = max(band[1] for band in np.atleast_2d(picture.getextrema()))
    if given == (0, DEEPEST) or (given is None and highest > 127):
        return
    raise UnsuitableError(
        f"{name} holds 16-bit colours that reach {highest} of 255 in their upper 8 bits, which alone are read",
        f"save it with 8 bits, or {RANGE.format(0, DEEPEST)}",
    )
