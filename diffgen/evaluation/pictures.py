"""Pictures from elsewhere as a data set to judge: a folder of them, or an .npz as diffgen-sample writes it."""

import zlib
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image

from diffgen.core.errors import DataError
from diffgen.data import Images, Source
from diffgen.data.folder import RESIDENT_BYTES, Folder
from diffgen.diffusion.denoiser import NO_LABEL


def pictures(images: str, reference: Source, name: str) -> Source:
    """The pictures at a path, in the shape and with the classes of the data set that they are judged by.

    Args:
        images: Path of a folder, whose sub-folders are labels, or of an .npz with arr_0 and perhaps arr_1, the labels.
        reference: The data set.
        name: What it is called.

    Returns:
        The pictures; their `home` says how files of another kind were read, and is empty if there are none.

    Raises:
        DataError: They cannot be read, or their sizes or classes are not the reference's.
    """
    path = Path(images)
    if (path / "grid.png").is_file() and (path / "images").is_dir():  # as diffgen-sample leaves it
        path = path / "images"
    if not path.exists():
        raise DataError(f"images={images!r} is neither a folder of pictures nor an .npz file")
    try:
        found = _folder(path, reference) if path.is_dir() else _arrays(path, reference)
        sizes = ["x".join(map(str, of.size)) for of in (found.shape, reference.shape)]
        if sizes[0] != sizes[1]:
            raise DataError(f"images={images!r} are {sizes[0]} and dataset={name} is {sizes[1]}: they must be alike")
        return _in_memory(found) if isinstance(found, Folder) and found.nbytes <= RESIDENT_BYTES else found
    except DataError as error:  # of the folder, which is a data set elsewhere
        text = str(error).replace("dataset.root=", "images=", 1)
        raise DataError(text.replace("set dataset.size to resize and crop them all", "they must be alike")) from None


def _folder(path: Path, reference: Source) -> Folder:
    """The pictures of a folder; a sub-folder is named as a class of the reference, or by its number."""
    folder = Folder(path, None, reference.shape.channels, workers=2)
    numbers = {str(i): i for i in range(len(reference.classes))} | {c: i for i, c in enumerate(reference.classes)}
    strange = [own for own in folder.classes if own not in numbers]
    if strange and numbers:
        classes = ", ".join(reference.classes)
        raise DataError(
            f"{path / strange[0]} is named as no class: sub-folders are some of [{classes}] or their numbers"
        )
    folder.labels = [numbers.get(folder.classes[i], NO_LABEL) if i >= 0 else NO_LABEL for i in folder.labels]
    folder.classes = reference.classes
    with Image.open(folder.paths[0]) as first:
        folder.home = "" if first.mode == folder.mode else f"{first.mode} files read as {folder.mode}"
    return folder


def _in_memory(folder: Folder) -> Images:
    images = folder.in_memory()
    images.home = folder.home
    return images


def _arrays(path: Path, reference: Source) -> Images:
    """The images of an .npz, with labels where it has any."""
    name = f"images={str(path)!r}"
    try:
        with np.load(path, allow_pickle=False) as file:  # noqa: TID251  arrays alone, never objects
            found = {key: file[key] for key in ("arr_0", "arr_1") if key in file}
    except (OSError, ValueError, TypeError, EOFError, BadZipFile, zlib.error, MemoryError, RuntimeError):
        raise DataError(f"{name} is no .npz of numbers that can be read") from None
    if "arr_0" not in found:
        raise DataError(f"{name} holds no arr_0, which are the images, uint8 [N, H, W, C]")
    pixels = found["arr_0"]
    if pixels.dtype != np.uint8 or pixels.ndim != 4:
        raise DataError(f"{name} holds arr_0 of {pixels.dtype} {list(pixels.shape)}: it must be uint8 [N, H, W, C]")
    labels = found.get("arr_1", np.full(len(pixels), NO_LABEL))
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(f"{name} holds arr_1 of {labels.dtype} {list(labels.shape)}: labels are whole numbers [N]")
    try:
        ordered = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        images = Images(ordered, torch.from_numpy(labels.astype(np.int64)), reference.classes)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    images.home = ""
    return images
