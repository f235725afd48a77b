"""Samplers with a polynomial in lambda = log(alpha/sigma) through past x0_hat; one network call a step.

With h = lambda_s - lambda_t the probability-flow ODE, and its relatives with noise (eta > 0), have the exact solution

    x_s = (sigma_s/sigma_t) e^(-eta h) x_t + alpha_s (1 + eta) int e^(-(1 + eta)(lambda_s - lambda)) x0_hat d(lambda)
        + sigma_s sqrt(1 - e^(-2 eta h)) noise

(Lu et al. 2022b, eq. 9 and 14). The samplers differ in the weights on past x0_hat. The first step, and the step to
data, take x0_hat as constant; so do the two steps next to pure noise, where lambda is infinite.
"""

import math
from collections.abc import Callable
from typing import Literal

from torch import Tensor

from diffgen.core.errors import require
from diffgen.diffusion.samplers.steps import SAMPLERS, Denoise, Level, Noise, combined, phi, polynomial_weights, steps
from diffgen.diffusion.schedules import Schedule

Past = list[tuple[Level, Tensor]]
"""Levels and their x0_hat, newest first."""

Rule = Callable[[list[float], float], list[float]]
"""(nodes, (1 + eta) h) -> weights of the slopes (x0_hat at a node - x0_hat at 0)/node, in a step from 0 to 1."""


@SAMPLERS.register("dpmpp_2m", order=2)
def dpmpp_2m(denoise: Denoise, schedule: Schedule, x: Tensor, ts: Tensor, noise: Noise) -> Tensor:
    """DPM-Solver++(2M), second order (Lu et al. 2022b, algorithm 2)."""
    return multistep(denoise, schedule, x, ts, noise, order=2, rule=halfway, eta=0.0)


@SAMPLERS.register("dpmpp_2m_sde", order=2, noise=True)
def dpmpp_2m_sde(denoise: Denoise, schedule: Schedule, x: Tensor, ts: Tensor, noise: Noise, *, eta: float) -> Tensor:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022b, app. B); eta = 1 is the reverse SDE, eta = 0 is dpmpp_2m."""
    return multistep(denoise, schedule, x, ts, noise, order=2, rule=halfway, eta=eta)


@SAMPLERS.register("dpmpp_3m_sde", order=3, noise=True)
def dpmpp_3m_sde(denoise: Denoise, schedule: Schedule, x: Tensor, ts: Tensor, noise: Noise, *, eta: float) -> Tensor:
    """The same with a parabola through three points, third order at eta = 0 (the name is k-diffusion's).

    k-diffusion and the code of DPM-Solver++ give the curvature half of its weight, which is second order.
    """
    return multistep(denoise, schedule, x, ts, noise, order=3, rule=exact, eta=eta)


@SAMPLERS.register("unipc", order=3)
def unipc(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    ts: Tensor,
    noise: Noise,
    *,
    order: int,
    variant: Literal["bh1", "bh2"],
) -> Tensor:
    """UniPC (Zhao et al. 2023, algorithms 1 and 2), order + 1 with no further network call.

    x0_hat at the end of a step is used twice: to repeat that step with one point more (the corrector), then for the
    next. The last steps have a lower order. `variant` is the paper's B(h): with a single slope the weight is B(h)/2.
    """
    require(1 <= order <= 3, f"sampler.order={order} must be in [1, 3]")
    past: Past = []
    before = x  # where the latest step started

    def rule(nodes: list[float], h: float) -> list[float]:
        if len(nodes) > 1:
            return exact(nodes, h)
        return [h / 2] if variant == "bh1" else halfway(nodes, h)

    for i, now, then in steps(schedule, ts):
        x0_hat = denoise(x, now.t)
        if past:
            x = exponential_step(before, past, now, rule, known=[(now, x0_hat)])
        past, before = remember(past, now, x0_hat, min(order, len(ts) - 1 - i)), x
        x = exponential_step(x, past, then, rule)
    return x


def multistep(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    ts: Tensor,
    noise: Noise,
    *,
    order: int,
    rule: Rule,
    eta: float,
) -> Tensor:
    """Steps with the last `order` values of x0_hat, and fresh noise where eta > 0."""
    require(0 <= eta <= 10, f"sampler.eta={eta} must be in [0, 10]")
    past: Past = []
    for i, now, then in steps(schedule, ts):
        past = remember(past, now, denoise(x, now.t), order)
        x = exponential_step(x, past, then, rule, eta=eta)
        if eta > 0 and then.sigma > 0:
            x = x + then.sigma * math.sqrt(-math.expm1(-2 * eta * (then.lambda_ - now.lambda_))) * noise(i)
    return x


def remember(past: Past, now: Level, x0_hat: Tensor, order: int) -> Past:
    """Put a value in front; forget the oldest, and what came from pure noise."""
    return [(now, x0_hat), *(item for item in past if item[0].alpha > 0)][:order]


def exponential_step(
    x: Tensor, past: Past, then: Level, rule: Rule, *, eta: float = 0.0, known: Past | None = None
) -> Tensor:
    """From past[0] to `then`, without the fresh noise.

    Args:
        x: Where the step starts.
        past: Known x0_hat, newest first.
        then: Where the step ends.
        rule: Weights of the slopes.
        eta: Strength of the noise.
        known: Further points, such as the end of the step.
    """
    now, x0_hat = past[0]
    h = then.lambda_ - now.lambda_
    total = (1 + eta) * h
    shrink = math.exp(-eta * h) if eta > 0 else 1.0  # h may be infinite
    keep, own = then.sigma / now.sigma * shrink, -then.alpha * math.expm1(-total)
    others = [*past[1:], *(known or [])]
    if h == math.inf or not others:
        return combined((keep, x), (own, x0_hat))
    nodes = [(at.lambda_ - now.lambda_) / h for at, _ in others]
    slopes = [then.alpha * weight / node for weight, node in zip(rule(nodes, total), nodes, strict=True)]
    values = zip(slopes, (value for _, value in others), strict=True)  # each slope is times (value - x0_hat)
    return combined((keep, x), (own - sum(slopes), x0_hat), *values)


def exact(nodes: list[float], h: float) -> list[float]:
    """Integrate the polynomial through all points exactly against the exponential."""
    return polynomial_weights(nodes, [h * math.factorial(k) * phi(k + 1, -h) for k in range(1, len(nodes) + 1)])


def halfway(nodes: list[float], h: float) -> list[float]:
    """Take the value half-way for the whole step: one slope, times (1 - e^-h)/2."""
    return [-math.expm1(-h) / 2]
