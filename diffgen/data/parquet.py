"""Pictures in parquet files, as the Hugging Face hub keeps them: encoded pictures in a column, labels in another."""

import json
import os
import re
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from diffgen.core.errors import DataError, UsageError
from diffgen.core.paths import setting
from diffgen.data.base import DATASETS, Source
from diffgen.data.labels import LABEL, Labelled, counted_from_zero, numbered, usual
from diffgen.data.pictures import Pictures, Size, Undecodable, check_some, opened
from diffgen.data.places import LeftOut
from diffgen.data.reading import Reading, UndecodableError
from diffgen.data.survey import SPLITS

IMAGE = ("image", "img", "picture", "jpg", "png", "bytes")
LABELS = (*LABEL, "fine_label", "coarse_label")
"""Names of columns, the likelier first; upper and lower case are one."""

SMALL = 100
"""Rows of a group from which reading one picture of it takes long."""

KEPT = 4
"""Groups of rows that a process keeps decompressed."""


@DATASETS.register("parquet")
def parquet(
    *,
    path: str | None,
    image: str | None,
    label: str | None,
    size: Size,
    channels: int,
    background: str,
    range: tuple[float, ...] | None,
    undecodable: Undecodable,
    max_pixels: int,
    workers: int,
) -> Source:
    """Pictures in the rows of a parquet file, or of all of a folder.

    Args:
        path: The file, or a folder of shards, which are read in the order of their names.
        image: The column of pictures; null finds it.
        label: The column of labels, numbers or names; null finds it, where there is one.
        size: As for `pictures.image_folder`, as all that follow.
        channels: See there.
        background: See there.
        range: See there.
        undecodable: See there.
        max_pixels: See there.
        workers: See there.

    Raises:
        UsageError: pyarrow is not installed, or a column is not there.
        DataError: A file is missing or damaged.
    """
    reading = Reading(channels, background, range, max_pixels)
    if path is None:
        raise UsageError("path is missing: dataset.path=PATH names a .parquet file or a folder of them")
    rows = Rows(Path(path), image, label)
    check_some(rows, f"dataset.path={path!r}")
    source = opened(rows, rows.labelled(), reading, size, undecodable, workers)
    largest = max(group.rows for group in rows.groups)
    if isinstance(source, Pictures) and largest > SMALL:
        source.notes += (
            f"each picture is read with its group of up to {largest:,} rows: files with some tens are faster",
        )
    return source


def _files(path: Path) -> list[Path]:
    """A file, those of a folder, or those of a pattern like train-*.parquet.

    Raises:
        DataError: There are none, or they are of several splits.
    """
    pattern = "*" in path.name
    found = sorted(path.parent.glob(path.name) if pattern else path.rglob("*.parquet") if path.is_dir() else [path])
    found = [file for file in found if not file.name.startswith(".") or file == path]
    if not found or not all(file.is_file() for file in found):
        raise DataError(f"dataset.path={str(path)!r} is no .parquet file and no folder of such")
    splits = {split: file for file in found if (split := _split(file, path))}
    if len(splits) > 1:
        one = next((name for name in splits if name.startswith("train")), next(iter(splits)))
        its = splits[one].parent if splits[one].parent.name == one else splits[one].parent / f"{one}*.parquet"
        raise DataError(
            f"dataset.path={str(path)!r} holds the splits [{', '.join(sorted(splits))}]: give one of them, "
            f"{setting('dataset.path', its)}, and dataset.held_out another"
        )
    return found


def _split(file: Path, path: Path) -> str:
    """The split that a file is of, by its own name or its folder's; empty if nothing says."""
    names = [re.split(r"[-._]", file.name)[0], *(part.name for part in file.parents if part.is_relative_to(path))]
    return next((name.casefold() for name in names if name.casefold() in SPLITS), "")


class Group(NamedTuple):
    """Some rows of a file that are compressed together: their number in the file, the first of them, and how many."""

    file: Path
    number: int
    first: int
    rows: int


