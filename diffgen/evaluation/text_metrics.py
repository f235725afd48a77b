"""Metrics of drawn token sequences: pure functions on tokens, int64 [n, L] in [0, vocabulary)."""

import numpy as np

from diffgen.evaluation.ngrams import numbered, streamed


def entropy(counts: np.ndarray) -> float:
    """Entropy in bits of the distribution that counts [V] are in proportion to."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log2(p)).sum())


def unigram_entropy(rows: np.ndarray) -> float:
    """Entropy of the single tokens of all samples together, bits a token: low where samples are all alike."""
    return entropy(np.bincount(rows.ravel()))


def divergence(a: np.ndarray, b: np.ndarray, n: int, vocabulary: int) -> float:
    """Jensen-Shannon divergence between the distributions of n-grams in two sets of sequences (Lin 1991, eq. 4.1).

    It depends on how many n-grams there are: of few, even two sets from one distribution share little.

    Args:
        a: Tokens, int64 [N, L] with L >= n.
        b: Others, int64 [M, L].
        n: Tokens of an n-gram.
        vocabulary: Number of different tokens there can be.

    Returns:
        Bits in [0, 1]: 0 for equal distributions, 1 where no n-gram is in both.
    """
    rows = np.concatenate([a, b])
    grams, different = rows, vocabulary
    for length in range(2, n + 1):
        keys = grams[:, :-1] * vocabulary + rows[:, length - 1 :]
        names, ranks, _ = numbered(keys.ravel(), different * vocabulary)
        grams, different = ranks.reshape(keys.shape), len(names)
    p, q = (np.bincount(part.ravel(), minlength=different) / part.size for part in np.split(grams, [len(a)]))
    return max(entropy(p + q) - (entropy(p) + entropy(q)) / 2, 0.0)


def longest_runs(rows: np.ndarray, training: np.ndarray, vocabulary: int) -> np.ndarray:
    """Length of the longest run of tokens of each sequence that stands in the training text too.

    All suffixes of both are sorted by their first L tokens (Manber & Myers 1993); of those of the training text, the
    neighbours of a suffix have the longest beginning in common with it.

    Args:
        rows: Tokens, int64 [n, L].
        training: A stream, see `evaluation.ngrams`; no run goes over a beginning.
        vocabulary: Number of different tokens there can be.

    Returns:
        int64 [n] in [0, L].
    """
    length = rows.shape[1]
    end = np.full(length, vocabulary + 1)
    stream = np.concatenate([training, end, streamed(rows, vocabulary + 1), end])
    order = _order(stream, length)
    known = np.argsort(order[: len(training)], kind="stable")
    starts = (len(training) + length + np.arange(len(rows))[:, None] * (length + 1) + 1 + np.arange(length)).ravel()
    after = np.searchsorted(order[known], order[starts])
    found = [_common(stream, starts, known[(after + step).clip(0, len(known) - 1)], vocabulary) for step in (-1, 0)]
    return np.maximum(*found).reshape(rows.shape).max(1)


def _order(stream: np.ndarray, length: int) -> np.ndarray:
    """Number of each place among all, sorted by the `length` tokens from it on; equal where these are."""
    order, different, told = stream, int(stream.max()) + 1, 1
    while told < length and different < len(stream):
        ahead = np.concatenate([order[told:], np.zeros(told, np.int64)])
        names, order, _ = numbered(order * different + ahead, different**2)
        different, told = len(names), 2 * told
    return order


def _common(stream: np.ndarray, a: np.ndarray, b: np.ndarray, vocabulary: int) -> np.ndarray:
    """How many tokens are the same from places a and b on, int64 [n]; a beginning or an end is no token."""
    count, alive = np.zeros(len(a), np.int64), np.arange(len(a))
    while len(alive):
        here = stream[a[alive] + count[alive]]
        alive = alive[(here == stream[b[alive] + count[alive]]) & (here < vocabulary)]
        count[alive] += 1
    return count
