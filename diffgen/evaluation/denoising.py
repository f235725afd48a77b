"""Denoising error on held-out images by noise level: where a model is weak, and whether it has learned by heart.

No samples and no extractor: the same images get the same noise each time, so two models, or training images and
held-out ones, differ by what the network knows.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from diffgen.core.errors import require
from diffgen.core.randomness import generator
from diffgen.diffusion.samplers import Denoise
from diffgen.diffusion.schedules import Schedule


class Bin(NamedTuple):
    """One noise level: mean errors on training and on held-out images, and the standard error of their difference."""

    nsr: float
    train: float
    test: float
    error: float

    @property
    def gap(self) -> float:
        """test - train: what the model knows of its training images beyond their kind."""
        return self.test - self.train


def noise_levels(low: float, high: float, count: int) -> list[float]:
    """Levels of sigma/alpha, evenly spaced in their logarithm.

    Raises:
        UsageError: Not 0 < low < high, or fewer than two.
    """
    require(0 < low < high, f"noise levels from {low} to {high} must satisfy 0 < low < high")
    require(count >= 2, f"count={count} must be at least 2")
    return [low * (high / low) ** (i / (count - 1)) for i in range(count)]


@torch.no_grad()
def denoising_errors(
    denoise: Denoise,
    schedule: Schedule,
    x0: Tensor,
    images: list[int],
    nsrs: list[float],
    *,
    sigma_data: float,
    seed: int,
) -> Tensor:
    """Error of x0_hat by image and noise level, weighted to 1 at all levels for the best linear denoiser of white data.

    The weight is (s^2 + d^2) / (s d)^2 for s = sigma/alpha and d = sigma_data (Karras et al. 2022, sec. 5). It is the
    same whatever the schedule, the network's target and the weighting it was trained with.

    Args:
        denoise: (x [B, ...], t []) -> x0_hat.
        schedule: Its clock; levels outside [t_min, t_max] are refused.
        x0: Images in [-1, 1], [B, ...].
        images: Their numbers: the noise of an image is a function of (seed, image), the same at all levels.
        nsrs: Levels of sigma/alpha.
        sigma_data: Standard deviation of the data.
        seed: Of the noise.

    Returns:
        Mean over channels and pixels, float64 [B, levels] on the CPU.

    Raises:
        UsageError: A level lies outside the schedule.
    """
    shape = x0.shape[1:]
    z = torch.stack([torch.randn(shape, generator=generator("cpu", seed, "denoising", i)) for i in images]).to(x0)
    columns = []
    for nsr in nsrs:
        t = _time(schedule, nsr)
        x = float(schedule.alpha(t)) * x0 + float(schedule.sigma(t)) * z
        square = (denoise(x, t) - x0).square().flatten(1).mean(1)
        columns.append(square.cpu().double() * (nsr**2 + sigma_data**2) / (nsr * sigma_data) ** 2)
    return torch.stack(columns, dim=1)


def _time(schedule: Schedule, nsr: float) -> Tensor:
    t = schedule.time_at(torch.tensor(nsr, dtype=torch.float64))
    slack = 1e-6 * schedule.t_max
    require(
        schedule.t_min - slack <= float(t) <= schedule.t_max + slack and abs(_nsr(schedule, t) / nsr - 1) < 1e-3,
        f"noise level sigma/alpha={nsr:g} lies outside this schedule",
    )
    return t.clamp(schedule.t_min, schedule.t_max)


def _nsr(schedule: Schedule, t: Tensor) -> float:
    alpha = float(schedule.alpha(t))
    return float(schedule.sigma(t)) / alpha if alpha else math.inf


def compare(train: Tensor, test: Tensor, nsrs: list[float]) -> list[Bin]:
    """Errors of training and of held-out images, [n, levels] and [m, levels], as one row for each level."""
    require(len(train) > 1 and len(test) > 1, "a comparison needs at least two images of each kind")
    error = (train.var(0) / len(train) + test.var(0) / len(test)).sqrt()
    table = zip(nsrs, train.mean(0).tolist(), test.mean(0).tolist(), error.tolist(), strict=True)
    return [Bin(*row) for row in table]
