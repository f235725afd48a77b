"""The likelihood of pixels: masses of 256 levels sum to 1, with gradients that are numbers, wherever the mean lies."""

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from diffgen.diffusion.codec import LIKELIHOODS, Codec, log_mass, nats_to_bits_per_dim
from diffgen.nets.autoencoder import Quantiser

GRID = torch.arange(256, dtype=torch.float64) / 127.5 - 1
LEVELS = (torch.arange(256) / 127.5 - 1).reshape(256, 1, 1, 1)
MEANS = [0.0, 0.3, -1.0, 1.0, -1.7, 5.0, -40.0]
WIDTHS = [1e-4, 1e-3, 1 / 255, 0.1, 1.0, 30.0]
HARD = [*itertools.product(LIKELIHOODS, MEANS, WIDTHS)]


def masses(likelihood: str, mean: float, width: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """log of the mass of each of 256 levels."""
    at, log_scale = torch.full((256, 1, 1, 1), mean, dtype=dtype), torch.full((1, 1, 1), math.log(width), dtype=dtype)
    levels = LEVELS if dtype == torch.float32 else GRID.reshape(LEVELS.shape)
    return log_mass(levels, at, log_scale, likelihood).flatten()


@pytest.mark.parametrize(("likelihood", "mean", "width"), HARD)
def test_masses_sum_to_one(likelihood: str, mean: float, width: float) -> None:
    found = masses(likelihood, mean, width)
    assert found.dtype == torch.float32 and found.isfinite().all() and (found <= 1e-6).all()
    assert float(found.double().exp().sum()) == pytest.approx(1, abs=1e-3)
    if 1 / 255 <= width <= 1 and abs(mean) <= 1:  # double precision has the digits of all bins
        torch.testing.assert_close(
            masses(likelihood, mean, width, torch.float64).exp().sum().item(), 1.0, atol=1e-6, rtol=0
        )


@pytest.mark.parametrize(("likelihood", "mean", "width"), HARD)
def test_gradients_are_finite_and_point_to_the_pixel(likelihood: str, mean: float, width: float) -> None:
    at = torch.full((256, 1, 1, 1), mean, requires_grad=True)
    log_scale = torch.full((1, 1, 1), math.log(width), requires_grad=True)
    log_mass(LEVELS, at, log_scale, likelihood).sum().backward()
    assert at.grad is not None and at.grad.isfinite().all()
    assert log_scale.grad is not None and log_scale.grad.isfinite().all()
    inner = at.grad.flatten()[1:-1]
    below, above = inner[GRID[1:-1] < mean - 0.02], inner[GRID[1:-1] > mean + 0.02]
    assert (below <= 0).all() and (above >= 0).all()
    if 1e-3 <= width <= 1 and abs(mean) <= 1:
        assert (below < 0).all() and (above > 0).all(), "also far away: a pixel that is badly told is learned from"


def by_torch(likelihood: str, mean: float, width: float) -> Tensor:
    """log of the same masses from the distribution functions of torch, in double precision."""
    centre, spread = torch.tensor(mean, dtype=torch.float64), torch.tensor(width, dtype=torch.float64)
    edges = ((2 * torch.arange(255, dtype=torch.float64) + 1) / 255) - 1
    if likelihood == "gaussian":
        cdf = torch.distributions.Normal(centre, spread).cdf(edges)
    else:
        base = torch.distributions.Uniform(torch.tensor(0.0).double(), torch.tensor(1.0).double())
        sigmoid = [torch.distributions.SigmoidTransform().inv, torch.distributions.AffineTransform(centre, spread)]
        cdf = torch.distributions.TransformedDistribution(base, sigmoid).cdf(edges)
    whole = torch.cat([torch.zeros(1).double(), cdf, torch.ones(1).double()])
    return whole.diff().log()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize(("mean", "width"), [(0.0, 0.2), (0.3, 0.1), (-0.9, 0.3), (1.2, 0.5)])
def test_masses_are_those_of_torch(likelihood: str, mean: float, width: float) -> None:
    expected = by_torch(likelihood, mean, width)
    known = expected > math.log(1e-9)  # below, differences of numbers near 1 have lost their digits
    assert known.sum() > 100
    torch.testing.assert_close(
        masses(likelihood, mean, width, torch.float64)[known], expected[known], rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(masses(likelihood, mean, width)[known].double(), expected[known], rtol=1e-3, atol=1e-3)


def test_tails_keep_their_slope() -> None:
    """Of the logistic: -distance / width, at twenty and at a thousand widths."""
    far = masses("logistic", 0.0, 1e-3).flip(0)[:100]
    slopes = (far[1:] - far[:-1])[1:]
    torch.testing.assert_close(slopes, torch.full_like(slopes, 2 / 255 / 1e-3), rtol=1e-3, atol=0)


def test_the_edges_are_where_the_pixels_of_files_lie() -> None:
    """x as data sets give it, in float32 and to the last digit: only 0 and 255 reach to infinity."""
    found = masses("gaussian", -3.0, 0.1), masses("gaussian", 3.0, 0.1)
    assert float(found[0][0]) == pytest.approx(0, abs=1e-6) and float(found[1][255]) == pytest.approx(0, abs=1e-6)
    assert float(found[0][1]) < -100 and float(found[1][254]) < -100


def test_noise_becomes_latents_of_the_prior_and_noise_again() -> None:
    schedule: Any = None
    noise = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    gaussian = Codec(SimpleNamespace(quantiser=None), schedule)  # type: ignore[arg-type]
    assert torch.equal(gaussian.of_noise(noise), noise) and torch.equal(gaussian.noise_of(noise), noise)
    quantised = Codec(SimpleNamespace(quantiser=Quantiser((5, 8))), schedule)  # type: ignore[arg-type]
    z = quantised.of_noise(noise)
    assert len(z[:, 0].unique()) <= 5 and torch.equal(quantised.of_noise(quantised.noise_of(z)), z)


def test_nats_become_bits_of_each_value() -> None:
    found = nats_to_bits_per_dim(torch.tensor([math.log(2) * 3 * 4 * 5, 0.0]), torch.zeros(2, 3, 4, 5))
    assert found.tolist() == pytest.approx([1, 0])
