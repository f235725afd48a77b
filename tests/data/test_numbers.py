"""Numbers spelled in English, and whether a text is one."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rows import dataset

from diffgen.core.errors import UsageError
from diffgen.data.kinds import Pixels
from diffgen.data.numbers import Numbers, number, spelled
from diffgen.data.tokens import UNKNOWN


def load(**changes: object) -> Numbers:
    data: Numbers = dataset("numbers", **{"n": 500, **changes})
    return data


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "zero"),
        (10, "ten"),
        (13, "thirteen"),
        (20, "twenty"),
        (21, "twenty-one"),
        (100, "one hundred"),
        (105, "one hundred five"),
        (1000, "one thousand"),
        (1001, "one thousand one"),
        (42_907, "forty-two thousand nine hundred seven"),
        (800_000, "eight hundred thousand"),
        (999_999, "nine hundred ninety-nine thousand nine hundred ninety-nine"),
    ],
)
def test_spelling(n: int, text: str) -> None:
    assert spelled(n) == text
    assert number(text) == n


@given(st.integers(0, 999_999))
def test_a_spelled_number_is_read_back(n: int) -> None:
    assert number(spelled(n)) == n


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "zero ", "one  hundred", "One", "forty two", "forty-zero", "hundred", "thousand", "zero thousand",
        "one thousand zero", "zero hundred", "one hundred zero", "one and two", "ten-one", "twenty-ten", "one thousand thousand",
        "one thousand one thousand", "one hundred hundred", "two three", "one\n", "twenty-", f"one {UNKNOWN} thousand",
    ],
)  # fmt: skip
def test_what_is_no_number_is_not_right(text: str) -> None:
    assert number(text) is None
    assert load().right(text) is False


def test_all_words_are_known_and_sequences_are_as_long_as_the_longest() -> None:
    words, characters = load(), load(unit="character")
    assert words.shape.size == (7,)
    assert characters.shape.size == (64,)
    assert words.shape.vocabulary == 103
    assert max(len(spelled(n)) for n in range(0, 1_000_000, 1001)) == 64
    for data in (words, characters):
        texts = data.kind.lines(data.stored)
        assert all(map(data.right, texts))
        assert len(set(texts)) == 500


@pytest.mark.parametrize("seed", [1, 2])
def test_the_test_split_is_the_same_for_every_seed(seed: int) -> None:
    test = load(split="test", seed=seed)
    train = load(n=100_000, seed=seed)
    assert torch.equal(test.stored, load(split="test").stored)
    assert not set(test.kind.lines(test.stored)) & set(train.kind.lines(train.stored))
    assert not torch.equal(train.stored[:500], load().stored)


@pytest.mark.parametrize("unit", ["word", "character"])
def test_the_test_split_is_of_others(unit: str) -> None:
    train, test = load(unit=unit, n=2000), load(unit=unit, split="test")
    held_out = set(test.kind.lines(test.stored))
    assert len(held_out) == 10_000
    assert not held_out & set(train.kind.lines(train.stored))
    assert train.kind == test.kind


def test_what_is_trained_on_depends_on_the_seed_alone() -> None:
    assert torch.equal(load().stored, load(n=600).stored[:500])
    assert torch.equal(load(split="test").stored, load(n=600, split="test").stored)
    assert not torch.equal(load().stored, load(seed=1).stored)


def test_the_true_entropy_is_known() -> None:
    data = load()
    assert data.entropy is not None
    assert math.isclose(data.entropy * math.log(2), math.log(1_000_000))
    assert "500 of the 1,000,000 numbers below a million, spelled with 102 words: 19.932 bits each" in data.found
    assert data.part(torch.arange(3)).entropy == data.entropy


def test_only_a_model_of_the_same_tokens_is_judged_by_it() -> None:
    words = load()
    assert words.of(words.kind.as_numbers()).shape.size == (7, 7)
    for kind in (load(unit="character").kind, Pixels()):
        with pytest.raises(UsageError, match="set dataset.unit as it was in training"):
            words.of(kind)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"n": 0}, r"n=0 must be in \[1, 990000\]"), ({"n": 10**6}, "n=1000000"), ({"seed": -1}, "seed=-1")],
)
def test_settings_out_of_range(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        load(**changes)
