"""Pictures or clips from elsewhere as a data set to judge: files of them, or arrays as diffgen-sample writes them."""

from pathlib import Path

from diffgen.core.errors import DataError
from diffgen.data import Source, arrays
from diffgen.data.array_file import load
from diffgen.data.classes import renumber
from diffgen.data.clips import Clips
from diffgen.data.kinds import Pixels
from diffgen.data.labels import Labelled, numbered
from diffgen.data.pictures import check_some, opened, place_of
from diffgen.data.places import Place
from diffgen.data.reading import MAX_PIXELS, Reading, UnsuitableError
from diffgen.data.videos import video_folder


def pictures(images: str, reference: Source, name: str) -> Source:
    """The pictures at a path, in the shape and with the classes of the data set that they are judged by.

    Args:
        images: Path of a folder or zip, whose sub-folders are labels, or of an .npy or .npz, perhaps with labels.
        reference: The data set.
        name: What it is called.

    Returns:
        The pictures; what they were found to be is told as of a data set.

    Raises:
        DataError: They cannot be read, or their sizes or classes are not the reference's.
    """
    path = Path(images)
    if reference.kind.moving and (path / "grid.png").is_file() and (path / "frames").is_dir():
        path = path / "frames"
    if (path / "grid.png").is_file() and (path / "images").is_dir():  # as diffgen-sample leaves it
        path = path / "images"
    what = f"images={images!r}"
    if not path.exists():
        raise DataError(
            f"{what} is neither a folder of {'films' if reference.kind.moving else 'pictures'} nor an .npz file"
        )
    try:
        if path.is_dir() and reference.kind.moving:
            found = _of_films(path, reference)
        elif path.is_dir() or path.suffix == ".zip":
            found = _of_files(path, reference, what)
        else:
            found = _of_arrays(path, what)
    except UnsuitableError as error:  # a data set has settings for that, and these are judged as they are
        raise DataError(f"{error.fact}: they must be as those of dataset={name}") from None
    sizes = ["x".join(map(str, of.size)) for of in (found.shape, reference.shape)]
    if sizes[0] != sizes[1]:
        raise DataError(f"{what} are {sizes[0]} and dataset={name} is {sizes[1]}: they must be alike")
    known = reference.classes
    if not known:
        return found.renamed((), [-1] * len(found.classes))
    return found.renamed(known, renumber(found.classes, known, what, by_number=True))


def _of_files(path: Path, reference: Source, what: str) -> Source:
    """Picture files, read as the reference's were."""
    place = place_of(str(path))
    check_some(place, what)
    kind = reference.kind if isinstance(reference.kind, Pixels) else Pixels()
    reading = Reading(reference.shape.channels, kind.background, kind.range)
    return opened(place, _labelled(place, reference), reading, None, "refuse", workers=2)


def _of_films(path: Path, reference: Source) -> Source:
    """Films, of each of which the first frames are a clip, read as the reference's were."""
    channels, frames, *_ = reference.shape.size
    kind = reference.kind if isinstance(reference.kind, Clips) else Clips()
    return video_folder(
        root=str(path),
        frames=frames,
        stride=1,
        clips=1,
        size=None,
        channels=channels,
        fps=None,
        background=kind.background,
        range=kind.range,
        undecodable="refuse",
        max_pixels=MAX_PIXELS,
        workers=2,
    )


def _labelled(place: Place, reference: Source) -> Labelled:
    """Sub-folders are labels, where the reference has some; pictures beside them have none."""
    firsts = [name.partition("/")[0] if "/" in name and reference.classes else None for name in place.names]
    return numbered(firsts, place.title)


def _of_arrays(path: Path, what: str) -> Source:
    """The images of an .npy or .npz, uint8, with labels where it has any."""
    return arrays.in_memory(load(path, what), what)
