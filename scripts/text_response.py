"""How the metrics of text answer to known damage, on Python's own help.

    python scripts/text_response.py

The last tenth is held out, in sequences of 128 characters; as many of the training text are damaged. Writes
benchmarks/results/text-python_docs.json, which `metric_response.py` puts into docs/metrics.md.
"""

import platform

import numpy as np
from benchmark.facts import ROOT, machine

from diffgen.build import make_splits
from diffgen.core.files import write_json
from diffgen.evaluation.ngrams import NGrams
from diffgen.evaluation.text import GRAMS, Texts
from diffgen.evaluation.text_metrics import divergence, longest_runs, unigram_entropy

LENGTH = 128


def texts(n: int = 1000) -> Texts:
    """Python's help, and at most n sequences of what is held out."""
    config = {"name": "python_docs", "length": LENGTH, "split": "train", "held_out": 0.1}
    return Texts(make_splits({"dataset": config}), n)


def damaged(judged: Texts, model: NGrams) -> dict[str, np.ndarray]:
    """Sets of as many sequences, int64 [n, L], by what was done to training text, or by what made them."""
    known, rng = judged.training, np.random.default_rng(0)
    return {
        "training text": known,
        "one character in 20 another": replaced(known, 1 / 20, rng),
        "one in 5": replaced(known, 1 / 5, rng),
        "characters of each sequence shuffled": rng.permuted(known, axis=1),
        "a tenth of the sequences, 10 times": np.tile(known[::10], (11, 1))[: len(known)],
        "made by the n-gram model, context of 2": made(model, 2, len(known), rng),
        "made by the n-gram model, context of 5": made(model, 5, len(known), rng),
    }


def replaced(rows: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """With a share of the tokens replaced by others of the same frequencies."""
    return np.where(rng.random(rows.shape) < share, rng.choice(rows.ravel(), rows.shape), rows)


def made(model: NGrams, context: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """Sequences drawn token by token from an n-gram model."""
    rows, every = np.zeros((n, 0), np.int64), np.arange(model.vocabulary)
    for _ in range(LENGTH):
        seen = np.repeat(rows[:, max(rows.shape[1] - context, 0) :], model.vocabulary, axis=0)
        asked = np.concatenate([seen, np.tile(every, n)[:, None]], axis=1)
        log_p = -model.bits(asked)[context, :, -1].reshape(n, -1) * np.log(2)
        drawn = (log_p + rng.gumbel(size=log_p.shape)).argmax(1)
        rows = np.concatenate([rows, drawn[:, None]], axis=1)
    return rows


def response(judged: Texts, model: NGrams) -> dict[str, dict[str, float]]:
    """The figures of each set."""
    return {name: figures(rows, judged) for name, rows in damaged(judged, model).items()}


def figures(rows: np.ndarray, judged: Texts) -> dict[str, float]:
    """Divergences, runs and entropy of one set."""
    runs = longest_runs(rows, judged.stream, judged.vocabulary)
    found = {f"{n}-grams": divergence(rows, judged.known, n, judged.vocabulary) for n in GRAMS}
    return {**found, "run": runs.mean(), "whole": (runs == LENGTH).mean(), "entropy": unigram_entropy(rows)}


if __name__ == "__main__":
    judged = texts()
    model = NGrams.fit(judged.stream, judged.vocabulary)
    result = {
        "python": platform.python_version(),
        "machine": machine(),
        "characters": len(judged.stream),
        "held_out": len(judged.known),
        "bits": model.bits(judged.known).mean((1, 2)).tolist(),
        "figures": response(judged, model),
    }
    write_json(ROOT / "benchmarks" / "results" / "text-python_docs.json", result)
