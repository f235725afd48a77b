"""Samplers that keep nothing from one step to the next."""

import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from diffgen.core.errors import require
from diffgen.diffusion.samplers.steps import (
    SAMPLERS,
    Denoise,
    Level,
    Noise,
    combined,
    euler_step,
    level,
    posterior_step,
    steps,
    z_hat,
)
from diffgen.diffusion.schedules import Schedule


@SAMPLERS.register("euler")
def euler(denoise: Denoise, schedule: Schedule, x: Tensor, ts: Tensor, noise: Noise) -> Tensor:
    """Euler's method on the probability-flow ODE, first order; the same as DDIM with eta = 0."""
    for _, now, then in steps(schedule, ts):
        x = euler_step(x, denoise(x, now.t), now, then)
    return x


@SAMPLERS.register("ddim")
def ddim(denoise: Denoise, schedule: Schedule, x: Tensor, ts: Tensor, noise: Noise, *, eta: float) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12), first order; eta = 0 is the ODE, eta = 1 the DDPM posterior."""
    require(0 <= eta <= 1, f"sampler.eta={eta} must be in [0, 1]")
    for i, now, then in steps(schedule, ts):
        x = posterior_step(x, denoise(x, now.t), now, then, eta=eta, scale=eta, noise=partial(noise, i))
    return x


@SAMPLERS.register("euler_ancestral", noise=True)
def euler_ancestral(denoise: Denoise, schedule: Schedule, x: Tensor, ts: Tensor, noise: Noise, *, eta: float) -> Tensor:
    """k-diffusion's name for DDIM with noise.

    Its sigma_up^2 = eta^2 sigma_s^2 (sigma_t^2 - sigma_s^2) / sigma_t^2 is eta^2 times the posterior variance where
    alpha = 1.
    """
    return ddim(denoise, schedule, x, ts, noise, eta=eta)


@SAMPLERS.register("ancestral", order=None, noise=True)
def ancestral(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    ts: Tensor,
    noise: Noise,
    *,
    variance: Literal["small", "large"],
) -> Tensor:
    """DDPM ancestral sampling (Ho et al. 2020, algorithm 2), for any schedule and number of steps.

    `small` draws from the posterior q(x_s | x_t, x0_hat); `large` keeps its mean and draws with the variance of
    q(x_t | x_s), the other choice of their sec. 3.2.
    """
    for i, now, then in steps(schedule, ts):
        scale = 1.0 if variance == "small" or then.sigma == 0 else now.sigma / then.sigma
        x = posterior_step(x, denoise(x, now.t), now, then, eta=1.0, scale=scale, noise=partial(noise, i))
    return x


@SAMPLERS.register("consistency", order=None, noise=True)
def consistency(denoise: Denoise, schedule: Schedule, x: Tensor, ts: Tensor, noise: Noise) -> Tensor:
    """x0_hat with fresh noise at the level where the step ends (Song et al. 2023, algorithm 1).

    For denoisers that go from any level to data at once, as `objective=consistency` makes them.
    """
    for i, now, then in steps(schedule, ts):
        x0_hat = denoise(x, now.t)
        x = then.alpha * x0_hat + then.sigma * noise(i) if then.sigma > 0 else x0_hat
    return x


@SAMPLERS.register("heun", order=2, calls=2)
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
        if s_churn > 0 and now.alpha > 0 and s_min <= now.nsr <= (s_max or math.inf):
            x, now = churn(schedule, x, now, min(s_churn / (len(ts) - 1), math.sqrt(2) - 1), s_noise * noise(i))
        x0_hat = denoise(x, now.t)
        guess = euler_step(x, x0_hat, now, then)
        if then.sigma == 0:
            return guess
        x0_then = denoise(guess, then.t)
        # x + d(alpha) (x0_hat + x0_then) / 2 + d(sigma) (z + z_then) / 2, where z = (x - alpha x0_hat) / sigma
        a, b = (then.alpha - now.alpha) / 2, (then.sigma - now.sigma) / 2
        at_now = (1 + b / now.sigma, x), (a - b * now.alpha / now.sigma, x0_hat)
        at_then = (b / then.sigma, guess), (a - b * then.alpha / then.sigma, x0_then)
        x = combined(*at_now, *at_then)
    return x


def churn(schedule: Schedule, x: Tensor, now: Level, gamma: float, noise: Tensor) -> tuple[Tensor, Level]:
    """Raise sigma/alpha by the factor 1 + gamma with fresh noise (Karras et al. 2022, algorithm 2, lines 5-6)."""
    higher = level(schedule, schedule.time_at(torch.full_like(now.t, now.nsr * (1 + gamma))))
    added = math.sqrt(max(higher.nsr**2 - now.nsr**2, 0.0))
    return higher.alpha * (x / now.alpha + added * noise), higher


@SAMPLERS.register("dpm2", order=2, calls=2)
def dpm2(denoise: Denoise, schedule: Schedule, x: Tensor, ts: Tensor, noise: Noise) -> Tensor:
    """DPM-Solver-2, second order, two network calls a step (Lu et al. 2022a, algorithm 1).

    The z_hat found half-way in log(sigma/alpha) carries the whole step. A step from pure noise has no half-way, and
    one to data none that is finite: these are Euler's, so NFE = 2 steps - 1, or one less from pure noise.
    """
    for _, now, then in steps(schedule, ts):
        x0_hat = denoise(x, now.t)
        if now.alpha == 0 or then.sigma == 0:
            x = euler_step(x, x0_hat, now, then)
            continue
        middle = level(schedule, schedule.time_at(torch.full_like(now.t, math.sqrt(now.nsr * then.nsr))))
        guess = euler_step(x, x0_hat, now, middle)
        z = z_hat(guess, denoise(guess, middle.t), middle)
        x = then.alpha * (x - now.sigma * z) / now.alpha + then.sigma * z
    return x
