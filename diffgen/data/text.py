"""Text of your own as sequences of characters, bytes or the tokens of a tokenizer."""

import copy
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from hashlib import sha256
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from diffgen.core.errors import DataError, UsageError, require
from diffgen.data import corpus, tokenizer
from diffgen.data.base import DATASETS, RESIDENT_BYTES, Source, Stored
from diffgen.data.corpus import Corpus
from diffgen.data.kinds import Kind
from diffgen.data.tokens import BYTES, UNKNOWN, Tokens, plain
from diffgen.nets.base import DataShape

Unit = Literal["character", "byte"]

LONGEST = 4096
"""Tokens of a sequence."""

MOST = 2**16
"""Characters of a vocabulary."""

ENTRIES = 2**24
"""Sequences of a text that are told apart; the order of an epoch is kept in memory."""

PIECE = 2**22
"""Characters that are looked up at once."""


@DATASETS.register("text")
def text(
    *,
    path: str | None,
    unit: Unit,
    length: int,
    symbols: int,
    tokenizer: str | None,
    split: Literal["train", "test"],
    held_out: float,
) -> "Text":
    """The text of a file, or of the .txt and .jsonl files of a folder, in UTF-8.

    Args:
        path: The file or folder.
        unit: What a token is.
        length: Tokens of a sequence.
        symbols: As many of the most frequent characters have a symbol of their own; bytes have all 256.
        tokenizer: The file of a Hugging Face tokenizer, whose tokens are used instead.
        split: Which part.
        held_out: Share of the text, its end, that is the test split.

    Raises:
        UsageError: A setting is out of range.
        DataError: The files are missing, no text, or shorter than a sequence.
    """
    if not path:
        raise UsageError("path is missing: dataset.path=PATH names a .txt or .jsonl file, or a folder of such")
    check(length, held_out)
    require(1 <= symbols <= MOST, f"symbols={symbols} must be in [1, {MOST}]")
    require(tokenizer is None or unit == "character", "unit='byte' and a tokenizer exclude each other")
    found = corpus.read(path)
    train, _ = parts(found.text, held_out)
    return of_split(found, kind_of(train, unit, symbols, tokenizer), length, split, held_out)


def check(length: int, held_out: float) -> None:
    """Require settings in their ranges."""
    require(1 <= length <= LONGEST, f"length={length} must be in [1, {LONGEST}]")
    require(0 <= held_out < 1, f"held_out={held_out:g} must be a share in [0, 1)")


def parts(text: str, held_out: float) -> tuple[str, str]:
    """The beginning of a text, to train on, and its end."""
    end = len(text) - round(held_out * len(text))
    return text[:end], text[end:]


def of_split(found: Corpus, kind: Tokens, length: int, split: str, held_out: float) -> "Text":
    """One of the two parts of a text; the end must be as long as a sequence, since it is wanted later."""
    begin, end = parts(found.text, held_out)
    if split == "test":
        require(held_out > 0, "held_out=0 leaves nothing for split=test")
        return Text(end, kind, length, f"the end of {found.found}", overlapping=False)
    train = Text(begin, kind, length, found.found, overlapping=True)
    train.found += f"; {len(end):,} characters at the end held out"
    train.notes = (*found.notes, *train.notes)
    train.left_out = found.left_out
    if held_out:
        check_length(len(encoded(end, kind)), kind, length, f"the end of {found.found}", "judge by")
    return train


def check_length(count: int, kind: Tokens, length: int, origin: str, purpose: str) -> None:
    """Require as many tokens as a sequence has.

    Raises:
        DataError: They are fewer.
    """
    if count < length:
        fewer = f"{origin}: {count:,} {kind.symbol}s to {purpose} are fewer than dataset.length={length}"
        raise DataError(f"{fewer}: give more, or a smaller length")


# --- vocabularies -------------------------------------------------------------------------------------------------


def kind_of(train: str, unit: Unit, symbols: int, file: str | None) -> Tokens:
    """The tokens of a text to train on; see `text`."""
    if file is not None:
        return Tokens(symbols=(), symbol="token", tokenizer=tokenizer.read(file))
    if unit == "byte":
        return Tokens(symbols=BYTES, symbol="byte")
    return Tokens(symbols=tuple(map(plain, common(train, symbols))), symbol="character", unknown=True)


def common(text: str, most: int) -> list[str]:
    """The most frequent characters in the order of their code points, and U+FFFD for all others.

    Of characters that are as frequent those with the lower code points are taken.
    """
    counts = Counter(text)
    del counts[UNKNOWN]
    frequent = sorted(counts, key=lambda char: (-counts[char], char))[:most]
    return [*sorted(frequent), UNKNOWN]


def encoded(text: str, kind: Tokens) -> Tensor:
    """The tokens of a text, in the smallest type of numbers that holds them all.

    Raises:
        UsageError: Something in it has no symbol, and there is none for the unknown.
    """
    most = len(kind.names)
    dtype = np.uint8 if most <= 2**8 else np.int16 if most <= 2**15 else np.int32
    pieces = _numbers(text, kind) if kind.symbol == "character" else [kind.ids(text)]
    return torch.from_numpy(np.concatenate([np.zeros(0, dtype), *(np.asarray(piece, dtype) for piece in pieces)]))


