"""Moments of the data in checkpoints: kept in training or afterwards, checked, and used."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diffgen.build import restore
from diffgen.core.errors import CheckpointError
from diffgen.core.registry import build
from diffgen.data import DATASETS
from diffgen.storage import checkpoint
from diffgen.tuning.neon import Judge, extrapolated

Command = Callable[..., Any]
Fit = Callable[..., Path]


@pytest.fixture(scope="module")
def kept(fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that keeps them."""
    return fit(tmp_path_factory.mktemp("moments") / "run", "train.images=128", "train.covariance=true")


def test_a_run_keeps_the_moments_of_its_data(kept: Path) -> None:
    data = build(DATASETS, {"name": "digits", "split": "train"})
    x, moments = data.kind.encode(data.stored).flatten(1).double(), checkpoint.load(kept).moments
    assert moments["counts"][:10].tolist() == data.labels.bincount(minlength=10).tolist()
    zeros = x[data.labels == 0]
    torch.testing.assert_close(moments["means"][0].double(), zeros.mean(0), atol=1e-5, rtol=1e-5)
    gaussian = restore(checkpoint.load(kept)).gaussian
    torch.testing.assert_close(gaussian.whole.covariance, torch.cov(x.T, correction=0), atol=1e-4, rtol=1e-4)


def test_they_come_afterwards_as_well_and_are_the_same(command: Command, kept: Path, tiny_run: Path) -> None:
    done = command("tune", f"ckpt={tiny_run}", "task=covariance", "out=more")
    assert done.code == 0, done.err
    before, after = checkpoint.load(tiny_run), checkpoint.load(Path("more"))
    assert before.config == after.config
    assert all(torch.equal(weight, after.weights[name]) for name, weight in before.weights.items())
    assert all(torch.equal(part, after.moments[name]) for name, part in checkpoint.load(kept).moments.items())
    again = command("tune", f"ckpt={tiny_run}", "task=covariance", "out=more")
    assert again.code == 2
    assert "overwrite=true" in again.err


def test_a_run_goes_on_with_them_to_the_byte(fit: Fit, tmp_path: Path) -> None:
    settings = ("train.covariance=true", "train.checkpoint_every=64")
    whole = fit(tmp_path / "whole", "train.images=128", *settings)
    parts = fit(tmp_path / "parts", "train.images=64", "lr_schedule.decay=constant", *settings)
    assert checkpoint.load(parts).moments.keys() == checkpoint.load(whole).moments.keys()
    fit(parts, "train.images=128", "lr_schedule.decay=constant", *settings)
    again = fit(tmp_path / "again", "train.images=128", "lr_schedule.decay=constant", *settings)
    files = [(run / "checkpoints" / "00000128" / "model.safetensors").read_bytes() for run in (parts, again)]
    assert files[0] == files[1]


def test_without_them_a_start_in_closed_form_is_refused(command: Command, tiny_run: Path) -> None:
    refused = command("sample", f"ckpt={tiny_run}", "sampler=ipndm", "sampler.skip_to=5", "n=1", "out=o")
    assert refused.code == 2
    assert "needs mean and covariance of the data, which are not kept: train with train.covariance=true" in refused.err
    assert not Path("o").exists()


def test_a_start_in_closed_form_saves_calls_and_a_first_step_one(command: Command, kept: Path) -> None:
    asked = ("sample", f"ckpt={kept}", "sampler=ipndm", "sampler.steps=4", "n=4")
    assert "NFE 4" in command(*asked, "sampler.skip_to=5", "out=a").out
    assert "NFE 3" in command(*asked, "sampler.first_step=analytic", "out=b").out
    assert "NFE 3" in command(*asked, "sampler.first_step=analytic", "sampler.skip_to=5", "out=c").out


def test_one_step_in_closed_form_would_ask_no_network(command: Command, kept: Path) -> None:
    refused = command(
        "sample", f"ckpt={kept}", "sampler=euler", "sampler.steps=1", "sampler.first_step=analytic", "n=2"
    )
    assert refused.code == 2
    assert "sampler.first_step=analytic leaves no network call in one step: sampler.steps must be 2" in refused.err


