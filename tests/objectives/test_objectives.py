"""Objectives: what is learned from a batch, with which noise, and what walks back."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from cases import schedule, trained
from torch import Tensor

from diffgen.core.errors import CheckpointError, UsageError
from diffgen.core.registry import Table
from diffgen.diffusion.denoiser import Denoiser
from diffgen.diffusion.guidance import Guidance
from diffgen.diffusion.parameterizations import PARAMETERIZATIONS
from diffgen.diffusion.weightings import WEIGHTINGS
from diffgen.objectives import OBJECTIVES, Batch, Denoise
from diffgen.sampling.drawing import Sampling
from diffgen.storage import checkpoint

Fit = Callable[..., Path]
ONE_STEP = Table("sampler")


@ONE_STEP.register("at_once")
def at_once(denoise: Any, schedule: Any, x: Tensor, ts: Tensor, noise: Any) -> Tensor:
    """x0_hat of the noise."""
    return denoise(x, ts[0])


@dataclass(frozen=True, kw_only=True)
class Flat(Denoise):
    """As denoise, with noise from [0, 1) and one sampler of its own."""

    samplers: ClassVar[Table] = ONE_STEP

    def noise(self, out: Tensor, generator: torch.Generator) -> Tensor:
        return out.uniform_(generator=generator)


@pytest.fixture
def flat() -> Iterator[None]:
    """A row for the length of a test."""
    OBJECTIVES.register("flat")(Flat)
    yield
    del OBJECTIVES["flat"]


def denoiser(network: Any) -> Denoiser:
    row = PARAMETERIZATIONS["flow"]
    return Denoiser(network, schedule("rectified_flow"), row, sigma_data=0.5, scale_input=False)


def batch(n: int = 6) -> Batch:
    rng = torch.Generator().manual_seed(0)
    x0, z = torch.rand(2, n, 3, 4, 4, generator=rng)
    return Batch(x0, torch.arange(n), torch.linspace(0.1, 0.9, n), z, torch.ones(n, 9))


def test_a_part_of_a_batch_is_a_part_of_all_it_holds() -> None:
    whole = batch()
    part = whole.part(2, 4)
    assert torch.equal(part.x0, whole.x0[2:4])
    assert part.label.tolist() == [2, 3]
    assert part.augment is not None and len(part.augment) == 2
    assert whole._replace(augment=None).part(0, 1).augment is None


def test_the_loss_is_the_weighted_error_of_the_target() -> None:
    """For the straight path and `flow`: |F - (z - x0)|^2, times the weight."""
    b = batch()
    seen: list[tuple[Tensor, ...]] = []

    def network(x: Tensor, noise_cond: Tensor, label: Tensor, augment: Tensor) -> Tensor:
        seen.append((x, noise_cond, label, augment))
        return 0.5 * x

    loss = Denoise().loss(denoiser(network), WEIGHTINGS["unit"], b)
    t = b.t[:, None, None, None]
    x_t = (1 - t) * b.x0 + t * b.z
    torch.testing.assert_close(loss, (0.5 * x_t - (b.z - b.x0)).square().flatten(1).mean(1))
    torch.testing.assert_close(seen[0][0], x_t)
    assert torch.equal(seen[0][2], b.label) and seen[0][3] is b.augment
    doubled = Denoise().loss(denoiser(network), lambda alpha, sigma, c_out: torch.full_like(sigma, 2.0), b)
    torch.testing.assert_close(doubled, 2 * loss)


def test_the_same_noise_is_drawn_in_sampling(flat: None) -> None:
    whole = trained(denoiser(lambda x, c, label: torch.zeros_like(x)))
    object.__setattr__(whole, "objective", Flat())
    sampling = Sampling.from_config(
        whole, {"name": "at_once", **GRID}, guidance=Guidance(scale=1.0), seed=0, device=torch.device("cpu")
    )
    noise = sampling.noise([0, 1, 2], seed=3)
    assert 0 <= noise.min() < 0.2 < 0.8 < noise.max() < 1
    assert torch.equal(noise[1:2], sampling.noise([1], seed=3))
    with pytest.raises(UsageError, match=r"sampler.name='heun' is unknown; choose one of \[at_once\]"):
        Sampling.from_config(
            whole, {"name": "heun", **GRID}, guidance=Guidance(scale=1.0), seed=0, device=torch.device("cpu")
        )


GRID = {
    "steps": 2,
    "spacing": "auto",
    "rho": 7.0,
    "sigma_max": 80.0,
    "sigmas": None,
    "skip_to": None,
    "first_step": "network",
    "clip": "auto",
}


def test_a_run_names_its_objective_and_goes_on_with_no_other(
    fit: Fit, tmp_path: Path, flat: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Flat, "samplers", Denoise.samplers)
    drawn: list[Tensor] = []
    loss = Flat.loss

    def seen(self: Flat, denoiser: Any, weighting: Any, batch: Batch) -> Tensor:
        drawn.append(batch.z)
        return loss(self, denoiser, weighting, batch)

    monkeypatch.setattr(Flat, "loss", seen)
    run = fit(tmp_path / "run", "objective.name=flat", "train.images=32")
    assert checkpoint.load(run).config["objective"] == {"name": "flat"}
    assert all(z.min() >= 0 and z.max() < 1 for z in drawn)
    with pytest.raises(CheckpointError, match=r"trained with another objective.name \(flat there, denoise here\)"):
        fit(run, "train.images=64")


def test_an_unknown_objective_is_told(command: Any, tmp_path: Path) -> None:
    refused = command("train", "objective=consistancy")
    assert refused.code == 2
    choices = "[autoencode, consistency, denoise, mean_flow, unmask]"
    assert f"objective='consistancy' is unknown; choose one of {choices}" in refused.err
