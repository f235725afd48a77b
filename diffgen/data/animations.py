"""Films as animated pictures, GIF and WebP: every frame is one in the file, where Pillow joins those that are alike."""

import io
from collections.abc import Iterator, Sequence
from itertools import pairwise

from PIL import GifImagePlugin, Image, ImageChops

FASTEST = 50.0
"""Frames per second of a GIF: viewers slow down those that last less than two hundredths of a second."""

UNITS = {"gif": 100, "webp": 1000}
"""In a second, of which a frame lasts a whole number."""


def animation(frames: Sequence[Image.Image], name: str, fps: float) -> bytes:
    """The bytes of a film without end, `gif` or `webp`, the latter without loss.

    Args:
        frames: Pictures of one size.
        name: The format.
        fps: Frames per second; a GIF plays at most 50.
    """
    if name == "webp":
        return webp(frames, lasting(len(frames), fps, UNITS[name]))
    return gif(frames, lasting(len(frames), min(fps, FASTEST), UNITS[name]))


def lasting(count: int, fps: float, units: int) -> list[int]:
    """How long each frame lasts, in units of which there are so many in a second: rounded, and right in the sum."""
    edges = [round(units * number / fps) for number in range(count + 1)]
    return [after - before for before, after in pairwise(edges)]


def gif(frames: Sequence[Image.Image], hundredths: Sequence[int]) -> bytes:
    """A GIF of pictures of one size, each with a palette of its own.

    Args:
        frames: The pictures.
        hundredths: How long each lasts, in hundredths of a second.
    """
    plain = [frame if frame.mode == "L" else frame.convert("RGB") for frame in frames]
    parts = [b"GIF89a", *map(_short, plain[0].size), bytes(3), b"!\xff\x0bNETSCAPE2.0\x03\x01", bytes(3)]  # for ever
    for (corner, part), lasts in zip(_changes(plain), hundredths, strict=True):
        coloured = part.convert("P") if part.mode == "L" else part.convert("P", palette=Image.Palette.ADAPTIVE)
        parts += GifImagePlugin.getdata(coloured, corner, duration=10 * lasts, include_color_table=True)
    return b"".join([*parts, b";"])


def webp(frames: Sequence[Image.Image], milliseconds: Sequence[int]) -> bytes:
    """A WebP without loss of pictures of one size.

    Args:
        frames: The pictures.
        milliseconds: How long each lasts.
    """
    plain = [frame.convert("RGB") for frame in frames]
    moving, for_ever, as_it_is = b"\2" + bytes(3), bytes(6), b"\2"
    chunks = [_chunk(b"VP8X", moving + _sides(plain[0])), _chunk(b"ANIM", for_ever)]
    for ((left, top), part), lasts in zip(_changes(plain), milliseconds, strict=True):
        buffer = io.BytesIO()
        part.save(buffer, format="WEBP", lossless=True)
        place = _three(left // 2) + _three(top // 2) + _sides(part)
        chunks.append(_chunk(b"ANMF", place + _three(lasts) + as_it_is + buffer.getvalue()[12:]))
    return _chunk(b"RIFF", b"WEBP" + b"".join(chunks))


def _changes(frames: Sequence[Image.Image]) -> Iterator[tuple[tuple[int, int], Image.Image]]:
    """Of each frame the part that is not as before, a pixel at least, and its left upper corner, of even numbers."""
    box = (0, 0, *frames[0].size)
    for number, frame in enumerate(frames):
        if number:
            box = ImageChops.difference(frames[number - 1], frame).getbbox() or (0, 0, 1, 1)
        left, top = box[0] - box[0] % 2, box[1] - box[1] % 2
        yield (left, top), frame.crop((left, top, box[2], box[3]))


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + len(data).to_bytes(4, "little") + data + bytes(len(data) % 2)


def _sides(picture: Image.Image) -> bytes:
    return b"".join(_three(side - 1) for side in picture.size)


def _short(value: int) -> bytes:
    return value.to_bytes(2, "little")


def _three(value: int) -> bytes:
    return value.to_bytes(3, "little")
