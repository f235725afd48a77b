"""Samplers: from noise to data, each a pure function (denoise, schedule, x, ts, noise, *, options) -> x.

`denoise(x, t) -> x0_hat` has label, guidance and clipping closed over; `ts` falls from t_max to 0 (`schedules.time_grid`);
`noise(i)` is fresh N(0, I) like x for step i. With z_hat = (x - alpha x0_hat)/sigma the probability-flow ODE is
dx = x0_hat d(alpha) + z_hat d(sigma), for every schedule and with no derivative of either. So a step that holds x0_hat
and z_hat is x_s = alpha_s x0_hat + sigma_s z_hat: DDIM, EDM's Euler and rectified flow's Euler are this one line.

Options are keyword-only and equal the YAML keys, beside those of the time grid.
"""

import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from diffgen.errors import require
from diffgen.registry import Table
from diffgen.schedules import Schedule

SAMPLERS = Table("sampler")

Denoise = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[int], Tensor]


class Level(NamedTuple):
    """A point of the grid: its time (a scalar tensor) and its alpha and sigma (Python floats, from float64)."""

    t: Tensor
    alpha: float
    sigma: float


def level(schedule: Schedule, t: Tensor) -> Level:
    """alpha and sigma at a scalar time."""
    return Level(t, float(schedule.alpha(t)), float(schedule.sigma(t)))


def steps(schedule: Schedule, ts: Tensor) -> Iterator[tuple[int, Level, Level]]:
    """Each step of the grid: its number, where it starts and where it ends."""
    levels = [level(schedule, t) for t in ts.double()]
    return ((i, now, then) for i, (now, then) in enumerate(zip(levels[:-1], levels[1:], strict=True)))


def z_hat(x: Tensor, x0_hat: Tensor, at: Level) -> Tensor:
    """The noise that x and x0_hat imply."""
    return (x - at.alpha * x0_hat) / at.sigma


@SAMPLERS.register("ddim")
def ddim(denoise: Denoise, schedule: Schedule, x: Tensor, ts: Tensor, noise: Noise, *, eta: float) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12), first order; eta = 0 is the ODE, eta = 1 the DDPM posterior."""
    require(0 <= eta <= 1, f"sampler.eta={eta} must be in [0, 1]")
    for i, now, then in steps(schedule, ts):
        x = posterior_step(x, denoise(x, now.t), now, then, eta=eta, scale=eta, noise=lambda i=i: noise(i))
    return x


@SAMPLERS.register("ancestral")
def ancestral(
    denoise: Denoise, schedule: Schedule, x: Tensor, ts: Tensor, noise: Noise, *, variance: Literal["small", "large"]
) -> Tensor:
    """DDPM ancestral sampling (Ho et al. 2020, algorithm 2), for any schedule and number of steps.

    `small` draws from the posterior q(x_s | x_t, x0_hat); `large` keeps its mean and draws with the variance of
    q(x_t | x_s), the other choice of their sec. 3.2.
    """
    for i, now, then in steps(schedule, ts):
        scale = 1.0 if variance == "small" or i == len(ts) - 2 else now.sigma / then.sigma
        x = posterior_step(x, denoise(x, now.t), now, then, eta=1.0, scale=scale, noise=lambda i=i: noise(i))
    return x


def posterior_step(
    x: Tensor, x0_hat: Tensor, now: Level, then: Level, *, eta: float, scale: float, noise: Callable[[], Tensor]
) -> Tensor:
    """alpha_s x0_hat + sqrt(sigma_s^2 - eta^2 v) z_hat + scale sqrt(v) noise, with the posterior variance v.

    v = (sigma_s/sigma_t)^2 (sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2); it is finite at alpha_t = 0 and 0 at data.
    """
    forward = now.sigma**2 - (now.alpha / then.alpha * then.sigma) ** 2
    v = max((then.sigma / now.sigma) ** 2 * forward, 0.0)
    x = then.alpha * x0_hat + math.sqrt(max(then.sigma**2 - eta**2 * v, 0.0)) * z_hat(x, x0_hat, now)
    return x + scale * math.sqrt(v) * noise() if scale * v > 0 else x


@SAMPLERS.register("heun")
def heun(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    ts: Tensor,
    noise: Noise,
    *,
    s_churn: float,
    s_min: float,
    s_max: float | None,
    s_noise: float,
) -> Tensor:
    """Heun's trapezoid, second order, two network calls a step (Karras et al. 2022, algorithms 1 and 2).

    The last step, to data, is Euler's: NFE = 2 steps - 1. With s_churn > 0 each step first adds noise, while
    s_min <= sigma/alpha <= s_max (null: no bound); at alpha = 1 this is their algorithm 2 to the letter.
    """
    for i, now, then in steps(schedule, ts):
        if s_churn > 0 and now.alpha > 0 and s_min <= now.sigma / now.alpha <= (s_max or math.inf):
            x, now = churn(schedule, x, now, min(s_churn / (len(ts) - 1), math.sqrt(2) - 1), s_noise * noise(i))
        x0_hat = denoise(x, now.t)
        z = z_hat(x, x0_hat, now)
        euler = then.alpha * x0_hat + then.sigma * z
        if then.sigma == 0:
            return euler
        x0_then = denoise(euler, then.t)
        z_then = z_hat(euler, x0_then, then)
        x = x + (then.alpha - now.alpha) * (x0_hat + x0_then) / 2 + (then.sigma - now.sigma) * (z + z_then) / 2
    return x


def churn(schedule: Schedule, x: Tensor, now: Level, gamma: float, noise: Tensor) -> tuple[Tensor, Level]:
    """Raise sigma/alpha by the factor 1 + gamma with fresh noise (Karras et al. 2022, algorithm 2, lines 5-6)."""
    nsr = now.sigma / now.alpha
    higher = level(schedule, schedule.time_at(torch.full_like(now.t, nsr * (1 + gamma))))
    added = math.sqrt(max((higher.sigma / higher.alpha) ** 2 - nsr**2, 0.0))
    return higher.alpha * (x / now.alpha + added * noise), higher


@SAMPLERS.register("dpmpp_2m")
def dpmpp_2m(denoise: Denoise, schedule: Schedule, x: Tensor, ts: Tensor, noise: Noise) -> Tensor:
    """DPM-Solver++(2M), second order, one network call a step (Lu et al. 2022b, algorithm 2).

    Written with e = exp(-h) = alpha_t sigma_s / (sigma_t alpha_s), which is finite where alpha_t = 0. The first step
    and the step to data are first order.
    """
    previous, h_previous = None, math.inf
    for _, now, then in steps(schedule, ts):
        x0_hat = denoise(x, now.t)
        e = now.alpha * then.sigma / (now.sigma * then.alpha)
        h = -math.log(e) if e > 0 else math.inf
        direction = x0_hat
        if previous is not None and h < math.inf and h_previous < math.inf:
            direction = x0_hat + (x0_hat - previous) * h / (2 * h_previous)
        x = then.sigma / now.sigma * x - then.alpha * (e - 1) * direction
        previous, h_previous = x0_hat, h
    return x
