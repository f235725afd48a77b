"""Between tensors in [-1, 1], 8-bit pixels, pictures, and the files that are written; `reading` is the way in."""

import io
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from diffgen.core.files import write_atomically
from diffgen.data.animations import gif

GAP = 2  # pixels of background between tiles, before enlargement
PAPER = 255


def to_float(pixels: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]: value / 127.5 - 1."""
    return pixels.float().div_(127.5).sub_(1)


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] -> uint8 by EDM's rule, (x 127.5 + 128) clipped and truncated; the inverse of `to_float`."""
    return (x * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def picture(pixels: Tensor) -> Image.Image:
    """One image uint8 [C, H, W] as a picture; channels other than grey, RGB and RGBA stand side by side in grey."""
    array = pixels.cpu().numpy()
    if array.shape[0] in (3, 4):
        return Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0)))
    return Image.fromarray(np.concatenate(list(array), axis=1))


def enlargement(height: int, tile: int = 64) -> int:
    """How many times tiles about `tile` pixels high are as large as pictures of a height."""
    return max(1, round(tile / height))


def grid(pixels: Tensor, columns: int | None = None, tile: int = 64) -> Image.Image:
    """Images uint8 [N, C, H, W] on one sheet: separated, and enlarged smoothly to tiles about `tile` pixels high."""
    tiles = [picture(image) for image in pixels]
    width, height = tiles[0].size
    scale = enlargement(height, tile)
    columns = columns or math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    gap = GAP * scale
    cell = (width * scale + gap, height * scale + gap)
    mode = "RGB" if tiles[0].mode == "RGBA" else tiles[0].mode
    sheet = Image.new(mode, (columns * cell[0] + gap, rows * cell[1] + gap), (PAPER,) * 3 if mode == "RGB" else PAPER)
    for i, image in enumerate(tiles):
        corner = (gap + i % columns * cell[0], gap + i // columns * cell[1])
        sheet.paste(image.resize((width * scale, height * scale), Image.Resampling.BICUBIC).convert(mode), corner)
    return sheet


def save_gif(frames: list[Image.Image], path: Path) -> None:
    """Write an animation in one rename; the last frame stays for two seconds."""
    write_atomically(path, gif(frames, [12] * (len(frames) - 1) + [200]))


def save_png(image: Image.Image, path: Path, notes: Mapping[str, str] | None = None) -> None:
    """Write a PNG in one rename, with `notes` as text entries (seed, sampler, checkpoint)."""
    info = PngInfo()
    for key, value in (notes or {}).items():
        info.add_text(key, value)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    write_atomically(path, buffer.getvalue())
