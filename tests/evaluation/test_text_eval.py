"""`diffgen-eval` of text: what is measured, beside what, and what is refused."""

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from diffgen.build import make_splits
from diffgen.data.numbers import number
from diffgen.data.splits import Splits
from diffgen.diffusion.guidance import Guidance
from diffgen.evaluation import model, text
from diffgen.evaluation.ngrams import NGrams
from diffgen.evaluation.text_metrics import divergence, unigram_entropy
from diffgen.sampling.drawing import Sampling
from diffgen.sampling.walk import Walk

Command = Callable[..., Any]
Train = Callable[..., Path]

WORDS = "the cat sat on the mat and the dog ran to the man who had a hat. "
TINY = [
    *("model=dit_tiny", "model.width=16", "model.depth=1", "model.heads=2", "train.images=64", "train.batch_size=16"),
    *("sampler.steps=3", "preview.n=2", "train.checkpoint_every=64", "train.log_every=16", "train.preview_every=64"),
]
NUMBERS = ["dataset=numbers", "dataset.n=300", *TINY]


@pytest.fixture(scope="module")
def train(compose: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Train:
    """`train("dataset=numbers")` -> the directory of a run of four steps."""
    from diffgen.training.trainer import train

    def run(*overrides: str) -> Path:
        folder = tmp_path_factory.mktemp("runs") / "run"
        config = compose("train", *overrides) | {"run_dir": str(folder)}
        train(config, OmegaConf.to_yaml(OmegaConf.create(config)), "unused")
        return folder

    return run


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of 27 letters or so, not the same all along."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words = np.random.default_rng(0).choice(WORDS.split(), 1500)
    path.write_text(" ".join(words))
    return path


@pytest.fixture(scope="module")
def numbers(train: Train) -> Path:
    return train(*NUMBERS)


@pytest.fixture(scope="module")
def letters(train: Train, file: Path) -> Path:
    return train("dataset=text", f"dataset.path={file}", "dataset.length=12", *TINY)


@pytest.fixture(scope="module")
def codes(train: Train) -> Path:
    return train(*NUMBERS, "method=bits")


def row(folder: Path) -> dict[str, Any]:
    """The newest results."""
    found: dict[str, Any] = json.loads((folder / "eval" / "results.jsonl").read_text().splitlines()[-1])
    return found


def test_text_is_judged_beside_its_floors(command: Command, letters: Path, file: Path) -> None:
    said = command("eval", f"ckpt={letters}", "n=30")
    assert said.code == 0, said.err
    found = row(letters)
    data = {"name": "text", "path": str(file), "unit": "character", "length": 12, "symbols": 256, "tokenizer": None}
    splits = make_splits({"dataset": {**data, "split": "train", "held_out": 0.1}})
    assert splits.test is not None
    held = text.rows(splits.test, 30)
    vocabulary = splits.train.kind.vocabulary
    assert found["entropy_floor_test"] == pytest.approx(unigram_entropy(held))
    floor = divergence(text.rows(splits.train, 30), held, 2, vocabulary)
    assert found["ngram_2_floor_test"] == pytest.approx(floor)
    assert found["ngram_2"] > floor
    anchors = NGrams.fit(splits.train.tokens.numpy().astype(np.int64), vocabulary).bits(held).mean((1, 2))  # type: ignore[attr-defined]
    assert found["ngram_bits"] == pytest.approx(anchors.tolist())
    assert 0 <= found["run"] < found["run_floor_test"] <= 12
    assert (found["sequences"], found["bits_sequences"], found["bits_in"]) == (30, 30, "bits/char")
    assert found["bits"] > found["ngram_bits"][1]
    assert found["bits_error"] > 0
    assert not {"right", "images", "sequence_bits", "strays", "extractor"} & found.keys()
    for words in ("bits/char, held-out text", "upper bound", "n-gram model, context of 2", "30, seed 0", "3-gram"):
        assert words in said.out


def test_the_same_figures_in_other_batches(command: Command, letters: Path) -> None:
    found = []
    for batch in (5, 64):
        assert command("eval", f"ckpt={letters}", "n=12", f"batch_size={batch}").code == 0
        found.append(row(letters))
    one, two = found
    for key in ("bits", "bits_error", "ngram_3", "run", "entropy"):
        assert one[key] == pytest.approx(two[key], rel=1e-6)


def test_numbers_are_right_or_wrong_and_have_an_entropy(command: Command, numbers: Path) -> None:
    said = command("eval", f"ckpt={numbers}", "n=20")
    assert said.code == 0, said.err
    found = row(numbers)
    assert 0 <= found["right"] <= 1
    assert found["sequence_entropy"] == pytest.approx(math.log2(1_000_000))
    assert found["sequence_bits"] == pytest.approx(7 * found["bits"])
    assert found["sequence_bits"] > found["sequence_entropy"]
    assert "whole" in found
    assert "run" not in found, "filling would be most of it"
    assert "of the true distribution" in said.out
    assert "bits/word, held-out text" in said.out


@pytest.mark.parametrize("setting", ["dataset.n=200", "dataset.seed=1"])
def test_numbers_are_judged_beside_those_that_were_trained_on(command: Command, numbers: Path, setting: str) -> None:
    assert "10,000 held out, never trained on" in command("eval", f"ckpt={numbers}", "metrics=bits", "n=5").out
    said = command("eval", f"ckpt={numbers}", "metrics=bits", "n=5", setting)
    assert said.code == 2 and "leave it to ckpt" in said.err, said.err


def test_text_of_which_nothing_is_held_out(command: Command, train: Train, file: Path) -> None:
    run = train("dataset=text", f"dataset.path={file}", "dataset.length=12", "dataset.held_out=0", *TINY)
    said = command("eval", f"ckpt={run}", "metrics=bits", "n=5")
    assert said.code == 0, said.err
    assert "none held out" in said.out and row(run)["bits_of"] == "train"


def test_bits_alone_draw_nothing(command: Command, numbers: Path) -> None:
    assert command("eval", f"ckpt={numbers}", "metrics=bits", "n=5").code == 0
    assert "nfe" not in row(numbers)
    assert row(numbers)["bits_sequences"] == 5
    said = command("eval", f"ckpt={numbers}", "metrics=bits", "n=1", "out=one")  # which has no standard error
    assert said.code == 0 and "inf" not in said.out + said.err and ", upper bound" in said.out


def test_codes_have_samples_and_no_likelihood(command: Command, codes: Path) -> None:
    said = command("eval", f"ckpt={codes}", "n=20", "sampler.steps=2")
    assert said.code == 0, said.err
    assert 0 <= row(codes)["strays"] < 1
    assert "codes that no token has" in said.out
    assert "bits" not in row(codes)
    said = command("eval", f"ckpt={codes}", "metrics=bits")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "metrics=bits needs a likelihood of text, and ckpt denoises codes of it" in said.err


def test_text_is_judged_with_the_checkpoints_own_vocabulary(command: Command, letters: Path) -> None:
    """What it does not know is one symbol, counted and told."""
    said = command("eval", f"ckpt={letters}", "dataset=python_docs", "dataset.length=12", "n=4")
    assert said.code == 0, said.err
    assert "are none of the vocabulary" in said.out
    assert row(letters)["bits"] > 0


@pytest.mark.parametrize(
    ("run", "arguments", "words"),
    [
        (
            "letters",
            ["metrics=fid"],
            "metrics=fid is not a metric of text: choose some of [ngrams, runs, entropy, bits",
        ),
        ("letters", ["metrics=bits,fd"], "metrics=fd is not a metric of text"),
        ("numbers", ["metrics=vlb"], "metrics=vlb,denoising are of Gaussian noise, and ckpt unmasks tokens: choose"),
        ("letters", ["metrics=right"], "metrics=right: dataset=text cannot tell which text is right: choose some of"),
        ("letters", ["dataset=digits"], "ckpt makes sequences and dataset=digits has images: no comparison"),
        ("letters", ["dataset=python_docs"], "ckpt makes sequences of (12,) and dataset=python_docs has (64,)"),
        ("letters", ["guidance=2"], "guidance=2.0 needs labels or guide=CKPT, and these sequences have no label"),
        ("letters", ["extractor=inception"], "extractor=inception is for pictures, and ckpt makes text: leave it out"),
        ("letters", ["dataset.held_out=0.2"], "what it has seen would be called held out"),
        ("numbers", ["dataset.unit=character"], "dataset=numbers has other tokens than this model"),
    ],
)
def test_what_is_refused(
    command: Command, request: pytest.FixtureRequest, tmp_path: Path, run: str, arguments: list[str], words: str
) -> None:
    said = command("eval", f"ckpt={request.getfixturevalue(run)}", "out=out", *arguments)
    assert (said.code, said.err.count("\n")) == (2, 1), said.err
    assert words in said.err
    assert not (tmp_path / "out").exists()


def test_pictures_have_no_metrics_of_text(command: Command, tiny_model: Path) -> None:
    said = command("eval", f"ckpt={tiny_model}", "metrics=ngrams")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "metrics=ngrams is not a metric of images: choose some of [fd, " in said.err
    said = command("eval", "images=x", "dataset=numbers")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "dataset=numbers holds sequences: diffgen-eval judges pictures" in said.err


def test_pictures_as_tokens_have_bits_per_dimension(command: Command, train: Train) -> None:
    run = train("dataset=digits", "method=masked", *TINY, "objective.levels=5", "train.augment=0")
    said = command("eval", f"ckpt={run}", "metrics=bits,fd", "n=20", "extractor=pixels")
    assert said.code == 0, said.err
    assert "bits/dim, held-out images" in said.out
    assert row(run)["bits_images"] == 20
    assert row(run)["fd"] > 0
    assert "20 images have values between the levels of the model" in said.out
    said = command("eval", f"ckpt={run}", "metrics=denoising")
    assert (said.code, "ckpt unmasks tokens" in said.err) == (2, True)


# --- parts --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spellings() -> Splits:
    dataset = {"name": "numbers", "unit": "word", "n": 200, "seed": 0, "split": "train"}
    return make_splits({"dataset": dataset})


def test_a_network_that_knows_nothing_needs_log2_of_the_vocabulary(spellings: Splits) -> None:
    source = spellings.train
    vocabulary = source.kind.vocabulary

    def uniform(x: Tensor, label: Tensor) -> Tensor:
        return torch.full((*x.shape, vocabulary), -math.log(vocabulary))

    trained: Any = SimpleNamespace(kind=source.kind, denoiser=uniform)
    found = model.masked_bits(trained, torch.device("cpu"), source, 50, 0, 16, lambda done, words: None)
    assert found["bits"] == pytest.approx(math.log2(vocabulary))
    assert found["bits_error"] == pytest.approx(0, abs=1e-6)
    assert (found["bits_sequences"], found["tokens"]) == (50, 7)


def test_right_samples_are_told_from_wrong_and_known_ones(spellings: Splits) -> None:
    """Five that were trained on, three that are held out, two that are no number."""
    assert spellings.test is not None
    known, other = text.rows(spellings.train, 5), text.rows(spellings.test, 3)
    kind: Any = spellings.train.kind
    wrong = np.array([kind.ids("one one two") + [len(kind.names) - 1] * 4, [len(kind.names) - 1] * 7])
    found = text.right(np.concatenate([known, other, wrong]), text.Texts(spellings, 10))
    assert found == {"right": 0.8, "new": pytest.approx(3 / 8)}
    assert text.right(wrong, text.Texts(spellings, 10)) == {"right": 0.0}
    assert all(number(line) is not None for line in kind.lines(torch.from_numpy(known)))


def test_whole_sequences_of_the_training_split_are_found(spellings: Splits) -> None:
    texts = text.Texts(spellings, 10)
    known = text.rows(spellings.train, 10)
    assert text.runs(known, texts) == {"whole": 1.0, "whole_floor_test": 0.0}


def test_codes_that_are_no_tokens_are_counted(spellings: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 7 bits, all ones are 127, and there are 103 tokens."""
    kind: Any = spellings.train.kind.as_numbers()
    x0 = kind.encode(torch.arange(12).view(4, 3))
    x0[2, :, 1:] = 1
    trained: Any = SimpleNamespace(kind=kind)
    sampling = Sampling(trained, Walk(lambda: x0, x0), False, Guidance(scale=1.0), 0, torch.device("cpu"))
    monkeypatch.setattr(sampling, "draw", lambda some, labels: x0[some])
    alone: Any = SimpleNamespace(num_processes=1, process_index=0, autocast=nullcontext)
    drawn = text.gathered(text.draw_share(sampling, 4, alone, 3, lambda done: None), alone, 4)
    assert drawn.strays.tolist() == [0, 0, 2, 0]
    assert drawn.tokens[[0, 1, 3]].flatten().tolist() == [0, 1, 2, 3, 4, 5, 9, 10, 11]
    texts = text.Texts(spellings.known_as(kind), 4)
    assert text.of_samples([], drawn, texts) == {"strays": 2 / 12}


def test_examples_are_spread_evenly() -> None:
    assert model.spread(10, 4).tolist() == [0, 2, 5, 7]
    assert model.spread(3, 10).tolist() == [0, 1, 2]
