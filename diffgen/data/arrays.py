"""Pictures and clips in arrays, .npy or .npz, with any number of channels; and pictures in a zip file, as it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffgen.core.errors import DataError, UsageError, require
from diffgen.data import survey
from diffgen.data.array_file import Layout, channels_first, check_clips, load, named
from diffgen.data.base import DATASETS, RESIDENT_BYTES, Images, InMemory, Source
from diffgen.data.clips import Clips
from diffgen.data.kinds import Pixels
from diffgen.data.labels import Labelled, counted_from_zero, labelled, numbered, usual
from diffgen.data.pictures import Size, Undecodable, check_some, opened, sides
from diffgen.data.places import Zip
from diffgen.data.reading import Reading, check_numbers, check_range, fitted, scaled, settled

LABELS = ("labels", "arr_1", "y", "y_train", "label", "targets", "classes")
"""Names of arrays in an .npz, the likelier first; upper and lower case are one."""

CHUNK = 256
"""Pictures that are converted at a time."""


@DATASETS.register("arrays")
def arrays(
    *,
    path: str | None,
    layout: Layout,
    size: Size,
    channels: int | None,
    labels: str | None,
    background: str,
    range: tuple[float, ...] | None,
    undecodable: Undecodable,
    max_pixels: int,
    workers: int,
) -> Source:
    """Pictures of one file: .npy, .npz (`images`, and `labels` if there are any), or a zip of picture files.

    Args:
        path: The file.
        layout: Where the channels stand in [N, H, W, C] or [N, C, H, W]; auto takes the axis that is shorter than both
            sides. [N, H, W] is grey. Arrays of five axes are clips, [N, T, H, W, C] or [N, T, C, H, W]; of other than
            1, 3 or 4 channels it must be said.
        size: As for `pictures.image_folder`.
        channels: Of a zip as for `pictures.image_folder`, 3 if null. Arrays have their own, and this checks them.
        labels: A .npy of N labels, whole numbers or names, in place of those in the .npz; of a zip, see there.
        background: Of a zip, see there.
        range: [black, white] of arrays that do not hold uint8.
        undecodable: Of a zip, see there.
        max_pixels: Of a zip, see there.
        workers: Of a zip, see there.

    Raises:
        DataError: The file is missing or damaged, or its values have no known range.
    """
    if path is None:
        raise UsageError("path is missing: dataset.path=FILE names an .npy, .npz or .zip file")
    file = Path(path)
    if not file.is_file():
        raise DataError(f"dataset.path={path!r} is no file; it must be an .npy, .npz or .zip")
    if file.suffix.lower() == ".zip":
        place = Zip(file)
        check_some(place, f"dataset.path={path!r}")
        reading = Reading(channels or 3, background, range, max_pixels)
        return opened(place, labelled(place, labels), reading, size, undecodable, workers)
    check_range(range)
    found = load(file, f"dataset.path={path!r}")
    images = in_memory(found, f"dataset.path={path!r}", layout=layout, given=range, labels=labels, size=sides(size))
    own = images.shape.channels
    require(
        channels in (None, own), f"channels={channels}, and the arrays have {own}: channels=null takes them as they are"
    )
    return images


def in_memory(
    found: Mapping[str, np.ndarray],
    what: str,
    *,
    layout: Layout = "auto",
    given: tuple[float, ...] | None = None,
    labels: str | None = None,
    size: tuple[int, int] | None = None,
) -> InMemory:
    """Arrays of a file as pictures, or as clips; see `arrays`.

    Args:
        found: By name, as `load` gives them.
        what: The setting that names the file, for sentences.
        layout: See `arrays`.
        given: [black, white].
        labels: Path of a file of labels.
        size: Height and width, or None.

    Raises:
        DataError: They are no pictures, or the labels are not theirs.
    """
    name = named(found, what)
    array, frames = found[name], found[name].shape[1] if found[name].ndim == 5 else 0
    told = f"{what}, array {name!r} has the shape {list(array.shape)}"
    if array.ndim == 5 and (frames < 2 or not array.size):
        raise DataError(f"{told}: clips have two frames or more")
    values = channels_first(array.reshape(-1, *array.shape[2:]) if frames else array, layout, told)
    check_clips(name, array, layout, values.shape[1], told)
    pixels, settled_range = _pixels(values, given, f"{what}, array {name!r}", size)
    own = _labels(found, labels, len(array), what)
    numbers = torch.tensor(own.numbers)
    images: InMemory
    if frames:
        images = InMemory(pixels.unflatten(0, (-1, frames)), numbers, own.classes, Clips(range=given))
    else:
        images = Images(pixels, numbers, own.classes, Pixels(range=given))
    words = f"{found[name].dtype} {list(found[name].shape)}"
    images.found = f"{words}, " + (
        "grey levels as they are" if settled_range is None else "range [{:g}, {:g}]".format(*settled_range)
    )
    images.notes = (*own.notes, *_unused(found, name, what), *survey.notes(pixels, own.classes, None))
    return images


def _unused(found: Mapping[str, np.ndarray], images: str, what: str) -> list[str]:
    """Arrays that are neither the pictures nor their labels."""
    others = [name for name in found if name not in (images, usual(found, LABELS), "classes")]
    return [f"{what}: not used are the arrays [{', '.join(others)}]"] if others else []


# --- pixels -------------------------------------------------------------------------------------------------------


def _pixels(
    values: np.ndarray, given: tuple[float, ...] | None, what: str, size: tuple[int, int] | None
) -> tuple[Tensor, tuple[float, ...] | None]:
    """uint8 [N, C, H, W], and the range that became 0 to 255, if it was another."""
    check_numbers(values.dtype, what)
    if values.dtype == np.bool_:
        values, given = values.view(np.uint8), (0, 1)
    own = None if values.dtype == np.uint8 and given is None else _extremes(values)
    settled_range = None if own is None else settled(values.dtype, *own, given, what)
    if settled_range is None and size in (None, values.shape[2:]):
        return torch.from_numpy(values if values.nbytes > RESIDENT_BYTES else np.ascontiguousarray(values)), None
    parts = []
    for start in range(0, len(values), CHUNK):
        part = values[start : start + CHUNK]
        part = part if settled_range is None else scaled(part, settled_range)
        parts += [fitted(torch.from_numpy(picture), size or picture.shape[1:]) for picture in part]
    return torch.stack(parts), settled_range


def _extremes(values: np.ndarray) -> tuple[float, float]:
    """The smallest and the largest number, a part at a time; nan if there is one."""
    parts = [values[i : i + CHUNK] for i in range(0, len(values), CHUNK)]
    return float(np.min([part.min() for part in parts])), float(np.max([part.max() for part in parts]))


# --- labels -------------------------------------------------------------------------------------------------------


def _labels(found: Mapping[str, np.ndarray], path: str | None, count: int, what: str) -> Labelled:
    """The label of each picture: of a file, of the array of labels, or none."""
    if path is not None:
        if not Path(path).is_file():
            raise DataError(f"dataset.labels={path!r} does not exist; it names a .npy of labels")
        what = f"dataset.labels={path!r}"
        found = {"labels": next(iter(load(Path(path), what).values()))}
    name = usual(found, LABELS)
    if name is None:
        return Labelled((), [-1] * count, ())
    own = found[name].reshape(count) if found[name].size == count else found[name]
    own = own.astype(np.str_) if own.dtype.kind == "S" else own
    if own.shape != (count,) or own.dtype.kind not in "iufbU" or (own.dtype.kind == "f" and (own % 1 != 0).any()):
        raise DataError(
            f"{what}, array {name!r}: labels must be {count} whole numbers or names, not {own.dtype} {list(own.shape)}"
        )
    values: list[Any] = (own.astype(np.int64) if own.dtype.kind == "f" else own).tolist()
    classes = found.get("classes")
    if classes is None or classes.dtype.kind != "U" or name == "classes":
        return numbered(counted_from_zero([str(value) for value in values]), what)
    if own.dtype.kind not in "iu" or not -1 <= own.min() <= own.max() < len(classes):
        raise DataError(f"{what}, array {name!r}: labels must be -1 to {len(classes) - 1}, numbers of the classes")
    names = classes.tolist()  # as samples.npz has them
    return numbered([None if value < 0 else names[value] for value in values], what, order=names)
