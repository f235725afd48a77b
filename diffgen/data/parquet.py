"""Pictures in parquet files, as the Hugging Face hub keeps them: encoded pictures in a column, labels in another."""

import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffgen.core.errors import DataError, UsageError
from diffgen.data.base import DATASETS, Source
from diffgen.data.labels import LABEL, Labelled, numbered
from diffgen.data.pictures import Size, Undecodable, check_some, opened
from diffgen.data.places import LeftOut
from diffgen.data.reading import Reading

IMAGE = ("image", "img", "picture", "jpg", "png", "bytes")
LABELS = (*LABEL, "fine_label", "coarse_label")
"""Names of columns, the likelier first; upper and lower case are one."""

GROUPS = 4
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
    return opened(rows, rows.labelled(), reading, size, undecodable, workers)


class RowPlace(NamedTuple):
    """Where a row is: its file, the group there, its place in the group, and its number in the file."""

    file: Path
    group: int
    row: int
    number: int


class Rows:
    """The rows of some parquet files as a `Place`: row i is called by its number."""

    def __init__(self, path: Path, image: str | None, label: str | None) -> None:
        """Find the files, the groups of their rows, and the columns."""
        self.title = str(path)
        self.files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        if not self.files or not all(file.is_file() for file in self.files):
            raise DataError(f"dataset.path={str(path)!r} is no .parquet file and no folder of such")
        self._mine: tuple[int, dict[Path, Any]] = (-1, {})
        self._groups: OrderedDict[tuple[Path, int], list[Any]] = OrderedDict()
        columns = self._read(self.files[0]).schema_arrow.names
        pictures = _column(image, columns, IMAGE, "image")
        if pictures is None:
            raise UsageError(f"image=null finds no column of pictures; choose one of [{', '.join(columns)}]")
        self.image, self.label = pictures, _column(label, columns, LABELS, "label")
        self.where = [place for file in self.files for place in self._places(file)]
        self.names = [str(row) for row in range(len(self.where))]
        self.left_out: list[LeftOut] = []

    def _read(self, file: Path) -> Any:
        """The file, opened by this process: workers must not share one."""
        if self._mine[0] != os.getpid():
            self._mine = (os.getpid(), {})
            self._groups.clear()
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
        return {**self.__dict__, "_mine": (-1, {}), "_groups": OrderedDict()}

    def _places(self, file: Path) -> Iterator["RowPlace"]:
        metadata, first = self._read(file).metadata, 0
        for group in range(metadata.num_row_groups):
            count = metadata.row_group(group).num_rows
            yield from (RowPlace(file, group, row, first + row) for row in range(count))
            first += count

    def _column_of(self, file: Path, group: int, column: str) -> list[Any]:
        try:
            table = self._read(file).read_row_group(group, columns=[column], use_threads=False)
            return table.column(column).to_pylist()
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{file} cannot be read: {error}") from None

    def open(self, name: str) -> bytes:
        """See `Place`; the groups that were used last are kept."""
        file, group, row, _ = self.where[int(name)]
        self._read(file)
        if (file, group) not in self._groups:
            self._groups[file, group] = self._column_of(file, group, self.image)
            while len(self._groups) > GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end((file, group))
        value = self._groups[file, group][row]
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise DataError(f"{self.called(name)} holds no picture but {type(value).__name__} in column {self.image!r}")
        return data

    def called(self, name: str) -> str:
        """See `Place`."""
        return f"row {self.where[int(name)].number} of {self.where[int(name)].file}"

    def text(self, name: str) -> None:
        """See `Place`; there are no other files."""
        return None

    def others(self) -> list[str]:
        """See `Place`."""
        return []

    def labelled(self) -> Labelled:
        """The labels of all rows; names where the files know them, in their order."""
        if self.label is None:
            return Labelled((), [-1] * len(self.where), ())
        groups = dict.fromkeys((file, group) for file, group, _, _ in self.where)
        values = [value for file, group in groups for value in self._column_of(file, group, self.label)]
        names = self._class_names()
        own = [None if value is None or value == -1 else _name(value, names, self.label) for value in values]
        return numbered(own, self.title, order=names)

    def _class_names(self) -> list[str] | None:
        """What Hugging Face's `ClassLabel` calls the numbers."""
        metadata = self._read(self.files[0]).schema_arrow.metadata or {}
        try:
            features = json.loads(metadata[b"huggingface"])["info"]["features"]
            return [str(name) for name in features[self.label]["names"]]
        except (KeyError, ValueError, TypeError):
            return None


def _column(given: str | None, columns: Sequence[str], usual: Sequence[str], what: str) -> str | None:
    """A column by its name, or the usual one; None where there is none."""
    if given is not None and given not in columns:
        raise UsageError(f"{what}={given!r} is no column; choose one of [{', '.join(columns)}]")
    lower = {name.casefold(): name for name in columns}
    return given or next((lower[name] for name in usual if name in lower), None)


def _name(value: object, names: Sequence[str] | None, column: str) -> str:
    if not isinstance(value, int | str):
        raise DataError(f"column {column!r} holds {value!r}: a picture has one label, a number or a name")
    if names is None or isinstance(value, str):
        return str(value)
    if not 0 <= value < len(names):
        raise DataError(f"column {column!r} holds {value}, and its classes are 0 to {len(names) - 1}")
    return names[value]
