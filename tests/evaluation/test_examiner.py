"""Evaluation in training: its figures, the best weights, and that it leaves training alone."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diffgen.core.errors import NonFiniteError, UsageError
from diffgen.core.signals import Stopped
from diffgen.evaluation import examiner, reference
from diffgen.storage import checkpoint
from diffgen.training import stopwatch

Fit = Callable[..., Path]

JUDGED = [
    "train.eval_every=32",
    "train.eval_n=40",
    "extractor.epochs=2",
    "lr_schedule.warmup=0",
    "lr_schedule.decay=constant",
]


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "eval" / "training.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(
        tmp_path_factory.mktemp("judged") / "run", *JUDGED, "train.checkpoint_every=32", "train.keep_checkpoints=9"
    )


def test_a_run_is_judged_on_the_way(run: Path) -> None:
    found = rows(run)
    assert [row["images_seen"] for row in found] == [32, 64, 96, 128]
    for row in found:
        assert row["fd"] > 0 and 0 <= row["agreement"] <= 1 and row["images"] == 40 and row["nfe"] > 0
        assert row["fd"] > row["fd_floor_test"] > 0
        assert (
            row["sampler"]["name"] == "heun" and row["extractor"] == "classifier" and len(row["extractor_hash"]) == 64
        )
    assert (run / "eval" / "training.png").read_bytes().startswith(b"\x89PNG")


def test_the_best_weights_are_those_of_their_checkpoint(run: Path) -> None:
    best = checkpoint.load(run / "checkpoints" / "best")
    figures = {row["images_seen"]: row["fd"] for row in rows(run)}
    assert best.images == min(figures, key=figures.__getitem__)
    assert best.config["best"]["metric"] == "fd" and best.config["best"]["value"] == figures[best.images]
    there = checkpoint.load(run / "checkpoints" / f"{best.images:08d}")
    assert all(there.weights[name].equal(weight) for name, weight in best.weights.items())
    assert checkpoint.find_newest(run).name == "00000128", "the best is not what a run goes on from"


def test_training_is_what_it_is_without(fit: Fit, run: Path, tmp_path: Path) -> None:
    alone = fit(tmp_path / "run", *JUDGED, "train.eval_every=null")
    for name in ("model", "state"):
        files = [path / "checkpoints" / "00000128" / f"{name}.safetensors" for path in (run, alone)]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert not (alone / "eval").exists() and not (alone / "checkpoints" / "best").exists()


def test_an_interrupted_run_is_judged_the_same(fit: Fit, run: Path, tmp_path: Path) -> None:
    fit(tmp_path / "run", *JUDGED, "train.images=64")
    with (tmp_path / "run" / "eval" / "training.jsonl").open("a") as file:
        file.write(json.dumps({"images_seen": 96, "fd": 0.0}) + "\n{cut")
    fit(tmp_path / "run", *JUDGED)
    assert rows(tmp_path / "run") == rows(run)
    files = [path / "checkpoints" / "best" / "model.safetensors" for path in (run, tmp_path / "run")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("number", [2, 4])
def test_a_run_stopped_in_an_evaluation_makes_up_for_it(
    fit: Fit, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """In the middle, and in the last one, when training is done."""
    draw, calls = examiner.draw_share, []

    def stopped(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(examiner, "draw_share", stopped)
        with pytest.raises(Stopped):
            fit(tmp_path / "run", *JUDGED)
    assert len(rows(tmp_path / "run")) == number - 1
    assert checkpoint.find_newest(tmp_path / "run").name == f"{32 * number:08d}"
    fit(tmp_path / "run", *JUDGED)
    assert rows(tmp_path / "run") == rows(run)
    for name in ("best/model", "00000128/model", "00000128/state"):
        files = [path / "checkpoints" / f"{name}.safetensors" for path in (run, tmp_path / "run")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_minutes_are_not_spent_on_evaluation(fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four evaluations of two minutes in a run of three seconds, which reaches its images all the same."""
    look, spent = examiner.Examiner.look, [0.0]

    def slow(*arguments: Any) -> Any:
        spent[0] += 120
        return look(*arguments)

    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + spent[0]))

    monkeypatch.setattr(examiner.Examiner, "look", slow)
    folder = fit(tmp_path / "run", *JUDGED, "train.minutes=0.05")
    assert (folder / "checkpoints" / "00000128").is_dir()


