"""Likelihood of 8-bit images in bits per dimension: along the ODE for any model, and DDPM's variational bound.

Level k of a pixel is trained on as k / 127.5 - 1, so its bin is one level wide with that in the middle. An upper bound
on the bits of the level is -log2 of the density at a random point of the bin, and log2(127.5) for its width (Theis et
al. 2016, sec. 3.1). `x = (k + u) / 256`, found elsewhere, is another such bound, with its bins a little off the levels.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.special import log_ndtr

from diffgen.core.devices import float_type
from diffgen.core.errors import require
from diffgen.core.randomness import generator
from diffgen.diffusion.denoiser import like
from diffgen.diffusion.likelihood import hutchinson_trace, log_likelihood
from diffgen.diffusion.samplers import Denoise
from diffgen.diffusion.schedules import Schedule
from diffgen.diffusion.transitions import posterior, transition

LEVELS = 127.5
"""Levels in a unit of x."""

STD = 0.5
"""Of images in [-1, 1], about; only how far a random choice of terms scatters depends on it."""


class Bits(NamedTuple):
    """Bits per dimension of each image, float64 [B] on the CPU, and how often the network was called for the batch."""

    each: Tensor
    nfe: int


class Bound(NamedTuple):
    """The terms of the variational bound in bits per dimension, float64 [B] each."""

    prior: Tensor
    steps: Tensor
    decoder: Tensor

    @property
    def total(self) -> Tensor:
        """Upper bound on the bits per dimension, [B]."""
        return self.prior + self.steps + self.decoder


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean over images and its standard error; infinite for one image, and 0 where all are the same."""
    if len(values) > 1 and bool((values == values[0]).all()):
        return float(values[0]), 0.0
    error = values.std() / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return float(values.mean()), float(error)


def levels(pixels: Tensor) -> Tensor:
    """uint8 -> k / 127.5 - 1, as `devices.float_type`."""
    return pixels.to(float_type(pixels.device)) / LEVELS - 1


def dequantise(pixels: Tensor, images: list[int], seed: int, draw: int = 0) -> Tensor:
    """A uniformly random point of each pixel's bin, a function of (seed, image, draw) and the level alone.

    Args:
        pixels: uint8 [B, ...].
        images: Their numbers in the data set.
        seed: Of the draws.
        draw: Number of the draw, to average over several.
    """
    shape = pixels.shape[1:]
    u = [torch.rand(shape, generator=generator("cpu", seed, "dequantise", i, draw)) for i in images]
    return levels(pixels) + ((torch.stack(u) - 0.5) / LEVELS).to(pixels.device)


def probes(shape: tuple[int, ...], images: list[int], seed: int, draw: int = 0) -> Tensor:
    """Random signs for Hutchinson's trace, float64 [B, D], as `dequantise` draws."""
    size = math.prod(shape)
    rngs = (generator("cpu", seed, "probe", i, draw) for i in images)
    return torch.stack([2.0 * torch.randint(2, (size,), generator=rng, dtype=torch.float64) - 1 for rng in rngs])


class Counted:
    """A denoiser that counts its calls."""

    def __init__(self, denoise: Denoise) -> None:
        self.denoise, self.calls = denoise, 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """What the denoiser gives."""
        self.calls += 1
        return self.denoise(x, t)


def bits_per_dim(
    denoise: Denoise,
    schedule: Schedule,
    pixels: Tensor,
    images: list[int],
    *,
    seed: int,
    rtol: float,
    atol: float,
    draw: int = 0,
) -> Bits:
    """Negative log-likelihood of dequantised images along the ODE (Song et al. 2021, sec. 4.3).

    An image's figure does not depend on the batch but by the tolerance, for which the batch shares its steps.

    Args:
        denoise: (x [B, ...], t []) -> x0_hat, differentiable, unclipped: `guidance.guided` at scale 1 is one.
        schedule: Its clock.
        pixels: uint8 [B, ...].
        images: Their numbers, which seed the noise.
        seed: Of dequantisation and probes.
        rtol: Relative tolerance of the solver; 1e-5 in the paper.
        atol: Absolute tolerance; 1e-5 in the paper.
        draw: Number of the draw, to average over several.
    """
    counted = Counted(denoise)
    shape = tuple(pixels.shape[1:])
    x0 = dequantise(pixels, images, seed, draw)
    trace = hutchinson_trace(probes(shape, images, seed, draw))
    nats = -log_likelihood(counted, schedule, x0, rtol=rtol, atol=atol, trace=trace)
    return Bits(nats / (math.prod(shape) * math.log(2)) + math.log2(LEVELS), counted.calls)


# --- the variational bound ----------------------------------------------------------------------------------------


