"""Averages of other lengths, made after the run, against those that were tracked."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diffgen.core.errors import CheckpointError, UsageError
from diffgen.core.settings import section
from diffgen.nets.ema import EMA, Power, gamma_of, profiles
from diffgen.sampling.generate import shown_average
from diffgen.storage import checkpoint, posthoc
from diffgen.storage.posthoc import Average, combination, overlap
from diffgen.storage.tensor_file import Tensors

Fit = Callable[..., Path]

POWER = [
    "ema.profile=power",
    "train.images=320",
    "train.checkpoint_every=32",
    "lr_schedule.decay=constant",
    "lr_schedule.warmup=0",
]


def averages(*widths: float, every: int = 100, until: int = 2000) -> list[Average]:
    return [Average(images, width) for images in range(every, until + 1, every) for width in widths]


# --- profiles -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sigma_rel", "gamma"), [(0.05, 16.97), (0.10, 6.94), (0.25, 0.7198), (1 / math.sqrt(18), 1.0)]
)
def test_gamma_has_the_published_values(sigma_rel: float, gamma: float) -> None:
    assert gamma_of(sigma_rel) == pytest.approx(gamma, abs=5e-3)


@pytest.mark.parametrize("sigma_rel", [0.03, 0.1, 0.2])
def test_the_width_is_what_its_name_says(sigma_rel: float) -> None:
    """The weights are 0, 1, ..., at times 1, 2, ...: averages of time and of its square give the width."""
    steps, moments = 4000, []
    for power in (1, 2):
        model, averaged = torch.nn.Linear(1, 1, bias=False).double(), torch.nn.Linear(1, 1, bias=False).double()
        ema = EMA(model, averaged, Power(sigma_rel))
        for step in range(1, steps + 1):
            with torch.no_grad():
                model.weight.fill_((step / steps) ** power)
            ema.update(10 * step, 10)
        moments.append(averaged.weight.item())
    gamma = gamma_of(sigma_rel)
    assert moments[0] == pytest.approx((gamma + 1) / (gamma + 2), rel=1e-3)
    assert math.sqrt(moments[1] - moments[0] ** 2) == pytest.approx(sigma_rel, rel=5e-3)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (Average(100, 0.05), Average(300, 0.1)),
        (Average(300, 0.1), Average(100, 0.05)),
        (Average(200, 0.2), Average(200, 0.05)),
    ],
)
def test_overlap_is_the_integral_of_the_product(a: Average, b: Average) -> None:
    t = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 1000

    def profile(average: Average) -> torch.Tensor:
        gamma, end = gamma_of(average.sigma_rel), average.images
        return (gamma + 1) / end * (t / end) ** gamma * (t < end)

    assert overlap(a, b) == pytest.approx(float((profile(a) * profile(b)).sum() / 1000), rel=1e-4)


def test_an_average_that_is_there_is_taken_alone() -> None:
    there = averages(0.05, 0.1, every=500)
    shares, missed = combination(there, Average(2000, 0.1))
    wanted = torch.tensor([float(average == Average(2000, 0.1)) for average in there], dtype=torch.float64)
    assert torch.allclose(shares, wanted, atol=1e-6) and missed < 1e-6


def test_more_averages_miss_less_and_one_misses_much() -> None:
    wanted = Average(2000, 0.15)
    missed = [combination(averages(0.05, 0.1, every=every), wanted)[1] for every in (1000, 500, 200, 100)]
    assert missed == sorted(missed, reverse=True) and missed[-1] < 0.01
    assert combination([Average(2000, 0.05)], wanted)[1] > 0.5


def test_the_widths_are_checked() -> None:
    good = {"profile": "power", "halflife": 1, "ramp": 1, "sigma_rel": [0.05, 0.1]}
    assert section({"ema": good}, "ema").sigma_rel == (0.05, 0.1)
    assert [str(p) for p in profiles(section({"ema": {**good, "sigma_rel": None}}, "ema"))] == ["0.050", "0.100"]
    with pytest.raises(UsageError, match=r"ema.sigma_rel=\[0.05, 0.1\] is for ema.profile=power"):
        section({"ema": {**good, "profile": "halflife"}}, "ema")
    for wrong in ([], [0.3], [0.001], [0.05, 0.0501]):
        with pytest.raises(UsageError, match="ema.sigma_rel="):
            section({"ema": {**good, "sigma_rel": wrong}}, "ema")


# --- runs ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty steps with ten checkpoints, of which two can be gone on from."""
    return fit(tmp_path_factory.mktemp("power") / "run", *POWER)


def tracked(fit: Fit, folder: Path, width: float) -> Tensors:
    """The average of the same run with this width, tracked from the start."""
    path = fit(folder / f"{width}", *POWER, f"ema.sigma_rel=[{width}]")
    return checkpoint.load(path).weights


def distance(a: Tensors, b: Tensors) -> float:
    return math.sqrt(sum(float((a[name] - b[name]).double().square().sum()) for name in a))


