"""What is said of a config that has changed since the checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffgen.core.errors import CheckpointError, UsageError
from diffgen.training import changes

Fit = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
LAST = {"batch_size": 16, "images": 64, "minutes": None}


def said(capsys: Capture) -> str:
    return " ".join(capsys.readouterr().out.split())


@pytest.fixture
def config(compose: Callable[..., dict[str, Any]], tiny: list[str]) -> Callable[..., dict[str, Any]]:
    return lambda *overrides: compose("train", *tiny, "lr_schedule.warmup=0", *overrides)


JUMPS = {
    "more images": (["train.images=64"], ["train.images=128"], 64, "0.001 at the last step -> 0.002 at the next"),
    "another rate": (["train.images=128"], ["optimizer.lr=0.001"], 64, "0.0025 at the last step -> 0.0005 at the next"),
    "another decay": (["train.images=128"], ["lr_schedule.decay=constant"], 64, "0.0025 at the last step -> 0.004"),
    "a longer flat part": (["train.images=128"], ["lr_schedule.flat=0.5"], 64, "0.0025 at the last step -> 0.004"),
    "more minutes": (["train.minutes=2"], ["train.minutes=4"], 64, "-> 0.003 at the next"),
}


@pytest.mark.parametrize("case", JUMPS)
def test_a_jump_of_the_learning_rate_is_said(config: Callable[..., dict[str, Any]], case: str) -> None:
    then, now, images, words = JUMPS[case]
    minutes = ["train.images=null"] if "minutes" in case else []
    seconds = 60 if minutes else 0
    here, there = config(*then, *now, *minutes), config(*then, *minutes)
    (told,) = changes.learning_rate(here, there, here["optimizer"]["lr"], images, seconds)
    assert words in told


@pytest.mark.parametrize("now", [[], ["train.images=64"], ["train.seed=3"], ["train.log_every=8"]])
def test_no_jump_is_said_where_there_is_none(config: Callable[..., dict[str, Any]], now: list[str]) -> None:
    """A run that was stopped, one that is over, and changes that leave the rate as it is."""
    assert changes.learning_rate(config(*now), config(), 0.004, 64, 1.0) == []
    constant = "lr_schedule.decay=constant"
    assert changes.learning_rate(config(constant, "train.images=256"), config(constant), 0.004, 128, 1.0) == []


def test_a_checkpoint_that_says_less_is_taken_as_this_run(config: Callable[..., dict[str, Any]]) -> None:
    here = config()
    there = {**here, "train": {}, "lr_schedule": None, "optimizer": {"name": "adamw"}}
    assert changes.learning_rate(here, there, 0.004, 64, 1.0) == []


def test_a_finished_run_that_goes_on_says_the_jump(fit: Fit, tmp_path: Path, capsys: Capture) -> None:
    run = fit(tmp_path / "run", "train.images=64")
    capsys.readouterr()
    fit(run, "train.images=128", "train.grad_clip=null", "train.horizontal_flip=true")
    told = said(capsys)
    assert "train.images: 64 -> 128, learning rate: 0.001 at the last step -> 0.002 at the next" in told
    assert "train.grad_clip: 1.0 -> null, train.horizontal_flip: false -> true" in told


def test_a_refusal_names_first_what_was_typed(compose: Callable[..., dict[str, Any]]) -> None:
    data = {"kind": {"name": "pixels", "background": "white", "range": None}, "size": [1, 8, 8], "num_classes": 10}
    there = {**compose("train"), "data": data}
    here = {**compose("train", "dataset=mnist", "method=ddpm", "model=mlp"), "data": {**data, "size": [1, 28, 28]}}
    with pytest.raises(CheckpointError) as caught:
        changes.compare(here, there, Path("run/checkpoints/00000064"))
    first = "another dataset.name (digits there, mnist here), method (flow there, ddpm here), "
    assert first in str(caught.value)
    assert "train.init=run/checkpoints/00000064 begins a new run from its weights" in str(caught.value)
    keys = changes.differences(here, there, ["model", "schedule"])
    assert keys.startswith("method (flow there, ddpm here), model.name (unet there, mlp here), schedule.name (")


def test_what_has_not_changed_in_meaning_is_not_refused(config: Callable[..., dict[str, Any]]) -> None:
    here, there = config("train.seed=3", "run_dir=b", "train.resume=none"), config("run_dir=a")
    assert changes.compare(here, there, Path("run")) == ["train.seed: 0 -> 3"]


@pytest.mark.parametrize(
    ("then", "now", "key"),
    [
        ({"split": "test"}, {"split": "train"}, "split (test there, train here)"),
        ({"split": "train"}, {"split": "all"}, "split (train there, all here)"),
        ({"held_out": None}, {"split": "train"}, "split (absent there, train here)"),
        ({"held_out": 0.2}, {"held_out": 0.1}, "held_out (0.2 there, 0.1 here)"),
        ({"held_out": "a"}, {"held_out": None}, "held_out (a there, null here)"),
        ({"held_out": 0.2}, {"held_out": 0.2, "held_out_seed": 1}, "held_out_seed (absent there, 1 here)"),
    ],
)
def test_what_is_held_out_stays(then: dict[str, Any], now: dict[str, Any], key: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        changes.compare({"dataset": now}, {"dataset": then}, Path("run"))
    assert f"another dataset.{key}" in str(caught.value) and "what it has seen cannot be held out" in str(caught.value)
    assert "train.init=run begins a new run" in str(caught.value)


def test_the_seed_of_a_choice_that_is_not_made_may_change() -> None:
    """And a checkpoint from before there was one to make is gone on from."""
    now = {"held_out": None, "held_out_seed": 5}
    assert changes.compare({"dataset": now}, {"dataset": {}}, Path("run"))


def test_values_are_shown_as_they_are_typed() -> None:
    values = [None, True, "x", 0.004, [1, None], list(range(1000))]
    assert [changes.shown(v) for v in values[:-1]] == ["null", "true", "x", "0.004", "[1, null]"]
    assert len(changes.shown(values[-1])) < 70


def test_a_finished_run_with_another_data_set_points_to_a_new_one(fit: Fit, tmp_path: Path, capsys: Capture) -> None:
    for name, grey in (("a", 0), ("b", 255)):
        np.save(tmp_path / f"{name}.npy", np.full((20, 8, 8, 3), grey, dtype=np.uint8))
    arrays = ["dataset=arrays", f"dataset.path={tmp_path / 'a.npy'}", "train.images=64"]
    run = fit(tmp_path / "run", *arrays)
    capsys.readouterr()
    fit(run, *arrays, f"dataset.path={tmp_path / 'b.npy'}")
    assert f"nothing to do: 64 images are done; train.init={run} begins a new run" in said(capsys)
    with pytest.raises(UsageError, match=r"has seen 64 images: give more of them to go on; train.init=.* begins"):
        fit(tmp_path / "other", *arrays, f"train.resume={run}")
