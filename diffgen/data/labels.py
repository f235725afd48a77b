"""Labels from a file: a table of two columns, Hugging Face's metadata, or EDM's dataset.json."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from diffgen.core.errors import DataError
from diffgen.core.paths import setting
from diffgen.data.classes import sort_names
from diffgen.data.places import Folder, Place

USUAL = ("dataset.json", "labels.csv", "labels.tsv", "labels.txt", "metadata.csv", "metadata.jsonl")
"""Files of labels that lie among pictures."""

FILE = ("file_name", "file", "filename", "image", "path", "img", "name", "id")
LABEL = ("label", "labels", "class", "class_name", "category", "target", "y")
"""Names of columns, the likelier first; upper and lower case are one."""

UTF_16 = (b"\xff\xfe", b"\xfe\xff")
"""What files in UTF-16 begin with, as Excel writes them."""

Pairs = Iterable[tuple[object, object]]


class Labelled(NamedTuple):
    """The classes of some pictures, the label of each, -1 for none, and what there is to say of them."""

    classes: tuple[str, ...]
    numbers: list[int]
    notes: tuple[str, ...]


def labelled(place: Place, labels: str | None) -> Labelled:
    """Labels from sub-folders, or from a file.

    Raises:
        DataError: Some pictures lie in sub-folders and some beside them, or the file cannot be used.
    """
    if labels is None:
        unused = [path for path in place.others() if PurePosixPath(path).name.casefold() in USUAL]
        notes = [f"{path} is not used: {setting('dataset.labels', path)} reads labels from it" for path in unused]
        return numbered(_of_folders(place), place.title, notes)
    own, strangers = _of_file(place, labels)
    notes = [f"{strangers:,} labels in {labels} are of no picture there"] if strangers else []
    return numbered(counted_from_zero(own), place.title, notes)


def counted_from_zero(own: Sequence[str | None]) -> list[str | None]:
    """Labels as tables have them: where they are numbers from 0, or there are no others, -1 stands for none."""
    none = "0" in own or not set(own) - {"-1", None}
    return [None if none and label == "-1" else label for label in own]


def numbered(
    own: Sequence[str | None], title: str, notes: Sequence[str] = (), order: Sequence[str] | None = None
) -> Labelled:
    """Names of classes, None for none, as numbers; in their own order where there is one.

    Raises:
        DataError: A name is none that a checkpoint could keep, is there twice, or is not in the order.
    """
    classes = tuple(order) if order else sort_names(label for label in own if label is not None)
    for name in classes:
        _check_name(name, title)
    if len(set(classes)) < len(classes):
        raise DataError(f"{title}: two of the classes [{', '.join(classes)}] have one name")
    numbers = {name: number for number, name in enumerate(classes)}
    if stranger := next((label for label in own if label is not None and label not in numbers), None):
        raise DataError(f"{title}: the label {stranger!r} is none of its classes [{', '.join(classes)}]")
    without = own.count(None) if classes else 0
    told = [f"{without:,} of {len(own):,} pictures have no label: they are trained on without one"] if without else []
    return Labelled(classes, [-1 if label is None else numbers[label] for label in own], (*notes, *told))


def _check_name(name: str, title: str) -> None:
    """Require a name that files of text and configs can hold."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"the class {name!r} of {title} has a name that is not UTF-8: give it another one") from None
    if "${" in name:
        raise DataError(
            f"the class {name!r} of {title} would name a setting in a config, by its ${{: give it another one"
        )


def _of_folders(place: Place) -> list[str | None]:
    firsts = [name.partition("/")[0] if "/" in name else None for name in place.names]
    loose = [name for name, first in zip(place.names, firsts, strict=True) if first is None]
    if loose and len(loose) < len(firsts):
        raise DataError(f"{place.called(loose[0])} stands beside sub-folders, which are the classes: move it into one")
    return firsts


def _of_file(place: Place, labels: str) -> tuple[list[str | None], int]:
    """The class of each picture by a file that lies anywhere, or among the pictures; and how many others it names."""
    root = place.root if isinstance(place, Folder) else None
    path = Path(labels) if root is None or Path(labels).is_file() else root / labels
    data = path.read_bytes() if path.is_file() else place.text(labels)
    if data is None:
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"dataset.labels={labels!r} {what}; it names the file of labels, labels.csv, say")
    found = _agreed(((_below(name, root), label) for name, label in read_labels(data, labels).items()), labels)
    prefix = _prefix(path, root)
    moved = {prefix + name: label for name, label in found.items()}
    chosen = _chosen(place.names, found, labels) or _chosen(place.names, moved, labels)
    if not chosen:
        one, other = next(iter(found), ""), next(iter(place.names), "")
        raise DataError(f"dataset.labels={labels!r} names none of the pictures: it has {one!r}, and they are {other!r}")
    return [chosen.get(name) for name in place.names], len(found) - len(chosen)


def _prefix(path: Path, root: Path | None) -> str:
    """Where a file of labels lies below the pictures' folder: its names may go from there."""
    if root is None or not path.is_file() or not path.absolute().is_relative_to(root.absolute()):
        return ""
    at = path.absolute().parent.relative_to(root.absolute()).as_posix()
    return "" if at == "." else f"{at}/"


def _chosen(names: Sequence[str], labels: Mapping[str, str | None], what: str) -> dict[str, str | None]:
    """The class of each picture that a file names, with or without the picture's ending."""
    short: dict[str, list[str]] = {}
    for name in names:
        short.setdefault(str(PurePosixPath(name).with_suffix("")), []).append(name)
    known = {key: those[0] for key, those in short.items() if len(those) == 1} | {name: name for name in names}
    return _agreed(((known[key], label) for key, label in labels.items() if key in known), what)


