"""From an .npy or .npz file to its arrays: which of them is meant, and where its channels stand."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from diffgen.core.errors import DataError
from diffgen.data.labels import usual
from diffgen.data.reading import MODES, UnsuitableError

CLIPS = ("clips", "videos", "video")
IMAGES = ("images", "arr_0", "x", "x_train", "data", "image", "pixels", *CLIPS)
"""Names of arrays in an .npz, the likelier first; upper and lower case are one."""

Layout = Literal["auto", "channels_last", "channels_first"]


def load(path: Path, what: str) -> dict[str, np.ndarray]:
    """The arrays of an .npy or .npz file, of plain numbers or text and never objects; one of an .npy is mapped.

    Raises:
        DataError: It cannot be read.
    """
    try:
        file = np.load(path, allow_pickle=False, mmap_mode="c")  # noqa: TID251  arrays alone, never objects
        if isinstance(file, np.ndarray):
            return {"images": file}
        with file:
            return {name: file[name] for name in file.files}
    except Exception:  # readers of headers raise anything
        raise DataError(f"{what} is no .npy or .npz of numbers that can be read") from None


def named(found: Mapping[str, np.ndarray], what: str) -> str:
    """The array that holds the pictures, or clips: by its name, or the only one that could."""
    known = usual(found, IMAGES)
    could = [name for name, array in found.items() if array.ndim in (3, 4, 5)]
    if known is None and len(could) == 1:
        return could[0]
    if known is None:
        raise DataError(f"{what} holds the arrays [{', '.join(found)}]: call that of the pictures images")
    return known


def channels_first(values: np.ndarray, layout: Layout, what: str) -> np.ndarray:
    """Pictures as [N, C, H, W].

    Raises:
        DataError: They are none.
        UnsuitableError: The channels could stand first or last.
    """
    shape = list(values.shape)
    if values.ndim not in (3, 4) or not values.size:
        raise DataError(f"{what}: pictures are [N, H, W, C], [N, C, H, W] or [N, H, W]")
    if values.ndim == 3:
        return values[:, None]
    first, last = shape[1] < min(shape[2:]), shape[3] < min(shape[1:3])
    if layout == "auto" and first == last:
        raise UnsuitableError(what, "dataset.layout=channels_first or channels_last says what it means")
    return np.moveaxis(values, 3, 1) if layout == "channels_last" or (layout == "auto" and last) else values


def check_clips(name: str, clips: np.ndarray, layout: Layout, channels: int, what: str) -> None:
    """Require five axes of what is called clips, and of all such a number of channels that clips have.

    Args:
        name: Of the array.
        clips: The array.
        layout: As the user says.
        channels: Of each frame, as the layout was understood.
        what: The array with its shape, for sentences.

    Raises:
        DataError: It is something else, or in torch's order, [N, C, T, H, W], which may look like another.
    """
    both = "clips are [N, T, H, W, C] or [N, T, C, H, W]"
    if clips.ndim != 5:
        if name.casefold() in CLIPS:
            raise DataError(f"{what}: {both}")
        return
    if layout == "auto" and (channels not in MODES or clips.shape[1:3] == (3, 4)):
        raise UnsuitableError(what, f"{both}; if {channels} are the channels, dataset.layout has to say which it is")
