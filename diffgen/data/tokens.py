"""Kinds whose examples are sequences of tokens: the tokens themselves, and their bits as real numbers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import chain, groupby, zip_longest
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from diffgen.core.errors import DataError, UsageError, require
from diffgen.core.paths import named_file
from diffgen.data import corpus, tokenizer
from diffgen.data.kinds import KINDS, Kind

Symbol = Literal["character", "byte", "word", "token"]

UNKNOWN = "\ufffd"
"""Stands for all that has no symbol of its own, and for what is no text."""

HIDDEN = "\u2591"
"""What a hidden token, -1, is shown as: a light shade, which is in few vocabularies."""

TURNING = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
"""Controls of the direction of writing: they turn round what stands beside them on a screen."""

BREAKING = re.compile(f"[\\\\\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff{TURNING}]")
"""What would end a line of text, turn it or be lost in it, and the backslash that marks an escape; a tab stays."""

SHORT = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}
ESCAPE = re.compile(r"\\(?:([\\nr])|x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8}))?")

AT_ONCE = 1024
"""Tokens that are compared with every code together."""


# --- escapes ------------------------------------------------------------------------------------------------------


def escaped(text: str) -> str:
    r"""Text on one line: \\, \n, \r, and \xNN, \uNNNN for other characters that control, turn or break lines."""
    return BREAKING.sub(lambda found: SHORT.get(found[0]) or _code(found[0]), text)


def unescaped(line: str) -> str:
    """The inverse of `escaped` and of `plain`.

    Raises:
        DataError: A backslash begins no escape.
    """
    return ESCAPE.sub(lambda found: _meant(found, line), line)


def plain(text: str) -> str:
    """Text in ASCII as a checkpoint's config may hold it; `unescaped` gives it back.

    What else is printable differs between versions of Python.
    """
    known = (char if " " <= char <= "~" else _code(char) for char in escaped(text))
    return "".join(known).replace("${", "\\x24{")


def _code(char: str) -> str:
    number = ord(char)
    return f"\\x{number:02x}" if number < 2**8 else f"\\u{number:04x}" if number < 2**16 else f"\\U{number:08x}"


def _meant(found: re.Match[str], line: str) -> str:
    digits = found[2] or found[3] or found[4]
    if digits and int(digits, 16) < 0x110000:
        return chr(int(digits, 16))
    if found[1]:
        return {"n": "\n", "r": "\r"}.get(found[1], found[1])
    raise DataError(f"{line[found.start() : found.start() + 10]!r} begins with a backslash and is no escape")


# --- tokens -------------------------------------------------------------------------------------------------------


@KINDS.register("tokens")
@dataclass(frozen=True, kw_only=True)
class Tokens(Kind):
    """Sequences of tokens: int64 [L] in [0, number of symbols), x0 itself.

    Attributes:
        symbols: The text of each token, as `plain` writes it; none beside a tokenizer, which has them.
        symbol: What one token is called.
        padded: Whether the last symbol is empty and fills sequences that are shorter.
        unknown: Whether the symbol U+FFFD stands for all that has no symbol.
        tokenizer: JSON text of a Hugging Face tokenizer, where that cuts a text into tokens.
    """

    symbols: tuple[str, ...]
    symbol: Symbol
    padded: bool = False
    unknown: bool = False
    tokenizer: str | None = None

    unit = "sequences"
    short = "seq"
    axes = 1
    textual = True
    tiled = False
    together = always = ("txt", "npz")

    def __post_init__(self) -> None:
        """Check that the fields belong together; a checkpoint may say anything."""
        require((self.symbol == "token") == (self.tokenizer is not None), "tokenizer and symbol='token' go together")
        if self.tokenizer is not None:
            self._check_tokenizer(self.tokenizer)
            return
        one_each = 1 <= len(self.symbols) == len(set(self.symbols))
        require(one_each, "symbols must be one text for each token, and no two the same")
        empty = "" in self.symbols
        require(self.padded == empty == (self.symbols[-1] == ""), "symbols end with the empty one where padded=true")
        fits = self.symbol in ("character", "word") or not (self.padded or self.unknown)
        require(fits, f"padded and unknown are for characters and words, not for symbol={self.symbol!r}")
        known = UNKNOWN in self.symbols or plain(UNKNOWN) in self.symbols
        require(known or not self.unknown, "unknown=true needs the symbol U+FFFD")
        require(self.symbol != "byte" or self.symbols == BYTES, "symbol='byte' has the 256 bytes as its symbols")

    def _check_tokenizer(self, kept: str) -> None:
        others = self.symbols or self.padded or self.unknown
        require(not others, "symbols, padded and unknown are not for a tokenizer")
        try:
            tokenizer.symbols(kept)
        except DataError as error:
            raise UsageError(str(error)) from None

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The text of each token, or its tokenizer's name of it, as `plain` writes it."""
        return self.symbols or tuple(map(plain, tokenizer.symbols(str(self.tokenizer))))

    @property
    def vocabulary(self) -> int:
        """Number of values of a token of x0."""
        return len(self.names)

    @property
    def measure(self) -> str:
        """What a loss is measured in."""
        return f"bits/{'char' if self.symbol == 'character' else self.symbol}"

    def sized(self, size: tuple[int, ...]) -> str:
        """See `Kind`."""
        return f"{size[-1]} {self.symbol}s"

    def as_tokens(self, levels: int) -> "Tokens":
        """The kind whose x0 is tokens; `levels` is for pictures."""
        return Tokens(**self._fields)

    def as_numbers(self) -> "Bits":
        """The kind whose x0 is real numbers."""
        return Bits(**self._fields)

    # --- text ---

    def ids(self, text: str) -> list[int]:
        """The tokens of a text; of words, those between its spaces.

        Raises:
            UsageError: Something in it has no symbol, and there is none for the unknown.
        """
        if self.symbol == "word":
            return [self._number(word) for word in text.split()]
        if self.symbol == "character":
            return [self._number(char) for char in text]
        return list(_bytes(text)) if self.tokenizer is None else tokenizer.ids(self.tokenizer, text)

    def _number(self, piece: str) -> int:
        number = self._numbers.get(piece, self.stranger)
        if number is None:
            raise UsageError(f"text has {piece!r}, which is no {self.symbol} that this model was trained on")
        return number

    def text(self, ids: Sequence[int]) -> str:
        """The text of tokens in [0, number of symbols), or -1 for hidden ones.

        Padding at the end is left out and elsewhere shown as U+FFFD, as are bytes that are no UTF-8.
        """
        if self.symbol in ("byte", "token"):
            runs = groupby(ids, key=lambda number: number < 0)
            return "".join(HIDDEN * len(list(run)) if hidden else self._run(list(run)) for hidden, run in runs)
        texts = [HIDDEN if number < 0 else self._texts[number] for number in ids]
        while texts and not texts[-1]:
            texts.pop()
        return (" " if self.symbol == "word" else "").join(text or UNKNOWN for text in texts)

    def _run(self, ids: list[int]) -> str:
        """The text of bytes or of a tokenizer's tokens, which mean something together only."""
        if self.tokenizer is not None:
            return tokenizer.text(self.tokenizer, ids)
        return bytes(ids).decode("utf-8", "replace")

    def lines(self, examples: Tensor) -> list[str]:
        """The text of each of some stored examples, int64 [n, L], on one line: as `escaped` writes it.

        Raises:
            UsageError: There is no such token.
        """
        most = len(self.names) - 1
        require(bool(((examples >= -1) & (examples <= most)).all()), f"tokens must be in [-1, {most}], -1 for hidden")
        return [escaped(self.text(ids)) for ids in examples.tolist()]

    @cached_property
    def stranger(self) -> int | None:
        """The token for all that has no symbol, if there is one."""
        if self.tokenizer is not None:
            return tokenizer.unknown(self.tokenizer)
        return self._numbers[UNKNOWN] if self.unknown else None

    def template(self, text: str, mark: str, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """See `Kind`; the last line end of a file is no part of it."""
        gap = [-1]
        first, *others = _given(text).split(mark)
        pieces = [self._known(first), *map(self._after_gap, others)]
        ids = list(chain(pieces[0], *(gap + piece for piece in pieces[1:])))
        length, what = size[-1], f"text has {len(ids):,} {self.symbol}s"
        require(len(ids) <= length, f"{what}, and this model makes {length:,}: shorten it")
        tokens = torch.tensor(ids + gap * (length - len(ids)))
        free = tokens < 0
        require(bool(free.any()), f"{what}, as many as this model makes, and no {mark!r}: nothing would be filled in")
        x0 = self.encode(tokens.clamp(min=0)[None])[0]
        return x0, free.expand(x0.shape)

    def _known(self, text: str) -> list[int]:
        """The tokens of a text that is to stay as it is.

        Raises:
            UsageError: Something in it has no token of its own.
        """
        ids = self.ids(text)
        given, kept = (self._pieces(each) for each in (text, self.text(ids)))
        if given != kept:
            lost = next(a for a, b in zip_longest(given, kept) if a != b) or text[:40]
            what = "not given back by this model's tokenizer" if self.tokenizer else f"no {self.symbol} of this model's"
            raise UsageError(f"text has {lost!r}, which is {what}: it could not be kept")
        return ids

    def _after_gap(self, text: str) -> list[int]:
        """The same of a text that something stands before, which many tokenizers set apart by a space.

        Raises:
            UsageError: See `_known`; or it would not join what is filled in.
        """
        if not text:
            return []
        ids = self._known(text)
        letter = next((i for i, told in enumerate(self._texts) if told.isascii() and told.isalnum()), None)
        if self.tokenizer is None or letter is None:
            return ids
        before, joined = self.text([letter]), self.text([letter, *ids])
        sentence = f"text has {text[:40]!r} after a gap, where this model's tokenizer would put something between them"
        require(joined.rstrip() == f"{before}{text}".rstrip(), f"{sentence}: it could not be kept")
        return ids

    def _pieces(self, text: str) -> list[str]:
        """Words or characters; spaces around a text stand for nothing to words and to many tokenizers."""
        if self.symbol == "word":
            return text.split()
        return list(text.strip() if self.tokenizer is not None else text)

    # --- files ---

    def write(self, name: str, examples: Tensor, labels: Sequence[int], classes: Sequence[str]) -> bytes:
        """See `Kind`; `txt` holds an example a line."""
        if name == "txt":
            return "".join(f"{line}\n" for line in self.lines(examples)).encode()
        return super().write(name, examples, labels, classes)

    def beside(self) -> dict[str, np.ndarray]:
        """`symbols`, the text of each token as `escaped` writes it."""
        return {"symbols": np.asarray([escaped(text) for text in self._texts], np.str_)}

    @property
    def _fields(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def _texts(self) -> tuple[str, ...]:
        return tuple(map(unescaped, self.names))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {text: number for number, text in enumerate(self._texts)}


def _given(text: str) -> str:
    """A text, or that of the file of this name."""
    file = named_file(text)
    return text if file is None else corpus.read(file, "task.text").text.removesuffix("\n")


def _bytes(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"text has {text[error.start]!r}, half of a character, which UTF-8 cannot spell") from None


BYTES = tuple(plain(chr(byte)) if byte < 2**7 else f"\\x{byte:02x}" for byte in range(2**8))
"""Symbols of bytes; those above 127 are no characters by themselves."""


@KINDS.register("bits")
@dataclass(frozen=True, kw_only=True)
class Bits(Tokens):
    """Sequences of tokens whose x0 is their binary codes, float32 [bits, L] of -1 and 1, the first bit the highest.

    Analog bits (Chen et al. 2023, 2208.04202, section 2). Codes that no token has, where the number of symbols is no
    power of two, are the invalid ones.
    """

    axes = 2
    bounded: ClassVar[bool] = True

    @property
    def vocabulary(self) -> int:
        """0: x0 is real numbers."""
        return 0

    @property
    def bits(self) -> int:
        """Length of a code: the logarithm of the number of symbols to base 2, rounded up, and at least 1."""
        return max(1, (len(self.names) - 1).bit_length())

    @property
    def measure(self) -> str:
        """None."""
        return ""

    def as_numbers(self) -> "Bits":
        """Itself."""
        return self

    def check(self, size: tuple[int, ...]) -> None:
        """See `Kind`."""
        super().check(size)
        of = f"the bits of {len(self.names)} symbols"
        require(size[0] == self.bits, f"data.size={list(size)} must begin with {self.bits}, {of}")

    def encode(self, stored: Tensor) -> Tensor:
        """Tokens int64 [B, L] -> codes."""
        shifts = torch.arange(self.bits - 1, -1, -1, device=stored.device)[:, None]
        return ((stored[:, None, :] >> shifts) & 1).float() * 2 - 1

    def decode(self, x0: Tensor) -> Tensor:
        """The code of the signs; where no token has it, the token whose code has the largest inner product with x0.

        That is the likeliest token where x0 is its code with Gaussian noise.
        """
        numbers = self._signs(x0)
        invalid = numbers >= len(self.names)
        if invalid.any():
            numbers[invalid] = self._nearest(x0.movedim(1, -1)[invalid].float())
        return numbers

    def strays(self, x0: Tensor) -> Tensor:
        """Where the signs of x0 [B, bits, L] are a code that no token has: bool [B, L]."""
        return self._signs(x0) >= len(self.names)

    def _signs(self, x0: Tensor) -> Tensor:
        powers = 2 ** torch.arange(self.bits - 1, -1, -1, device=x0.device)
        return ((x0 > 0) * powers[:, None]).sum(1)

    def _nearest(self, x0: Tensor) -> Tensor:
        """Tokens int64 [n] of x0 [n, bits]."""
        codes = self.encode(torch.arange(len(self.names), device=x0.device)[None])[0]
        return torch.cat([(some @ codes).argmax(1) for some in x0.split(AT_ONCE)])