def test_agreement_may_say_what_is_best(fit: Fit, tmp_path: Path) -> None:
    folder = fit(tmp_path / "run", *JUDGED, "train.best_by=agreement")
    figures = [row["agreement"] for row in rows(folder)]
    assert checkpoint.load(folder / "checkpoints" / "best").config["best"]["value"] == max(figures)


def test_training_goes_on_where_figures_cannot_be_written(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / "eval").mkdir(parents=True)
    (tmp_path / "run" / "eval" / "training.jsonl").mkdir()
    folder = fit(tmp_path / "run", *JUDGED)
    assert (folder / "checkpoints" / "00000128").is_dir()
    assert "training.jsonl" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["conditional=false", "train.best_by=agreement"], "train.best_by=agreement needs labels"),
        (["train.eval_every=0"], "train.eval_every=0 must be at least 1 or null"),
        (["train.eval_n=3"], "train.eval_n=3 must be in"),
    ],
)
def test_what_cannot_be_judged_is_said_at_once(fit: Fit, tmp_path: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        fit(tmp_path / "run", *JUDGED, *overrides)
    assert not (tmp_path / "run").exists()


def test_vectors_are_not_judged(command: Callable[..., Any], tmp_path: Path) -> None:
    said = command("train", "dataset=points", "train.eval_every=100", "run_dir=run")
    assert (said.code, "train.eval_every is for pictures" in said.err) == (2, True)
    assert not (tmp_path / "run").exists()


def test_unlike_figures_are_not_compared(fit: Fit, run: Path, tmp_path: Path) -> None:
    """With other numbers of images the distance differs by that alone: the best begins anew, the curve too."""
    folder = fit(tmp_path / "run", *JUDGED, "train.images=64")
    before = checkpoint.load(folder / "checkpoints" / "best").config["best"]["images"]
    fit(tmp_path / "run", *JUDGED, "train.eval_n=20")
    assert (before, checkpoint.load(folder / "checkpoints" / "best").config["best"]["images"]) == (40, 20)
    assert [row["images"] for row in rows(folder)] == [40, 40, 20, 20, 20], "the last of the first kind is made up for"


def test_the_best_of_a_discarded_branch_is_not_the_best(fit: Fit, tmp_path: Path) -> None:
    """The newest checkpoint is from before the best weights: they may come again, or not."""
    folder = fit(tmp_path / "run", *JUDGED, "train.images=64")
    best = folder / "checkpoints" / "best"
    about = checkpoint.load(best)
    config = {**about.config, "best": {**about.config["best"], "value": -1.0}}
    checkpoint.save_model(best, config, 96, about.weights)
    fit(tmp_path / "run", *JUDGED, "train.images=128")
    found = checkpoint.load(best)
    assert found.config["best"]["value"] > 0 and found.images in (96, 128)


def test_samples_that_are_not_finite_do_not_end_training(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: Any) -> Any:
        raise NonFiniteError("the samples are not finite")

    monkeypatch.setattr(examiner, "draw_share", broken)
    folder = fit(tmp_path / "run", *JUDGED)
    assert (folder / "checkpoints" / "00000128").is_dir() and not (folder / "checkpoints" / "best").exists()
    assert "128 images: the samples are not finite, and not judged" in capsys.readouterr().out


def test_reference_features_are_made_once(fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    computed = reference._computed
    monkeypatch.setattr(reference, "_computed", lambda *what: (made.append(1), computed(*what))[1])
    fit(tmp_path / "run", *JUDGED, "extractor.seed=7")
    assert len(made) == 2, "of both splits, in four evaluations"
