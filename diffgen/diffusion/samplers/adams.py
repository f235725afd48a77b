"""Samplers with a polynomial through past z_hat, as in the method of Adams and Bashforth; one network call a step.

In y = x/alpha and n = sigma/alpha the probability-flow ODE is dy = z_hat dn. A polynomial through the last z_hat is
integrated over the step; the samplers differ in the variable that it is a polynomial of. The first steps know fewer
points and have a lower order; a value from pure noise, where n is infinite, is used for one Euler step and forgotten.
The step to data is Euler's: it may be many times longer in these variables than those before, too far to extrapolate.
"""

import math
from collections.abc import Callable

from torch import Tensor

from diffgen.core.errors import require
from diffgen.diffusion.samplers.steps import (
    SAMPLERS,
    Denoise,
    Level,
    Noise,
    euler_step,
    phi,
    polynomial_weights,
    steps,
    z_hat,
)
from diffgen.diffusion.schedules import Schedule

Weights = Callable[[list[Level], Level], list[float]]


@SAMPLERS.register("lms", order=3)
def lms(denoise: Denoise, schedule: Schedule, x: Tensor, ts: Tensor, noise: Noise, *, order: int) -> Tensor:
    """Linear multistep: a polynomial of sigma/alpha (k-diffusion's sample_lms; rho-AB of Zhang & Chen 2023)."""

    def weights(past: list[Level], then: Level) -> list[float]:
        width = then.nsr - past[0].nsr
        return adams_bashforth([(at.nsr - past[0].nsr) / width for at in past])

    return multistep(denoise, schedule, x, ts, order, weights)


@SAMPLERS.register("ipndm", order=2)
def ipndm(denoise: Denoise, schedule: Schedule, x: Tensor, ts: Tensor, noise: Noise, *, order: int) -> Tensor:
    """iPNDM: the weights of Adams and Bashforth for equal steps, on any grid (Liu et al. 2022; Zhang & Chen 2023).

    Formally second order at most where steps are unequal, yet among the best at ten network calls.
    """

    def weights(past: list[Level], then: Level) -> list[float]:
        return adams_bashforth([-float(j) for j in range(len(past))])

    return multistep(denoise, schedule, x, ts, order, weights)


@SAMPLERS.register("deis", order=3)
def deis(denoise: Denoise, schedule: Schedule, x: Tensor, ts: Tensor, noise: Noise, *, order: int) -> Tensor:
    """DEIS with a polynomial of log(sigma/alpha) (Zhang & Chen 2023, eq. 15)."""

    def weights(past: list[Level], then: Level) -> list[float]:
        h = then.lambda_ - past[0].lambda_
        nodes = [(at.lambda_ - past[0].lambda_) / h for at in past]
        return polynomial_weights(nodes, [math.factorial(k) * phi(k + 1, h) / phi(1, h) for k in range(len(past))])

    return multistep(denoise, schedule, x, ts, order, weights)


def adams_bashforth(nodes: list[float]) -> list[float]:
    """Weights of past slopes for a step of length 1 from 0, where the slopes were found at `nodes` <= 0."""
    return polynomial_weights(nodes, [1 / (k + 1) for k in range(len(nodes))])


def multistep(denoise: Denoise, schedule: Schedule, x: Tensor, ts: Tensor, order: int, weights: Weights) -> Tensor:
    """Euler's step, and the part of the polynomial that is not constant; `weights` sum to 1, the newest first."""
    require(1 <= order <= 4, f"sampler.order={order} must be in [1, 4]")
    past: list[tuple[Level, Tensor]] = []  # newest first
    for _, now, then in steps(schedule, ts):
        x0_hat = denoise(x, now.t)
        z = z_hat(x, x0_hat, now)
        x = euler_step(x, x0_hat, now, then)
        if now.alpha == 0 or then.sigma == 0:
            continue
        past = [(now, z), *past][:order]
        shares = weights([at for at, _ in past], then)
        for share, (_, z_past) in zip(shares[1:], past[1:], strict=True):
            x = x + (then.sigma - then.alpha * now.nsr) * share * (z_past - z)
    return x