@pytest.mark.parametrize(
    "width", [pytest.param(0.075, marks=pytest.mark.slow), 0.15, pytest.param(0.2, marks=pytest.mark.slow)]
)
def test_a_length_made_afterwards_is_the_one_tracked(fit: Fit, run: Path, tmp_path: Path, width: float) -> None:
    own = checkpoint.load(run)
    wanted = tracked(fit, tmp_path, width)
    made = posthoc.of_length(own, width)
    assert distance(made.weights, wanted) < 0.15 * distance(own.weights, wanted)
    assert made.config["ema"]["sigma_rel"] == width and made.config["ema"]["made_from"] == 20
    assert made.config["ema"]["missed"] < posthoc.WORST


def test_what_is_tracked_is_given_back(fit: Fit, run: Path) -> None:
    own = checkpoint.load(run)
    assert own.config["ema"] == {"profile": "power", "sigma_rel": 0.05}
    assert posthoc.of_length(own, None) is own and posthoc.of_length(own, 0.05) is own
    second = checkpoint.load(run / "checkpoints" / "00000320" / "model-0.100.safetensors")
    made = posthoc.of_length(own, 0.1)
    assert distance(made.weights, second.weights) < 1e-4 * distance(own.weights, second.weights)


def test_an_earlier_checkpoint_is_made_from_what_was_there(run: Path) -> None:
    """Also one that nothing can go on from any more."""
    made = posthoc.of_length(checkpoint.load(run / "checkpoints" / "00000192"), 0.12)
    assert made.images == 192 and made.config["ema"]["made_from"] == 12


def test_old_checkpoints_keep_their_averages_alone(run: Path) -> None:
    folders = run / "checkpoints"
    assert len(checkpoint.numbered(folders)) == 10
    assert [folder.name for folder in checkpoint.complete(folders)] == ["00000320", "00000288"]
    thin = sorted(file.name for file in (folders / "00000032").iterdir())
    assert thin == ["model-0.100.safetensors", "model.safetensors"]


def test_an_interrupted_run_ends_the_same(fit: Fit, run: Path, tmp_path: Path) -> None:
    halves = fit(tmp_path / "run", *POWER, "train.images=160")
    fit(tmp_path / "run", *POWER)
    for name in ("model", "model-0.100"):
        there, here = (path / "checkpoints" / "00000320" / f"{name}.safetensors" for path in (run, halves))
        assert there.read_bytes() == here.read_bytes()


def test_a_damaged_average_sends_the_run_back(fit: Fit, tmp_path: Path) -> None:
    folder = fit(tmp_path / "run", *POWER, "train.images=96") / "checkpoints"
    (folder / "00000096" / "model-0.100.safetensors").write_bytes(b"x")
    fit(tmp_path / "run", *POWER, "train.images=96")
    assert any(path.name.startswith("00000096-damaged") for path in folder.iterdir())
    assert checkpoint.damage(folder / "00000096") is None


def test_the_averages_of_a_run_stay_what_they_are(fit: Fit, run: Path, tmp_path: Path) -> None:
    for change in ("ema.profile=halflife", "ema.sigma_rel=[0.05]"):
        with pytest.raises(CheckpointError, match=change.partition("=")[0]):
            fit(tmp_path / change.partition("=")[0], *POWER, f"train.resume={run}", change)


def test_what_cannot_be_made_is_said(fit: Fit, run: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="needs a run trained with ema.profile=power"):
        posthoc.of_length(checkpoint.load(tiny_model), 0.1)
    with pytest.raises(CheckpointError, match=r"ema.sigma_rel=0.01 cannot be made from the 20 averages .*% of its"):
        posthoc.of_length(checkpoint.load(run), 0.01)
    alone = tmp_path / "model.safetensors"
    alone.write_bytes((run / "checkpoints" / "00000320" / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="stands alone: give ckpt=RUN"):
        posthoc.of_length(checkpoint.load(alone), 0.1)


@pytest.mark.parametrize(
    "said",
    [3, [], "power", {}, {"profile": "power"}, {"profile": ["power"]}, {"profile": "power", "sigma_rel": "x"},
     {"profile": "power", "sigma_rel": 0.0}, {"profile": "power", "sigma_rel": 0.1, "made_from": {}}, {"other": 1}],
)  # fmt: skip
def test_what_a_stranger_says_of_the_average_is_not_believed(run: Path, said: Any) -> None:
    own = checkpoint.load(run)
    strange = replace(own, config={**own.config, "ema": said})
    assert posthoc.facts(strange.config) in ({}, said)
    assert shown_average(strange) == ""
    with pytest.raises(CheckpointError, match="ema.sigma_rel=0.2"):
        posthoc.of_length(strange, 0.2)


def test_a_checkpoint_of_no_images_has_no_average(run: Path) -> None:
    with pytest.raises(CheckpointError, match="has seen no images"):
        posthoc.of_length(replace(checkpoint.load(run), images=0), 0.1)


def test_what_a_crash_left_of_a_thinned_checkpoint_goes(fit: Fit, tmp_path: Path) -> None:
    folders = fit(tmp_path / "run", *POWER, "train.images=96") / "checkpoints"
    (folders / "00000032" / "state.safetensors").write_bytes(b"left")
    assert not checkpoint.thinned(folders / "00000032")
    checkpoint.rotate(folders, 2)
    assert checkpoint.thinned(folders / "00000032") and checkpoint.damage(folders / "00000096") is None
