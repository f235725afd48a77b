"""N-gram models of token sequences: what a count of short contexts predicts, beside which a likelihood is read.

A text is a stream: int64 [M] of tokens in [0, vocabulary), where the value `vocabulary` itself says that a sequence
begins after it, and that nothing before it is known.
"""

from dataclasses import dataclass

import numpy as np

LONGEST = 5
"""Tokens of context of the longest model that is reported."""


@dataclass(frozen=True)
class Level:
    """Counts of one length of context.

    Attributes:
        grams: Context number * (vocabulary + 1) + token of each context with a token after it, int64, sorted.
        counts: How often each was seen; 0 of those that end in a beginning, which nobody predicts.
        seen: By context number, how many tokens followed.
        kinds: By context number, how many different ones.
    """

    grams: np.ndarray
    counts: np.ndarray
    seen: np.ndarray
    kinds: np.ndarray


@dataclass(frozen=True)
class NGrams:
    """Models of all context lengths up to one, interpolated by Witten and Bell's rule.

    p_c(x | h) = (count(h x) + kinds(h) p_{c-1}(x | h')) / (count(h) + kinds(h)), where h' is h without its first
    token, kinds(h) is how many different tokens were seen after h, and p_{-1} is uniform (Witten & Bell 1991, method
    C; Chen & Goodman 1998, sec. 2.5). A context that was never seen leaves p_{c-1} as it is.
    """

    levels: tuple[Level, ...]
    vocabulary: int

    @classmethod
    def fit(cls, stream: np.ndarray, vocabulary: int, longest: int = LONGEST) -> "NGrams":
        """Count a text.

        Args:
            stream: See the module.
            vocabulary: Number of different tokens there can be.
            longest: Tokens of context of the longest model.
        """
        levels: list[Level] = []
        context, begins = np.zeros(len(stream), np.int64), stream == vocabulary
        contexts = 1
        for _ in range(longest + 1):
            known = context >= 0
            gram = np.full(len(stream), -1)
            keys = _keys(context, stream, vocabulary)[known]
            grams, gram[known], counts = numbered(keys, contexts * (vocabulary + 1))
            levels.append(_level(grams, counts, contexts, vocabulary))
            context, contexts = _following(gram, begins), max(len(grams), 1)
        return cls(tuple(levels), vocabulary)

    def bits(self, rows: np.ndarray) -> np.ndarray:
        """-log2 p of every token, given those before it in its row.

        Contexts begin anew in each row, as a model sees it that is given the row alone: in a stream without
        beginnings no context reaches over them, so the first tokens have shorter ones.

        Args:
            rows: Tokens, int64 [n, L].

        Returns:
            float64 [longest + 1, n, L], by tokens of context.
        """
        stream = streamed(rows, self.vocabulary)
        begins = stream == self.vocabulary
        context, p = np.zeros(len(stream), np.int64), np.full(len(stream), 1 / self.vocabulary)
        found = []
        for level in self.levels:
            gram = _looked_up(level.grams, np.where(context < 0, -1, _keys(context, stream, self.vocabulary)))
            p = _interpolated(level, context, gram, p)
            found.append(p[~begins].reshape(rows.shape))
            context = _following(gram, begins)
        return -np.log2(np.stack(found))


def streamed(rows: np.ndarray, vocabulary: int) -> np.ndarray:
    """Sequences int64 [n, L] as one stream, a beginning before each, int64 [n (L + 1)]."""
    return np.pad(rows, ((0, 0), (1, 0)), constant_values=vocabulary).ravel()


def numbered(keys: np.ndarray, bound: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different keys in rising order, the number among them of each key, and how often each occurs.

    Args:
        keys: int64 [n] in [0, bound).
        bound: Where it is not much above n, nothing is sorted: they are counted in a table.
    """
    if bound > 4 * len(keys) + 1024:
        return np.unique(keys, return_inverse=True, return_counts=True)
    counts = np.bincount(keys, minlength=bound)
    different = np.flatnonzero(counts)
    return different, (np.cumsum(counts > 0) - 1)[keys], counts[different]


def _keys(context: np.ndarray, stream: np.ndarray, vocabulary: int) -> np.ndarray:
    """A number for each context with the token after it; a beginning is the same after all contexts."""
    return np.where(stream == vocabulary, 0, context) * (vocabulary + 1) + stream


def _following(gram: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """The next longer context of each place: what ends at the place before it, -1 if it was never seen."""
    context = np.concatenate([[-1], gram])[:-1]
    context[begins] = 0
    return context


def _level(grams: np.ndarray, counts: np.ndarray, contexts: int, vocabulary: int) -> Level:
    before, token = np.divmod(grams, vocabulary + 1)
    predicted = token < vocabulary
    counts = counts * predicted
    seen = np.bincount(before, counts, minlength=contexts)
    return Level(grams, counts, seen, np.bincount(before, predicted, minlength=contexts))


def _looked_up(grams: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Where each key stands among the sorted grams, -1 if it does not."""
    if not len(grams):
        return np.full(len(keys), -1)
    place = np.searchsorted(grams, keys).clip(max=len(grams) - 1)
    return np.where(grams[place] == keys, place, -1)


def _interpolated(level: Level, context: np.ndarray, gram: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Witten and Bell's p, from that of a context shorter by one."""
    known = context >= 0
    seen, kinds = level.seen[context] * known, level.kinds[context] * known
    count = np.where(gram >= 0, level.counts[gram], 0) if len(level.counts) else 0
    return np.where(seen > 0, (count + kinds * lower) / np.maximum(seen + kinds, 1), lower)
