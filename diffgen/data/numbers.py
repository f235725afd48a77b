"""Numbers below a million, spelled out in English: text of which each sample is right or wrong, and nothing is read."""

import math
from functools import cache
from itertools import chain
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from diffgen.core.errors import UsageError, require
from diffgen.core.randomness import generator
from diffgen.data.base import DATASETS, InMemory
from diffgen.data.kinds import Kind
from diffgen.data.tokens import Tokens

Unit = Literal["word", "character"]

ALL = 1_000_000
HELD_OUT = 10_000
"""Numbers of the test split."""

ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


@DATASETS.register("numbers")
def numbers(*, unit: Unit, n: int, seed: int, split: Literal["train", "test"]) -> "Numbers":
    """Numbers of 0 to 999,999, each at most once; of all there are, so that the true entropy of one is log2(1,000,000).

    Args:
        unit: What a token is: a word, where twenty-one is one, or a character.
        n: How many to train on; 10,000 others are the test split, the same ones whatever n and seed are.
        seed: Of the choice of those to train on.
        split: Which part.
    """
    require(1 <= n <= ALL - HELD_OUT, f"n={n} must be in [1, {ALL - HELD_OUT}]")
    require(0 <= seed < 2**63, f"seed={seed} must be in [0, 2^63)")
    test = _order(0)[-HELD_OUT:]
    if split == "test":
        return Numbers(test, unit)
    order = _order(seed)
    return Numbers(order[~torch.isin(order, test)][:n], unit)


def _order(seed: int) -> Tensor:
    """All numbers in an order of the seed, int64 [1,000,000]."""
    return torch.randperm(ALL, generator=generator("cpu", seed, "numbers"))


class Numbers(InMemory):
    """Spelled numbers in memory, each filled up to the length of the longest."""

    kind: Tokens
    entropy = math.log2(ALL)

    def __init__(self, values: Tensor, unit: Unit) -> None:
        """Spell them; `values` is int64 [n]."""
        kind = kind_of(unit)
        super().__init__(sequences(values.tolist(), kind), torch.full((len(values),), -1), (), kind)
        what = f"{len(values):,} of the {ALL:,} numbers below a million"
        self.found = f"{what}, spelled with {len(kind.symbols) - 1} {unit}s: {self.entropy:.3f} bits each"

    def right(self, text: str) -> bool:
        """Whether a text is exactly how a number below a million is spelled."""
        return number(text) is not None

    def of(self, kind: Kind) -> InMemory:
        """See `Source`.

        Raises:
            UsageError: The kind has other tokens.
        """
        if not isinstance(kind, Tokens) or kind.as_tokens(0) != self.kind.as_tokens(0):
            raise UsageError("dataset=numbers has other tokens than this model: set dataset.unit as it was in training")
        return super().of(kind)


def spelled(n: int) -> str:
    """`forty-two thousand nine hundred seven`, of a number from 0 to 999,999."""
    thousands, rest = divmod(n, 1000)
    if thousands:
        return f"{spelled(thousands)} thousand" + (f" {spelled(rest)}" if rest else "")
    hundreds, rest = divmod(n, 100)
    if hundreds:
        return f"{ONES[hundreds]} hundred" + (f" {spelled(rest)}" if rest else "")
    return ONES[n] if n < len(ONES) else TENS[n // 10] + (f"-{ONES[n % 10]}" if n % 10 else "")


def number(text: str) -> int | None:
    """The inverse of `spelled`: None where this is not exactly how a number is spelled."""
    thousands, _, rest = text.rpartition("thousand")
    value = 1000 * below_thousand().get(thousands.strip(), 0) + below_thousand().get(rest.strip(), 0)
    return value if spelled(value) == text else None


@cache
def below_thousand() -> dict[str, int]:
    """How the numbers below a thousand are spelled; all others are two of them."""
    return {spelled(n): n for n in range(1000)}


def kind_of(unit: Unit) -> Tokens:
    """The tokens that spell all numbers, in the order in which they first appear, and the padding."""
    texts = [*below_thousand(), "thousand"]
    pieces = [piece for text in texts for piece in (text.split() if unit == "word" else text)]
    return Tokens(symbols=(*dict.fromkeys(pieces), ""), symbol=unit, padded=True)


def sequences(values: list[int], kind: Tokens) -> Tensor:
    """Spelled numbers as tokens, int64 [n, L], filled up to the length of the longest below a million."""
    longest = 1001 * max(range(1000), key=lambda n: len(kind.ids(spelled(n))))
    rows = [kind.ids(spelled(value)) for value in (*values, longest)]
    lengths = np.array([len(ids) for ids in rows])
    filled = np.full((len(rows), lengths.max()), len(kind.symbols) - 1)  # the padding
    filled[np.arange(lengths.max()) < lengths[:, None]] = np.fromiter(chain.from_iterable(rows), np.int64)
    return torch.from_numpy(filled[:-1])
