"""Runs of `method=ect`: what their checkpoint brings, that they go on exactly, and what draws from them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import conftest
import pytest
import torch
from safetensors.torch import load_file

import diffgen
from diffgen.cli.brought import TUNING, with_brought
from diffgen.core.errors import UsageError
from diffgen.storage import checkpoint

Fit = Callable[..., Path]
SMALL = ["train.images=64", "train.batch_size=16", "train.log_every=16", "train.checkpoint_every=32", "preview.n=2"]


@pytest.fixture(scope="module")
def teacher(fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of method=edm with a network and a deviation of the data that no default has. Read only."""
    own = ("method=edm", "denoiser.sigma_data=0.7", "schedule.sigma_max=60", "model.dropout=0.2")
    return fit(tmp_path_factory.mktemp("teacher") / "run", *own)


def tuned(command: Any, init: Path | str, run: str, *more: str) -> Any:
    return command("train", "dataset=digits", "method=ect", f"train.init={init}", f"run_dir={run}", *SMALL, *more)


def test_a_checkpoint_brings_what_gives_its_weights_a_meaning(command: Any, teacher: Path, tmp_path: Path) -> None:
    done = tuned(command, teacher, "run")
    assert done.code == 0, done.err
    now, then = checkpoint.load(tmp_path / "run").config, checkpoint.load(teacher).config
    for part in ("model", "schedule", "parameterization", "denoiser"):
        assert now[part] == then[part]
    assert now["objective"]["name"] == "consistency" and now["sampler"]["name"] == "consistency"
    said = " ".join(done.out.split())
    assert "with its model, schedule, parameterization, denoiser; another objective.name (denoise there, " in said
    assert now["sampler"]["steps"] == 2 and now["guidance"] == 1, "and not those of the recipe"
    state = json.loads(max((tmp_path / "run").glob("checkpoints/*/state.json")).read_text())["config"]
    assert state["optimizer"]["lr"] == float(TUNING["ect"]["optimizer.lr"]), (
        "and no longer that of the data set's recipe"
    )


def test_what_is_given_is_not_brought(teacher: Path) -> None:
    init = ["method=ect", f"train.init={teacher}"]
    brought = with_brought(init)
    assert brought[-2:] == init
    assert {"model.dropout=0.2", "schedule=ve", "schedule.sigma_max=60", "denoiser.sigma_data=0.7"} <= set(brought)
    assert "parameterization=edm" in brought and "model.channel_mult=[1]" in brought
    for own, gone in (
        ("model.dropout=0.1", "model.dropout="),
        ("schedule=rectified_flow", "schedule"),
        ("model=unet_tiny", "model"),
        ("optimizer=adam", "optimizer"),
        ("sampler=heun", "sampler"),
        ("denoiser.sigma_data=1", "denoiser.sigma_data"),
    ):
        there = with_brought([*init, own])
        assert [each for each in there if each.startswith(gone)] == [own]
        assert len(there) <= len(brought)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["method=ect"], "method=ect tunes a trained network: train.init=RUN says which, a run or a checkpoint"),
        (["method=ect", "train.init=null"], "method=ect tunes a trained network"),
        (["method=ect", "train.init=nowhere"], "train.init='nowhere' does not exist"),
        (
            ["-m", "method=ect,edm", "train.init=x"],
            "method=ect,edm would bring settings of train.init=RUN to some jobs",
        ),
    ],
)
def test_without_a_trained_network_it_is_refused(command: Any, settings: list[str], said: str) -> None:
    refused = command("train", "dataset=digits", *settings)
    assert refused.code == (4 if "nowhere" in said else 2) and refused.err.count("\n") == 1
    assert said in refused.err


def test_what_removes_no_noise_cannot_be_tuned(command: Any, tmp_path: Path) -> None:
    assert command("train", "dataset=digits", "method=vae", "run_dir=vae", *SMALL, "train.images=16").code == 0
    refused = tuned(command, "vae", "run")
    assert refused.code == 2
    assert "holds a model that" in refused.err and "method=ect tunes one that removes Gaussian noise" in refused.err
    assert not (tmp_path / "run").exists()


def test_a_sweep_brings_the_settings_of_all_its_checkpoints(
    command: Any, fit: Fit, teacher: Path, tmp_path: Path
) -> None:
    swept = tuned(command, teacher, "sweep", "-m", "train.seed=1,2", "train.images=16")
    assert swept.code == 0, swept.err
    runs = sorted((tmp_path / "sweep").iterdir())
    assert [checkpoint.load(run).config["model"]["dropout"] for run in runs if run.is_dir()] == [0.2, 0.2]
    other = fit(tmp_path / "flow", "train.images=16")
    refused = command("train", "-m", "method=ect", f"train.init={teacher},{other}")
    assert refused.code == 2 and "names checkpoints of other settings" in refused.err


def test_from_python_it_is_the_same(teacher: Path, tmp_path: Path) -> None:
    settings = ["dataset=digits", "method=ect", f"train.init={teacher}", *SMALL, f"run_dir={tmp_path / 'run'}"]
    model = diffgen.train(settings)
    assert checkpoint.load(tmp_path / "run").config["schedule"]["sigma_max"] == 60
    assert model.sample(3, steps=1) is not None
    with pytest.raises(UsageError, match="train.init=RUN says which"):
        diffgen.train(["method=ect"])


def test_a_run_goes_on_to_the_last_byte_when_its_checkpoint_is_gone(
    command: Any, teacher: Path, tmp_path: Path
) -> None:
    shutil.copytree(teacher, tmp_path / "teacher")
    assert tuned(command, "teacher", "whole").code == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "00000064")
    shutil.rmtree(tmp_path / "teacher")
    again = tuned(command, "teacher", "half")
    assert again.code == 0, again.err
    assert "resumed at 32 images" in again.out
    for file in ("model.safetensors", "state.safetensors"):
        a, b = (load_file(tmp_path / run / "checkpoints" / "00000064" / file) for run in ("whole", "half"))
        assert a.keys() == b.keys()
        assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert tuned(command, "teacher", "new").code != 0, "a new run needs it"


@pytest.mark.parametrize("more", [[], ["sampler.steps=1"], ["sampler.steps=4"], ["sampler=heun"]])
def test_any_sampler_draws_from_it(command: Any, teacher: Path, tmp_path: Path, more: list[str]) -> None:
    assert tuned(command, teacher, "run", "train.images=16").code == 0
    drawn = command("sample", "ckpt=run", "n=4", "out=out", *more)
    assert drawn.code == 0, drawn.err
    nfe = {"sampler.steps=1": 1, "sampler.steps=4": 4, "sampler=heun": 35}.get(more[0] if more else "", 2)
    assert f"NFE {nfe}" in drawn.out


def test_it_draws_from_what_was_not_tuned(command: Any, teacher: Path) -> None:
    drawn = command("sample", f"ckpt={teacher}", "n=4", "out=out", "sampler=consistency")
    assert drawn.code == 0 and "NFE 2" in drawn.out


@pytest.mark.slow
def test_two_processes_learn_what_one_does(python: Any, teacher: Path, tmp_path: Path) -> None:
    settings = ["dataset=digits", "method=ect", f"train.init={teacher}", "model.dropout=0", *SMALL]
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for run, launch in (("one", []), ("two", two)):
        done = python(*launch, "-m", "diffgen.cli.train", *settings, f"run_dir={run}")
        assert done.returncode == 0, done.stderr
    one, two_ = (conftest.read_rows(tmp_path / run) for run in ("one", "two"))
    for row, expected in zip(two_, one, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-4)
