"""N-gram models against sums to one, hand-computed cases, and a Markov chain whose entropy is known."""

import itertools
import math

import numpy as np
import pytest

from diffgen.evaluation.ngrams import NGrams, numbered, streamed


def chain(transitions: np.ndarray, length: int, seed: int = 0) -> np.ndarray:
    """A Markov chain's states, from state 0."""
    rng, states = np.random.default_rng(seed), [0]
    for u in rng.random(length - 1):
        states.append(int(np.searchsorted(transitions[states[-1]].cumsum(), u)))
    return np.array(states).clip(max=len(transitions) - 1)


def entropy_rate(transitions: np.ndarray) -> float:
    """Bits a step in the long run."""
    stationary = np.linalg.matrix_power(transitions, 200)[0]
    return float(-(stationary[:, None] * transitions * np.log2(transitions)).sum())


def test_a_tiny_text_by_hand() -> None:
    """`aab` of a, b, c: p_0(a) = (2 + 2/3) / 5; p_1(b | a) = (1 + 2 p_0(b)) / 4, p_1(a | b) = p_0(a)."""
    model = NGrams.fit(np.array([0, 0, 1]), 3, longest=2)
    a, b, c = (2 + 2 / 3) / 5, (1 + 2 / 3) / 5, (2 / 3) / 5
    after_a = {0: (1 + 2 * a) / 4, 1: (1 + 2 * b) / 4, 2: 2 * c / 4}
    after_aa = (1 + 1 * after_a[1]) / 2
    rows = np.array([[0, 0, 1, 0], [2, 0, 2, 1]])
    expected = [
        [[a, a, b, a], [c, a, c, b]],
        [[a, after_a[0], after_a[1], a], [c, a, after_a[2], b]],  # nothing was seen after b, or after c
        [[a, after_a[0], after_aa, a], [c, a, after_a[2], b]],
    ]
    np.testing.assert_allclose(2.0 ** -model.bits(rows), expected, rtol=1e-12)


@pytest.mark.parametrize("training", [[], [0], [2, 2, 1, 0, 2, 1, 1, 0, 2, 2, 1, 0, 0]])
def test_probabilities_of_all_continuations_sum_to_one(training: list[int]) -> None:
    model = NGrams.fit(np.array(training, np.int64), 3, longest=3)
    for before in itertools.product(range(3), repeat=3):
        rows = np.array([[*before, token] for token in range(3)])
        np.testing.assert_allclose((2.0 ** -model.bits(rows)[:, :, -1]).sum(1), 1, rtol=1e-12)


def test_all_sequences_sum_to_one_where_texts_begin_anew() -> None:
    model = NGrams.fit(streamed(np.array([[0, 1, 2], [0, 1, 1], [2, 0, 1]]), 3), 3, longest=3)
    every = np.array(list(itertools.product(range(3), repeat=3)))
    np.testing.assert_allclose((2.0 ** -model.bits(every).sum(2)).sum(1), 1, rtol=1e-12)


def test_nothing_known_is_uniform() -> None:
    np.testing.assert_allclose(NGrams.fit(np.empty(0, np.int64), 27).bits(np.array([[3, 26, 0]])), math.log2(27))


def test_a_beginning_is_a_context_and_never_predicted() -> None:
    """All texts begin with 1, which is rare elsewhere."""
    rows = np.array([[1, 0, 0, 2, 0, 0]] * 20)
    bits = NGrams.fit(streamed(rows, 3), 3).bits(rows[:1])
    assert bits[0, 0, 0] > 2
    assert bits[1, 0, 0] < 0.1
    assert bits[5].sum() < 1


def test_contexts_begin_anew_in_each_row() -> None:
    model = NGrams.fit(np.array([0, 1, 2] * 30), 3)
    alone, second = model.bits(np.array([[1, 2, 0]])), model.bits(np.array([[0, 1, 2], [1, 2, 0]]))
    np.testing.assert_array_equal(alone[:, 0], second[:, 1])
    np.testing.assert_array_equal(alone[:, 0, 0], alone[0, 0, 0])  # no context at the start, whatever its length


def test_the_entropy_of_a_markov_chain_is_recovered() -> None:
    transitions = np.array([[0.8, 0.1, 0.1], [0.05, 0.05, 0.9], [0.5, 0.3, 0.2]])
    text = chain(transitions, 60_000)
    bits = NGrams.fit(text[:50_000], 3).bits(text[None, 50_000:]).mean((1, 2))
    assert bits[0] > entropy_rate(transitions) + 0.2
    np.testing.assert_allclose(bits[1:], entropy_rate(transitions), atol=0.02)


def test_a_large_vocabulary_has_long_contexts() -> None:
    """50,000^6 is more than 64 bits hold."""
    text = np.random.default_rng(0).permutation(50_000)
    bits = NGrams.fit(text, 50_000).bits(text[None, 100:200])
    assert np.allclose(bits[0], math.log2(50_000))
    assert (bits[5, 0, 5:] < 0.1).all()


@pytest.mark.parametrize("bound", [7, 10_000])
def test_keys_are_numbered_alike_by_a_table_and_by_sorting(bound: int) -> None:
    names, numbers, counts = numbered(np.array([6, 2, 2, 6, 6, 0]), bound)
    assert (names.tolist(), numbers.tolist(), counts.tolist()) == ([0, 2, 6], [2, 1, 1, 2, 2, 0], [1, 2, 3])