class Rows:
    """The rows of some parquet files as a `Place`: row i is called by its number."""

    def __init__(self, path: Path, image: str | None, label: str | None) -> None:
        """Find the files, the groups of their rows, and the columns."""
        self.title = str(path)
        self.root: Path | None = None
        self.files = _files(path)
        self._mine: tuple[int, dict[Path, Any]] = (-1, {})
        self._kept: OrderedDict[Group, list[Any]] = OrderedDict()
        self.columns = columns = self._read(self.files[0]).schema_arrow.names
        pictures = _column(image, columns, IMAGE, "image")
        if pictures is None:
            raise UsageError(f"image=null finds no column of pictures; choose one of [{', '.join(columns)}]")
        self.image, self.label = pictures, _column(label, columns, LABELS, "label")
        self.groups = [group for file in self.files for group in self._groups_of(file)]
        self.ends = list(accumulate(group.rows for group in self.groups))
        self.names = [str(row) for row in range(self.ends[-1] if self.ends else 0)]
        self.left_out: list[LeftOut] = []

    def _read(self, file: Path) -> Any:
        """The file, opened by this process: workers must not share one."""
        if self._mine[0] != os.getpid():
            self._mine = (os.getpid(), {})
            self._kept.clear()
        if file not in self._mine[1]:
            try:
                from pyarrow.parquet import ParquetFile
            except ImportError:
                raise UsageError("path needs pyarrow: pip install 'diffgen[parquet]'") from None
            try:
                self._mine[1][file] = ParquetFile(file)
            except (OSError, ValueError) as error:
                raise DataError(f"{file} cannot be read as parquet: {error}") from None
        return self._mine[1][file]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_mine": (-1, {}), "_kept": OrderedDict()}

    def _groups_of(self, file: Path) -> Iterator["Group"]:
        metadata, first = self._read(file).metadata, 0
        for number in range(metadata.num_row_groups):
            count = metadata.row_group(number).num_rows
            yield Group(file, number, first, count)
            first += count

    def _place(self, name: str) -> tuple["Group", int]:
        """The group of a row, and its number there."""
        row = int(name)
        number = bisect_right(self.ends, row)
        return self.groups[number], row - self.ends[number] + self.groups[number].rows

    def _column_of(self, group: "Group", column: str) -> list[Any]:
        try:
            table = self._read(group.file).read_row_group(group.number, columns=[column], use_threads=False)
            return table.column(column).to_pylist()
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{group.file} cannot be read: {error}") from None

    def open(self, name: str) -> bytes:
        """See `Place`; the groups that were used last are kept."""
        group, row = self._place(name)
        self._read(group.file)
        if group not in self._kept:
            self._kept[group] = self._column_of(group, self.image)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(group)
        value = self._kept[group][row]
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None:
            raise UndecodableError(f"{self.called(name)} holds no picture")
        if not isinstance(data, bytes):
            raise DataError(f"{self.called(name)} holds no picture but {type(value).__name__} in column {self.image!r}")
        return data

    def called(self, name: str) -> str:
        """See `Place`."""
        group, row = self._place(name)
        return f"row {group.first + row} of {group.file}"

    def text(self, name: str) -> None:
        """See `Place`; there are no other files."""
        return None

    def others(self) -> list[str]:
        """See `Place`."""
        return []

    def labelled(self) -> Labelled:
        """The labels of all rows; names where the files know them, in their order."""
        if self.label is None:
            others = [name for name in self.columns if name != self.image]
            told = f"no column of labels was found: dataset.label names one of [{', '.join(others)}], if one is"
            return Labelled((), [-1] * len(self.names), (told,) if others else ())
        own: list[str | None] = []
        order: dict[str, None] = {}
        for group in self.groups:
            names = self._class_names(group.file)
            order |= dict.fromkeys(names or ())
            own += [_name(value, names, self.label) for value in self._column_of(group, self.label)]
        return numbered(own if order else counted_from_zero(own), self.title, order=list(order) or None)

    def _class_names(self, file: Path) -> list[str] | None:
        """What Hugging Face's `ClassLabel` calls the numbers of a file."""
        metadata = self._read(file).schema_arrow.metadata or {}
        try:
            features = json.loads(metadata[b"huggingface"])["info"]["features"]
            return [str(name) for name in features[self.label]["names"]]
        except (KeyError, ValueError, TypeError):
            return None


def _column(given: str | None, columns: Sequence[str], known: Sequence[str], what: str) -> str | None:
    """A column by its name, or the usual one; None where there is none."""
    if given is not None and given not in columns:
        raise UsageError(f"{what}={given!r} is no column; choose one of [{', '.join(columns)}]")
    return given or usual(columns, known)


def _name(value: Any, names: Sequence[str] | None, column: str) -> str | None:
    """The class that a value of the column means; None for none."""
    if value is None or value != value or (value == -1 and names):
        return None
    if isinstance(value, str):
        return value
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or number != value:
        raise DataError(f"column {column!r} holds {value!r}: a picture has one label, a whole number or a name")
    if isinstance(value, bool) or names is None:
        return str(value if isinstance(value, bool) else number)
    if not 0 <= number < len(names):
        raise DataError(f"column {column!r} holds {number}, and its classes are 0 to {len(names) - 1}")
    return names[number]