@pytest.mark.parametrize("setting", ["sampler.skip_to=5", "sampler.first_step=analytic"])
def test_tasks_that_begin_with_something_else_refuse_it(command: Command, kept: Path, setting: str) -> None:
    refused = command("sample", f"ckpt={kept}", "task=interpolate", "task.seeds=[1,2]", "sampler=heun", setting, "n=2")
    assert refused.code == 2
    assert "task=interpolate begins with others than noise" in refused.err


@pytest.mark.parametrize("name", ["covariance", "means", "counts"])
def test_moments_of_other_data_are_refused(kept: Path, tmp_path: Path, name: str) -> None:
    saved = checkpoint.load(kept)
    for wrong in (saved.moments[name][:-1].clone(), saved.moments[name].double()):
        moments = {**saved.moments, name: wrong}
        checkpoint.save_model(tmp_path / "m", saved.config, 1, checkpoint.whole(saved.weights, {}, moments))
        with pytest.raises(CheckpointError, match="its moments are not those of 1x8x8 and 10 classes"):
            restore(checkpoint.load(tmp_path / "m"))


def test_text_and_autoencoders_have_none(command: Command) -> None:
    refused = command("train", "dataset=digits", "method=vae", "train.covariance=true", "train.images=64", "run_dir=v")
    assert refused.code == 2
    assert "train.covariance=true is for Gaussian noise, and this model is an autoencoder" in refused.err


# --- Neon -----------------------------------------------------------------------------------------------------------


def test_weights_are_led_away_from_the_tuned_ones() -> None:
    ours = {"a": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}
    theirs = {"a": torch.tensor([2.0, 2.0]), "n": torch.tensor(7)}
    found = extrapolated(ours, theirs, 0.5)
    torch.testing.assert_close(found["a"], torch.tensor([0.5, 2.0]))
    assert found["n"] == 3
    assert torch.equal(extrapolated(ours, theirs, 0.0)["a"], ours["a"])


@pytest.mark.parametrize("better", [True, False])
def test_neon_tries_scales_and_writes_the_best_or_nothing(
    command: Command, fit: Fit, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, better: bool
) -> None:
    tuned = fit(tmp_path / "tuned", "train.images=64", f"train.init={kept}", "optimizer.lr=0.1")
    measure, told = Judge.distance, []

    def distance(self: Judge, weights: Any, seed: int) -> float:
        told.append(measure(self, weights, seed))
        return -len(told) if better else len(told)

    monkeypatch.setattr(Judge, "distance", distance)
    asked = ("tune", f"ckpt={kept}", "task=neon", f"task.tuned={tuned}", "task.n=64", "guidance=1", "extractor=pixels")
    done = command(*asked, "sampler=euler", "sampler.steps=2", "out=away", "task.scales=[0.5,1.0]")
    assert done.code == 0, done.err
    assert done.out.count("Frechet distance") == 3
    assert all(map(math.isfinite, told))
    assert Path("away").exists() == better
    if better:  # the last scale, of the weights as they were
        saved = checkpoint.load(Path("away"))
        assert saved.config["neon"]["scale"] == 1.0
        wanted = extrapolated(checkpoint.load(kept).weights, checkpoint.load(tuned).weights, 1.0)
        assert all(torch.equal(weight, saved.weights[name]) for name, weight in wanted.items())
        assert saved.moments.keys() == checkpoint.load(kept).moments.keys()


def test_a_folder_that_holds_more_than_a_model_is_never_replaced(command: Command, kept: Path) -> None:
    refused = command("tune", f"ckpt={kept}", "task=covariance", f"out={kept}", "overwrite=true")
    assert refused.code == 2
    assert "holds more than a model" in refused.err
    assert list(kept.glob("checkpoints/*/model.safetensors"))


WRONG = {
    "": "task.tuned is missing",
    "task.tuned={run} task.scales=[0]": "task.scales=[0.0] must be numbers in (0, 10]",
    "task.tuned={run} task.n=3": "task.n=3 is too few",
    "task.tuned=nowhere": "nowhere",
    "task.tuned={run}": "its weights are the same",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_neon_cannot_use_is_one_sentence(command: Command, tiny_run: Path, wrong: str) -> None:
    asked = wrong.replace("{run}", str(tiny_run)).split()
    refused = command("tune", f"ckpt={tiny_run}", "task=neon", "guidance=1", "extractor=pixels", *asked)
    assert refused.code in (2, 4)
    assert WRONG[wrong] in refused.err
