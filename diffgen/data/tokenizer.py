"""Hugging Face tokenizers, by their library, as JSON text that a checkpoint can keep."""

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from diffgen.core.errors import DataError, UsageError, first_line

LARGEST = 2**21
"""Characters of the JSON that a checkpoint keeps."""

PIECE = 2**20
"""Characters that are cut into tokens at once; a border between two lines is a border between pieces."""


def read(path: str) -> str:
    """The tokenizer of a file, as JSON of printable characters on one line.

    Raises:
        UsageError: The library is missing.
        DataError: The file is missing, no tokenizer, or too large for a checkpoint.
    """
    what = f"dataset.tokenizer={path!r}"
    try:
        found = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"{what} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise DataError(f"{what} is no tokenizer.json: it is not JSON") from None
    written = json.dumps(found, ensure_ascii=False, separators=(",", ":")).replace("${", "\\u0024{")
    text = "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in written)
    library(text)
    if len(text) > LARGEST:
        raise DataError(f"{what} has {len(text):,} characters, more than the {LARGEST:,} that a checkpoint can keep")
    return text


@lru_cache(maxsize=2)
def library(kept: str) -> Any:
    """The library's object, which neither cuts texts short nor fills them up, whatever its file says.

    Args:
        kept: JSON, as `read` gives it.

    Raises:
        UsageError: The library is missing.
        DataError: It cannot read this.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UsageError("tokenizer needs the library tokenizers: pip install 'diffgen[text]'") from None
    try:
        made = Tokenizer.from_str(kept)
    except Exception as error:  # the library raises nothing more special
        raise DataError(f"the tokenizer is none that its library can read: {first_line(error)}") from None
    made.no_truncation()
    made.no_padding()
    return made


def symbols(kept: str) -> tuple[str, ...]:
    """The name of each token; a number that none has is named by itself."""
    made = library(kept)
    most = max(made.get_vocab(with_added_tokens=True).values())
    return tuple(made.id_to_token(number) or f"[{number}]" for number in range(most + 1))


def ids(kept: str, words: str) -> list[int]:
    """The tokens of a text, without those that some tokenizers put around it."""
    made = library(kept)
    return [number for piece in _pieces(words) for number in made.encode(piece, add_special_tokens=False).ids]


def text(kept: str, ids: Sequence[int]) -> str:
    """The text of tokens."""
    return str(library(kept).decode(list(ids), skip_special_tokens=False))


def unknown(kept: str) -> int | None:
    """The token for what has none, if there is one."""
    made = library(kept)
    name = getattr(made.model, "unk_token", None)
    return None if name is None else made.token_to_id(name)


def _pieces(words: str) -> Iterator[str]:
    start = 0
    while start < len(words):
        end = start + PIECE
        if end < len(words):
            end = words.rfind("\n", start, end) + 1 or end
        yield words[start:end]
        start = end
