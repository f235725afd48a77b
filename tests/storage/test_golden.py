"""Checkpoints that an earlier version wrote, before there were kinds and objectives: they load, sample and go on."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffgen.build import restore
from diffgen.storage import checkpoint
from diffgen.storage.formats import in_todays_words

GOLDEN = Path(__file__).parents[1] / "golden"

RUNS = {
    "digits": [
        "dataset=digits",
        "model.channels=8",
        "model.channel_mult=[1]",
        "model.attention_resolutions=[]",
        "preview.n=2",
    ],
    "points": ["dataset=points", "dataset.n=1000", "model.width=16", "model.blocks=1", "preview.n=20"],
}
"""What they were trained with; `samples.npz` is what the version that wrote them sampled from them."""

SHARED = [
    "sampler.steps=4",
    "train.images=1280",
    "train.batch_size=32",
    "train.log_every=160",
    "train.checkpoint_every=640",
    "train.preview_every=1280",
    "train.threads=1",
    "lr_schedule.warmup=32",
]


@pytest.mark.parametrize("run", RUNS)
def test_an_old_checkpoint_says_what_it_is_in_todays_words(run: str) -> None:
    loaded = checkpoint.load(GOLDEN / run)
    trained = restore(loaded)
    assert loaded.config["objective"] == {"name": "denoise"}
    pixels = {"name": "pixels", "background": "white", "range": None}
    kind, size = {"digits": (pixels, (1, 8, 8)), "points": ({"name": "vectors"}, (2,))}[run]
    assert loaded.config["data"]["kind"] == kind
    assert trained.shape.size == size
    assert trained.shape.num_classes == {"digits": 10, "points": 2}[run]


@pytest.mark.parametrize("run", RUNS)
def test_an_old_checkpoint_samples_the_same(command: Any, tmp_path: Path, run: str) -> None:
    assert command("sample", f"ckpt={GOLDEN / run}", "n=10", "save=[npz]", "out=out").code == 0
    before, now = np.load(GOLDEN / run / "samples.npz"), np.load(tmp_path / "out" / "samples.npz")
    assert np.array_equal(before["arr_1"], now["arr_1"])
    assert (before["arr_0"].shape, before["arr_0"].dtype) == (now["arr_0"].shape, now["arr_0"].dtype)
    # bit for bit on the machine that wrote them; another's rounding may move a pixel by one
    atol = 1 if run == "digits" else 1e-5
    np.testing.assert_allclose(now["arr_0"].astype(float), before["arr_0"].astype(float), rtol=0, atol=atol)


@pytest.mark.parametrize("run", RUNS)
def test_an_old_run_goes_on(command: Any, tmp_path: Path, run: str) -> None:
    shutil.copytree(GOLDEN / run, tmp_path / "run")
    done = command("train", *RUNS[run], *SHARED, "run_dir=run")
    assert done.code == 0, done.err
    assert "resumed at 640 images" in done.out
    assert "changed" not in done.out
    went_on, then = checkpoint.load(tmp_path / "run"), load_file(GOLDEN / run / "after.safetensors")
    assert went_on.images == 1280
    for name, weight in then.items():  # what the version that wrote them went on to
        torch.testing.assert_close(went_on.weights[name], weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "config", [{}, {"data": 3}, {"data": {"channels": "x"}}, {"data": {"channels": 1, "pixels": 0}}]
)
def test_what_makes_no_sense_is_left_for_the_tables_to_refuse(config: dict[str, Any]) -> None:
    assert in_todays_words(config)["objective"] == {"name": "denoise"}


def test_todays_words_stay_what_they_are() -> None:
    kind = {"name": "pixels", "background": "black", "range": [0, 1]}
    config = {"data": {"kind": kind, "size": [1, 8, 8]}, "objective": {"name": "other"}}
    assert in_todays_words(config) == config
