"""Hugging Face tokenizers, by their library, as JSON text that a checkpoint can keep."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from diffgen.core.errors import DataError, UsageError, first_line

LARGEST = 2**21
"""Characters of the JSON that a checkpoint keeps."""

MOST = 2**17
"""Tokens of a vocabulary."""

PIECE = 2**20
"""Characters that are cut into tokens at once; a border between two lines is a border between pieces."""


def read(path: str) -> str:
    """The tokenizer of a file, as JSON in ASCII on one line.

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
    kept = json.dumps(found, separators=(",", ":")).replace("\x7f", "\\u007f").replace("${", "\\u0024{")
    if len(kept) > LARGEST:
        raise DataError(f"{what} has {len(kept):,} characters, more than the {LARGEST:,} that a checkpoint can keep")
    try:
        symbols(kept)
    except DataError as error:
        raise DataError(f"{what}: {error}") from None
    return kept


def _asked(what: str, call: Callable[[], Any]) -> Any:
    """What the library answers.

    Raises:
        DataError: It fails; it raises nothing more special, and where its Rust panics no Exception but a BaseException.
    """
    try:
        return call()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise DataError(f"the tokenizer {what}: {first_line(error)}") from None


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
    made = _asked("is none that its library can read", lambda: Tokenizer.from_str(kept))
    made.no_truncation()
    made.no_padding()
    return made


@lru_cache(maxsize=2)
def symbols(kept: str) -> tuple[str, ...]:
    """The name of each token; a number that none has is named by itself.

    Raises:
        UsageError: The library is missing.
        DataError: It cannot read this, or there are no tokens, or too many.
    """
    made = library(kept)
    numbers = made.get_vocab(with_added_tokens=True).values()
    if not numbers:
        raise DataError("the tokenizer has no tokens")
    if max(numbers) >= MOST:
        raise DataError(f"the tokenizer has a token of number {max(numbers):,}, and there may be {MOST:,} tokens")
    return tuple(made.id_to_token(number) or f"[{number}]" for number in range(max(numbers) + 1))


def ids(kept: str, words: str) -> list[int]:
    """The tokens of a text, without those that some tokenizers put around it.

    Raises:
        DataError: The library fails, as at what has no token where there is none for the unknown.
    """
    made = library(kept)
    cut = partial(made.encode, add_special_tokens=False)
    return [number for piece in pieces(words) for number in _asked("cannot cut the text", partial(cut, piece)).ids]


def text(kept: str, ids: Sequence[int]) -> str:
    """The text of tokens.

    Raises:
        DataError: The library fails.
    """
    made = library(kept)
    return str(_asked("cannot spell its tokens", lambda: made.decode(list(ids), skip_special_tokens=False)))


def unknown(kept: str) -> int | None:
    """The token for what has none, if there is one; some models tell its number, the others its name."""
    model = json.loads(kept)["model"]
    if model.get("unk_id") is not None:
        return int(model["unk_id"])
    name = model.get("unk_token")
    return None if name is None else library(kept).token_to_id(name)


def pieces(words: str) -> Iterator[str]:
    """A long text in pieces that are cut into tokens one by one."""
    start = 0
    while start < len(words):
        end = start + PIECE
        if end < len(words):
            end = words.rfind("\n", start, end) + 1 or end
        yield words[start:end]
        start = end
