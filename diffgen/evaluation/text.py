"""Text that a checkpoint made, and what it says of text that it has never seen: figures, each beside its floor."""

from collections.abc import Callable, Collection
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from diffgen.core import processes
from diffgen.core.errors import UsageError
from diffgen.data import Source
from diffgen.data.splits import Splits
from diffgen.data.text import Text
from diffgen.data.tokens import Bits, Tokens
from diffgen.evaluation import held_out
from diffgen.evaluation.drawing import examples
from diffgen.evaluation.model import spread
from diffgen.evaluation.ngrams import NGrams, streamed
from diffgen.evaluation.text_metrics import divergence, longest_runs, unigram_entropy
from diffgen.sampling.drawing import Sampling

MOST = 1_000
"""Sequences to judge unless told otherwise."""

GRAMS = (1, 2, 3)
"""Lengths of n-grams whose distributions are compared."""

Row = dict[str, Any]


class Drawn(NamedTuple):
    """Samples: tokens int64 [n, L], and how many codes of each were no token's, int64 [n]; on the CPU."""

    tokens: Tensor
    strays: Tensor


def draw_share(
    sampling: Sampling, n: int, accelerator: Accelerator, batch: int, progress: Callable[[int], None]
) -> Drawn:
    """This process's share of sequences 0 .. n - 1, see `share_of`; `progress` hears how many are done, by all."""
    tokens = examples(sampling, [-1] * n, accelerator, batch, progress)
    return Drawn(tokens, torch.cat(sampling.strays).sum(1))


def gathered(share: Drawn, accelerator: Accelerator, n: int) -> Drawn:
    """All processes' shares, on each."""
    return Drawn(*(processes.gathered(column, n, accelerator) for column in share))


class Texts:
    """What text is judged by: the training split, and what is held out from it."""

    def __init__(self, splits: Splits, n: int) -> None:
        """Of both, look at no more than n sequences, spread evenly, where a figure depends on how many there are.

        Raises:
            UsageError: They are of a plugin's kind that has no tokens.
        """
        kind = splits.train.kind
        if not isinstance(kind, Tokens):
            raise UsageError(f"{kind.unit} have no tokens, of which figures of text are")
        self.splits, self.n, self.kind = splits, n, kind
        self.source, self.which = held_out.judge(splits)

    @property
    def vocabulary(self) -> int:
        """Number of different tokens there can be."""
        return len(self.kind.names)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be known of them, as that they have characters which the checkpoint does not know."""
        return tuple(dict.fromkeys([*self.splits.train.notes, *self.source.notes]))

    @cached_property
    def known(self) -> np.ndarray:
        """Sequences that are held out, or of the training split where none are, int64 [m, L]."""
        return rows(self.source, self.n)

    @cached_property
    def training(self) -> np.ndarray:
        """As many of the training split."""
        return rows(self.splits.train, len(self.known))

    @cached_property
    def stream(self) -> np.ndarray:
        """All of the training split, a stream as `evaluation.ngrams` has it."""
        source = self.splits.train
        if isinstance(source, Text):
            return source.tokens.cpu().numpy().astype(np.int64)
        return streamed(rows(source, len(source)), self.vocabulary)


def untold(splits: Splits, name: str) -> dict[str, str]:
    """Metrics that cannot be told by a data set of this name, each with why."""
    can_tell = splits.train.right("") is not None
    return {} if can_tell else {"right": f"metrics=right: dataset={name} cannot tell which text is right"}


def rows(source: Source, n: int) -> np.ndarray:
    """Tokens of some sequences, spread evenly, int64 [n, L], or of all if there are fewer."""
    examples, _ = next(source.batches(iter([spread(len(source), n)]), torch.device("cpu")))
    return examples.numpy().astype(np.int64)


# --- samples ------------------------------------------------------------------------------------------------------


def of_samples(wanted: Collection[str], drawn: Drawn, texts: Texts) -> Row:
    """Metrics of samples."""
    samples = drawn.tokens.numpy()
    strays = int(drawn.strays.sum()) / drawn.tokens.numel()
    row: Row = {"strays": strays} if isinstance(texts.kind, Bits) else {}
    for name in wanted:
        row |= MEASURES[name](samples, texts) if name in MEASURES else {}
    return row


def ngrams(samples: np.ndarray, texts: Texts) -> Row:
    """Distance of the distributions of n-grams from those of as much held-out text; the floor is that of training text.

    Of more samples than there are held-out sequences the first are taken, since the distance falls with their number.
    """
    row: Row = {}
    samples = samples[: len(texts.known)]
    for n in (n for n in GRAMS if n <= samples.shape[1]):
        row[f"ngram_{n}"] = divergence(samples, texts.known, n, texts.vocabulary)
        if texts.which == "test":
            row[f"ngram_{n}_floor_test"] = divergence(texts.training, texts.known, n, texts.vocabulary)
    return row


def runs(samples: np.ndarray, texts: Texts) -> Row:
    """What stands in the training text: the longest run of tokens, and whole sequences.

    Sequences that are filled up have no runs worth telling: filling is filling.
    """
    both = longest_runs(np.concatenate([samples, texts.known]), texts.stream, texts.vocabulary)
    row: Row = {}
    for suffix, longest in zip(("", "_floor_test"), np.split(both, [len(samples)]), strict=True):
        if suffix and texts.which == "train":
            break
        row[f"whole{suffix}"] = float((longest == samples.shape[1]).mean())
        row |= {} if texts.kind.padded else {f"run{suffix}": float(longest.mean())}
    return row


def entropy(samples: np.ndarray, texts: Texts) -> Row:
    """Entropy of single tokens, beside that of held-out text."""
    row: Row = {"entropy": unigram_entropy(samples)}
    return row | ({"entropy_floor_test": unigram_entropy(texts.known)} if texts.which == "test" else {})


def right(samples: np.ndarray, texts: Texts) -> Row:
    """Share of samples that are right, and of these the share that was not trained on."""
    good = samples[np.array([texts.splits.train.right(texts.kind.text(ids)) for ids in samples.tolist()], bool)]
    row: Row = {"right": len(good) / len(samples)}
    if len(good):
        row["new"] = float((longest_runs(good, texts.stream, texts.vocabulary) < good.shape[1]).mean())
    return row


MEASURES: dict[str, Callable[[np.ndarray, Texts], Row]] = {
    "ngrams": ngrams,
    "runs": runs,
    "entropy": entropy,
    "right": right,
}
"""Metrics of drawn text; bits per token are of the model, in `evaluation.model`."""


# --- the model ----------------------------------------------------------------------------------------------------


def beside_bits(found: Row, texts: Texts) -> Row:
    """What a likelihood is read beside: n-gram models of the training split, and bits a sequence where it ends.

    Args:
        found: See `model.masked_bits`.
        texts: The same sequences.
    """
    anchors = NGrams.fit(texts.stream, texts.vocabulary).bits(texts.known).mean((1, 2))
    row: Row = {"ngram_bits": anchors.tolist()}
    if texts.kind.padded:
        row |= {f"sequence_{key}": found[key] * found["tokens"] for key in ("bits", "bits_error")}
        row |= {} if texts.source.entropy is None else {"sequence_entropy": texts.source.entropy}
    return row