def _agreed(pairs: Iterable[tuple[str, str | None]], what: str) -> dict[str, str | None]:
    """One label for each picture.

    Raises:
        DataError: A picture has two.
    """
    found: dict[str, str | None] = {}
    for key, value in pairs:
        if found.get(key, value) != value:
            raise DataError(f"dataset.labels={what!r} gives {key!r} two labels, {found[key]!r} and {value!r}")
        found[key] = value
    return found


def read_labels(data: bytes, name: str) -> dict[str, str | None]:
    """The name of the class of each picture that a file names; None where it gives it none.

    Args:
        data: The file.
        name: Its path, for sentences; its ending says what it holds.

    Raises:
        DataError: It is damaged, gives no labels, or two to one picture.
    """
    try:
        text = data.decode("utf-16" if data.startswith(UTF_16) else "utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    suffix = PurePosixPath(name).suffix.lower()
    try:
        pairs = {".json": _of_json, ".jsonl": _of_lines}.get(suffix, _of_table)(text, name)
        return _checked(pairs, name)
    except (ValueError, csv.Error, RecursionError) as error:
        raise DataError(f"dataset.labels={name!r} cannot be read: {error}") from None


def _below(name: str, folder: Path | None) -> str:
    """A picture's name as a file of labels has it, as a name below the place of the pictures."""
    plain = name.strip().replace("\\", "/").removeprefix("./")
    if folder and Path(plain).is_absolute() and Path(plain).is_relative_to(folder.absolute()):
        return Path(plain).relative_to(folder.absolute()).as_posix()
    return plain


# --- forms --------------------------------------------------------------------------------------------------------


def _of_json(text: str, name: str) -> Pairs:
    """EDM's: {"labels": [["00000/img.png", 3], ...]}, the same by name, or null."""
    value = json.loads(text)
    labels = value.get("labels") if isinstance(value, dict) and "labels" in value else value
    if labels is None:
        raise DataError(f"dataset.labels={name!r} holds no labels: null")
    if isinstance(labels, Mapping):
        return labels.items()
    if not isinstance(labels, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in labels):
        raise DataError(f'dataset.labels={name!r} must hold {{"labels": [["picture.png", 0], ...]}}')
    return [(pair[0], pair[1]) for pair in labels]


def _of_lines(text: str, name: str) -> Pairs:
    """Hugging Face's: an object a line, {"file_name": "picture.png", "label": ...}."""
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"dataset.labels={name!r} must hold an object in each line")
    file, label = _columns(list(rows[0]), name)
    return [(row.get(file), row.get(label)) for row in rows]


def _of_table(text: str, name: str) -> Pairs:
    """Columns between commas, semicolons, tabs or blanks, with or without a line of their names."""
    rows = [row for row in _rows(text, name) if any(cell.strip() for cell in row)]
    if not rows or min(map(len, rows)) < max(2, len(rows[0])):
        raise DataError(f"dataset.labels={name!r} must have in each line two columns, the picture and its label")
    head = [cell.strip() for cell in rows[0]]
    if len(head) == 2 and not _is_head(head):
        return [(row[0], row[1]) for row in rows]
    file, label = (head.index(column) for column in _columns(head, name))
    return [(row[file], row[label]) for row in rows[1:]]


def _rows(text: str, name: str) -> Iterator[list[str]]:
    first = text.partition("\n")[0]
    marks = ("\t",) if name.lower().endswith(".tsv") else (",", ";", "\t")
    delimiter = next((mark for mark in marks if mark in first), None)
    if delimiter is None:
        return (line.rsplit(maxsplit=1) for line in text.splitlines())
    return csv.reader(io.StringIO(text), delimiter=delimiter)


def _is_head(cells: Sequence[str]) -> bool:
    """Whether a first line names columns: one is that of the pictures, and neither is a picture."""
    named = any(cell.casefold() in FILE for cell in cells)
    return named and not any(PurePosixPath(cell).suffix for cell in cells)


def _columns(names: Sequence[str], where: str) -> tuple[str, str]:
    """Which columns are the picture and its label."""
    file, label = (usual(names, known) for known in (FILE, LABEL))
    if len(names) == 2:
        file = file or next(name for name in names if name != label)
        label = label or next(name for name in names if name != file)
    if file is None or label is None:
        have = f"dataset.labels={where!r} has the columns [{', '.join(names)}]"
        raise DataError(f"{have}: call one of them file and one label")
    return file, label


def usual(names: Iterable[str], known: Sequence[str]) -> str | None:
    """The name that is likeliest among some columns or arrays, whatever its upper and lower case, or None."""
    lower = {name.casefold(): name for name in names}
    return next((lower[name] for name in known if name in lower), None)


def _checked(pairs: Pairs, name: str) -> dict[str, str | None]:
    texts = []
    for file, label in pairs:
        if not isinstance(file, str | int) or isinstance(file, bool):
            raise DataError(f"dataset.labels={name!r} names {file!r}, which is no file")
        texts.append((str(file), _class(label, name)))
    return _whole_numbers(_agreed(texts, name))


def _class(label: Any, name: str) -> str | None:
    if isinstance(label, Mapping | list):
        raise DataError(f"dataset.labels={name!r} gives {label!r}: a picture has one label, a name or a number")
    text = "" if label is None else str(label).strip()
    return None if not text or label != label else text


def _whole_numbers(found: dict[str, str | None]) -> dict[str, str | None]:
    """`1.0` as `1` where all are such: tables with gaps are written so."""
    texts = [text for text in found.values() if text]
    if not all(text.endswith(".0") and text[:-2].isdecimal() for text in texts):
        return found
    return {key: text and text[:-2] for key, text in found.items()}