def _numbers(text: str, kind: Tokens) -> Iterator[np.ndarray]:
    """The tokens of characters, some at a time: one by one as `Tokens.ids` takes them would take minutes."""
    distinct = "".join(sorted(set(text)))
    table = np.zeros(max(map(ord, distinct), default=0) + 1, np.int32)
    table[[ord(char) for char in distinct]] = kind.ids(distinct)
    for start in range(0, len(text), PIECE):
        yield table[np.frombuffer(text[start : start + PIECE].encode("utf-32-le"), np.uint32)]


def _lossy(kind: Tokens, text: str) -> tuple[str, ...]:
    """That a tokenizer drops or changes something, as some do with spaces, capitals and rare characters."""
    if kind.tokenizer is None or all(kind.text(kind.ids(piece)) == piece for piece in tokenizer.pieces(text)):
        return ()
    return (
        "the tokenizer does not give the text back as it was: what it drops is neither learned nor counted in bits",
    )


# --- sequences ----------------------------------------------------------------------------------------------------


class Text(Source):
    """Pieces of one text, all of one length.

    Attributes:
        text: All of it.
        tokens: The same as tokens, [n] of a small type of numbers.
        stride: Tokens from the beginning of one sequence to that of the next.
    """

    kind: Tokens
    classes = ()

    def __init__(self, text: str, kind: Tokens, length: int, origin: str, *, overlapping: bool) -> None:
        """Cut a text into tokens.

        Args:
            text: The text.
            kind: Of tokens.
            length: Of a sequence, in tokens.
            origin: Where the text comes from, in few words.
            overlapping: Whether a sequence begins at every token, as to train on, or where the last one ends, as to
                judge by. Of long texts only at every other, or every third, ..., so that there are at most `ENTRIES`.

        Raises:
            UsageError: The text has something for which there is no token.
            DataError: It is shorter than a sequence.
        """
        self.text, self.kind, self.length = text, kind, length
        self.origin, self.overlapping = origin, overlapping
        self.tokens = encoded(text, kind)
        check_length(len(self.tokens), kind, length, origin, "train on" if overlapping else "judge by")
        self.stride = -(-(len(self.tokens) - length + 1) // ENTRIES) if overlapping else length
        self.shape = self._shape(kind)
        self.home = "kept on the device" if self.tokens.nbytes <= RESIDENT_BYTES else "kept in memory"
        self.found, self.notes = self._found(), (*self._strange(), *_lossy(kind, text))

    def __len__(self) -> int:
        return (len(self.tokens) - self.length) // self.stride + 1

    @property
    def once(self) -> int:
        """See `Source`: sequences without overlap."""
        return len(self.tokens) // self.length

    def batches(self, entries: Iterator[Tensor], device: torch.device) -> Iterator[Stored]:
        """See `Source`."""
        tokens = self.tokens.to(device) if self.tokens.nbytes <= RESIDENT_BYTES else self.tokens
        for chosen in entries:
            examples = tokens[self._places(chosen.to(tokens.device))].long()
            yield Stored(examples.to(device), torch.full((len(chosen),), -1, device=device))

    def of(self, kind: Kind) -> "Text":
        """See `Source`; where that kind has other tokens, the text is cut into these."""
        if not isinstance(kind, Tokens):
            raise UsageError(f"the data is text, and this model makes {kind.unit}")
        if kind.as_tokens(0) == self.kind.as_tokens(0):
            other = copy.copy(self)
            other.kind, other.shape = kind, self._shape(kind)
            return other
        other = Text(self.text, kind, self.length, self.origin, overlapping=self.overlapping)
        other.left_out = self.left_out
        return other

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the tokens and of how they are cut, in hex."""
        total = sha256(f"{self.length}/{self.stride}/{self.tokens.dtype}".encode())
        total.update(self.tokens.numpy().data)
        return total.hexdigest()

    def _places(self, entries: Tensor) -> Tensor:
        """Where the tokens of sequences are, int64 [n, L]."""
        return (entries * self.stride)[:, None] + torch.arange(self.length, device=entries.device)

    def _shape(self, kind: Tokens) -> DataShape:
        """Of x0 of that kind."""
        return DataShape(kind.encode(self.tokens[None, : self.length].long())[0].shape, vocabulary=kind.vocabulary)

    def _found(self) -> str:
        kind, distinct = self.kind, len(set(self.text))
        cut = f", {len(self.tokens):,} {kind.symbol}s" if kind.symbol != "character" else ""
        return f"{self.origin}: {len(self.text):,} characters, {distinct:,} of them distinct{cut}"

    def _strange(self) -> tuple[str, ...]:
        """How much has no token of its own."""
        kind = self.kind
        number = kind.stranger
        count = 0 if number is None else int((self.tokens == number).sum())
        if not count:
            return ()
        share = f"{self.origin}: {count:,} of {len(self.tokens):,} {kind.symbol}s"
        return (f"{share} are none of the vocabulary of {len(kind.names):,}, and one symbol stands for all of them",)
