"""Text in files: plain text and JSON lines, of one file or of all in a folder, read as one text."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from diffgen.core.errors import DataError, printable
from diffgen.data.places import SYSTEM, LeftOut

LINES = ".jsonl"
SUFFIXES = (".txt", LINES)
"""Endings of files of a folder that are read; a file that is named itself may be called anything."""

KEY = "text"
"""Of an object of JSON, what holds its text."""


class Corpus(NamedTuple):
    """A text, and what there is to say of where it comes from.

    Attributes:
        text: All of it; lines end in LF.
        found: Where it comes from, in few words.
        notes: What a user should know, a sentence each.
        left_out: Files that are not read.
    """

    text: str
    found: str
    notes: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


def read(path: str, key: str = "dataset.path") -> Corpus:
    """The text of a file, or of all .txt and .jsonl files below a folder in the order of their names.

    A blank line stands between files, and a line end between the texts of JSON lines.

    Args:
        path: Of the file or folder.
        key: The setting that it stands at, for sentences.

    Raises:
        DataError: There is none, or something is no text.
    """
    root, told = Path(path), f"{key}={path!r}"
    files, left_out = _files(root, told)
    whats = [told if file == root else str(file) for file in files]
    datas = [_bytes(file, what) for file, what in zip(files, whats, strict=True)]
    texts = [_text(file, data, what) for file, data, what in zip(files, datas, whats, strict=True)]
    empty = [LeftOut(_name(file, root), "empty") for file, text in zip(files, texts, strict=True) if not text]
    kept = [text for text in texts if text]
    if not kept:
        what = "is empty" if root.is_file() else f"has no text in its {len(files):,} files"
        raise DataError(f"{told} {what}")
    found = f"{len(kept):,} file{'s' * (len(kept) > 1)} of {root.resolve().name}" if root.is_dir() else root.name
    return Corpus(joined(kept), printable(found), _notes(datas), (*left_out, *empty))


def joined(texts: list[str]) -> str:
    """Texts as one, a blank line between any two."""
    return "\n".join([*(text if text.endswith("\n") else f"{text}\n" for text in texts[:-1]), texts[-1]])


def _files(root: Path, what: str) -> tuple[list[Path], list[LeftOut]]:
    """The files to read, and those of a folder that are no text.

    Raises:
        DataError: There are none.
    """
    if root.is_file():
        return [root], []
    if not root.is_dir():
        raise DataError(f"{what} is no file and no folder")
    below = sorted(file for file in root.rglob("*") if file.is_file() and not _hidden(file.relative_to(root)))
    files = [file for file in below if file.suffix.lower() in SUFFIXES]
    if not files:
        raise DataError(f"{what} is a folder without .txt or .jsonl files")
    others = [file for file in below if file.suffix.lower() not in SUFFIXES]
    return files, [LeftOut(_name(file, root), file.suffix.lower() or "no .txt or .jsonl") for file in others]


def _hidden(name: Path) -> bool:
    return any(part.startswith(".") or part.casefold() in SYSTEM for part in name.parts)


def _name(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix() if file != root else file.name


def _bytes(file: Path, what: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{what} cannot be read: {error.strerror}") from None


def _text(file: Path, data: bytes, what: str) -> str:
    """The text of a file, with LF at the ends of its lines; `what` is what it is called in sentences.

    Raises:
        DataError: It is not text in UTF-8.
    """
    if b"\0" in data:
        raise DataError(f"{what} is no text: it has zero bytes, as binary files and UTF-16 have")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wrong = f"byte {error.start:,} is 0x{data[error.start]:02x}"
        raise DataError(f"{what} is no text in UTF-8 ({wrong}): convert it, with iconv, say") from None
    text = "\n".join(_json_texts(text, what)) if file.suffix.lower() == LINES else text
    return text.replace("\r\n", "\n")


def _json_texts(lines: str, what: str) -> Iterator[str]:
    """The text of each JSON line; empty lines have none.

    Raises:
        DataError: A line is no object with a text.
    """
    for number, line in enumerate(lines.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{what}, line {number:,}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise DataError(f"{where} is not JSON") from None
        text = value.get(KEY) if isinstance(value, dict) else None
        if not isinstance(text, str):
            raise DataError(f"{where} is no object with a text under {KEY!r}")
        if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
            raise DataError(f"{where} is no text: it has zeros or halves of characters")
        yield text


def _notes(datas: list[bytes]) -> tuple[str, ...]:
    """What of files was not taken as it is."""
    marks, ends = (sum(data.startswith(b"\xef\xbb\xbf") for data in datas), sum(b"\r\n" in data for data in datas))
    said = {"began with a byte order mark, which is left out": marks, "had line ends CRLF, which are read as LF": ends}
    return tuple(f"{count:,} of {len(datas):,} files {what}" for what, count in said.items() if count)
