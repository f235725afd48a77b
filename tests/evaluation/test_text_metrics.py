"""Metrics of drawn text against their definitions, written out slowly."""

import math
from collections import Counter

import numpy as np
import pytest

from diffgen.evaluation.ngrams import streamed
from diffgen.evaluation.text_metrics import divergence, longest_runs, unigram_entropy

RNG = np.random.default_rng(0)
ROWS = RNG.integers(0, 3, (20, 12))
OTHERS = RNG.integers(0, 4, (15, 9))
TRAINING = RNG.integers(0, 3, 300)


def slow_divergence(a: np.ndarray, b: np.ndarray, n: int) -> float:
    """By a table of tuples."""
    p, q = (Counter(tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1)) for rows in (a, b))
    ps, qs = ({gram: count / side.total() for gram, count in side.items()} for side in (p, q))
    total = 0.0
    for gram in {*ps, *qs}:
        one, other = ps.get(gram, 0.0), qs.get(gram, 0.0)
        middle = (one + other) / 2
        total += sum(x * math.log2(x / middle) / 2 for x in (one, other) if x)
    return total


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_divergence_is_its_definition(n: int) -> None:
    b = np.pad(OTHERS, ((0, 0), (0, 3)), constant_values=3)
    assert divergence(ROWS, b, n, 4) == pytest.approx(slow_divergence(ROWS, b, n), abs=1e-12)


def test_divergence_of_the_same_and_of_nothing_shared() -> None:
    assert divergence(ROWS, ROWS[::-1], 3, 3) == pytest.approx(0, abs=1e-12)
    assert divergence(ROWS, ROWS + 3, 1, 6) == pytest.approx(1)


def test_divergence_tells_shuffled_text_from_its_order_alone() -> None:
    text = np.tile([0, 1, 2, 3], (40, 6))
    shuffled = RNG.permuted(text, axis=1)
    assert divergence(text, shuffled, 1, 4) == pytest.approx(0, abs=1e-12)
    assert divergence(text, shuffled, 2, 4) > 0.5


def slow_run(row: np.ndarray, training: np.ndarray) -> int:
    """By looking for every part."""
    text, known = "".join(map(str, row)), "".join(map(str, training))
    parts = (text[i:j] for i in range(len(text)) for j in range(i + 1, len(text) + 1))
    return max((len(part) for part in parts if part in known), default=0)


def test_longest_runs_are_found() -> None:
    whole = TRAINING[100:112]
    rows = np.concatenate([ROWS, whole[None], np.roll(whole, 5)[None], np.full((1, 12), 3), TRAINING[None, -12:]])
    found = longest_runs(rows, TRAINING, 4)
    assert found.tolist() == [slow_run(row, TRAINING) for row in rows]
    assert found[-4:-1].tolist() == [12, found[-3], 0]


@pytest.mark.parametrize("length", [1, 2, 7])
def test_longest_runs_of_any_length(length: int) -> None:
    rows = RNG.integers(0, 5, (30, length))
    training = RNG.integers(0, 5, 6)
    assert longest_runs(rows, training, 5).tolist() == [slow_run(row, training) for row in rows]


def test_no_run_goes_over_a_beginning() -> None:
    known = np.array([[0, 1, 2], [2, 1, 0]])
    rows = np.array([[1, 2, 2], [0, 1, 2], [2, 2, 1], [2, 1, 0]])
    assert longest_runs(rows, streamed(known, 3), 3).tolist() == [2, 3, 2, 3]


def test_unigram_entropy() -> None:
    assert unigram_entropy(np.array([[0, 1], [2, 3]])) == pytest.approx(2)
    assert unigram_entropy(np.array([[5, 5]])) == 0