@torch.no_grad()
def variational_bound(
    denoise: Denoise,
    schedule: Schedule,
    pixels: Tensor,
    images: list[int],
    *,
    steps: int,
    seed: int,
    draws: int | None = None,
) -> Bound:
    """L_T + sum of L_{t-1} + L_0 (Ho et al. 2020, eq. 5), with reverse steps of variance beta_t, as for their CIFAR-10.

    Over `steps` even times from t_min to t_max: with ddpm_linear and its own number of steps, the table that it was
    trained on. Every expectation is one draw of noise. The decoder has the variance of the posterior one step before,
    as in the code of Nichol & Dhariwal 2021.

    Args:
        denoise: (x [B, ...], t [B]) -> x0_hat; may be clipped.
        schedule: Its clock.
        pixels: uint8 [B, ...].
        images: Their numbers, which seed the noise.
        steps: At least 2.
        seed: Of the noise.
        draws: Terms of the sum to evaluate for each image, at random and independent of other images, so that the
            mean stays right and the standard error over images counts this chance too; None evaluates them all. One
            network call each, and one for the decoder.

    Raises:
        UsageError: There are too few steps.
    """
    require(steps >= 2, f"steps={steps} must be at least 2")
    x0, dims = levels(pixels), pixels[0].numel()
    ts = torch.linspace(schedule.t_min, schedule.t_max, steps, dtype=torch.float64)
    weights, variances = kl_terms(schedule, ts)
    entries, chances = chosen_terms(schedule, ts, weights, images, seed, draws)

    def error(t: Tensor, draw: int) -> Tensor:
        return x0 - denoise(noised(x0, schedule, t, images, seed, draw), t.to(x0))

    summed = torch.full((len(x0),), dims * float(variances.sum()), dtype=torch.float64)
    for draw, entry in enumerate(entries.T, 1):
        summed += per_image(error(ts[entry + 1], draw) ** 2).cpu() * weights[entry] / chances[entry]
    _, _, variance = posterior(schedule, ts[0], ts[1])
    decoder = -discretised_gaussian(pixels, x0 - error(ts[0].expand(len(x0)), 0), float(variance.sqrt()))
    nsr = schedule.sigma(ts[-1]) / schedule.alpha(ts[-1])
    prior = per_image(x0**2).cpu() / float(2 * nsr**2)  # against N(0, sigma(t_max)^2), where samplers start
    return Bound(*(nats / (dims * math.log(2)) for nats in (prior, summed, per_image(decoder).cpu())))


def kl_terms(schedule: Schedule, ts: Tensor) -> tuple[Tensor, Tensor]:
    """L_{t-1} = weight |x0 - x0_hat|^2 + dims variance, the KL of two Gaussians: of their means, then variances.

    Args:
        schedule: Its clock.
        ts: Times of the chain, float64 [T].

    Returns:
        weight and variance, float64 [T - 1] each, for the steps from ts[1], ts[2], ...
    """
    _, c_0, variance = posterior(schedule, ts[:-1], ts[1:])
    _, beta = transition(schedule, ts[:-1], ts[1:])
    ratio = variance / beta
    return c_0**2 / (2 * beta), (ratio - 1 - ratio.log()) / 2


def chosen_terms(
    schedule: Schedule, ts: Tensor, weights: Tensor, images: list[int], seed: int, draws: int | None
) -> tuple[Tensor, Tensor]:
    """Which terms of the sum to evaluate, and by what to divide each, so that the mean of their sum is the whole sum.

    The chances follow what the terms of white Gaussian images are (Nichol & Dhariwal 2021, sec. 3.3, learn them), and
    one time comes from each of `draws` equal parts of them (Kingma et al. 2021, app. I).

    Returns:
        Numbers of steps, int64 [B, draws], and their divisors, float64 [T - 1].
    """
    if draws is None:
        return torch.arange(len(weights)).expand(len(images), -1), torch.ones_like(weights)
    alpha, sigma = schedule.alpha(ts[1:]), schedule.sigma(ts[1:])
    expected = weights * (STD * sigma) ** 2 / ((STD * alpha) ** 2 + sigma**2)
    chances = expected / expected.sum()
    rngs = (generator("cpu", seed, "terms", i) for i in images)
    u = torch.stack([torch.rand(draws, generator=rng, dtype=torch.float64) for rng in rngs])
    entries = torch.searchsorted(chances.cumsum(0), (torch.arange(draws) + u) / draws)
    return entries.clamp(max=len(weights) - 1), draws * chances


def noised(x0: Tensor, schedule: Schedule, t: Tensor, images: list[int], seed: int, draw: int) -> Tensor:
    """alpha x0 + sigma z at the times t, [B] or [], with z a function of (seed, image, draw)."""
    shape = x0.shape[1:]
    z = torch.stack([torch.randn(shape, generator=generator("cpu", seed, "bound", i, draw)) for i in images])
    return like(schedule.alpha(t), x0) * x0 + like(schedule.sigma(t), x0) * z.to(x0)


def per_image(values: Tensor) -> Tensor:
    """Sum over all but the first axis, [B]."""
    return values.flatten(1).sum(1)


def discretised_gaussian(pixels: Tensor, mean: Tensor, std: float) -> Tensor:
    """log of the mass that N(mean, std^2) has in the bin of each pixel (Ho et al. 2020, eq. 13).

    The bins of 0 and 255 reach to infinity, so that the 256 masses sum to 1. Shaped like pixels.
    """
    x, half = levels(pixels), 0.5 / LEVELS
    low = ((x - half - mean) / std).masked_fill(pixels == 0, -math.inf)
    high = ((x + half - mean) / std).masked_fill(pixels == 255, math.inf)
    mirrored = low + high > 0  # where both tails are near 1: the mirror image keeps the digits
    low, high = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    return log_ndtr(high) + torch.log(-torch.expm1(log_ndtr(low) - log_ndtr(high)))
