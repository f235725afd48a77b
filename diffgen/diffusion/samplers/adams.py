"""Samplers with a polynomial through past z_hat, as in the method of Adams and Bashforth; one network call a step.

In y = x/alpha and n = sigma/alpha the probability-flow ODE is dy = z_hat dn. A polynomial through the last z_hat is
integrated over the step; the samplers differ in the variable that it is a polynomial of. The first steps know fewer
points and have a lower order; a value from pure noise, where n is infinite, is used for one Euler step and forgotten.
The step to data is Euler's: it may be many times longer in these variables than those before, too far to extrapolate.
"""

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from diffgen.core.errors import require
from diffgen.diffusion.samplers.steps import (
    SAMPLERS,
    Denoise,
    Level,
    Noise,
    combined,
    euler_step,
    phi,
    polynomial_weights,
    steps,
    z_hat,
)
from diffgen.diffusion.schedules import Schedule

Weights = Callable[[list[Level], Level], list[float]]

Row = Callable[[int, Tensor, list[Tensor]], Sequence[float]]
"""(step, the state if no z_hat counted, what each past z_hat adds to it, newest first) -> their weights."""


@SAMPLERS.register("lms", order=3)
def lms(denoise: Denoise, schedule: Schedule, x: Tensor, ts: Tensor, noise: Noise, *, order: int) -> Tensor:
    """Linear multistep: a polynomial of sigma/alpha (k-diffusion's sample_lms; rho-AB of Zhang & Chen 2023)."""

    def weights(past: list[Level], then: Level) -> list[float]:
        width = then.nsr - past[0].nsr
        return adams_bashforth([(at.nsr - past[0].nsr) / width for at in past])

    return multistep(denoise, schedule, x, ts, order, weights)


@SAMPLERS.register("ipndm", order=2)
def ipndm(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    ts: Tensor,
    noise: Noise,
    *,
    order: int,
    weights: tuple[tuple[float, ...], ...] | None,
) -> Tensor:
    """iPNDM: the weights of Adams and Bashforth for equal steps, on any grid (Liu et al. 2022; Zhang & Chen 2023).

    Formally second order at most where steps are unequal, yet among the best at ten network calls. `weights` stand
    instead of these, whatever the order: a row for each step, of all z_hat so far, the newest first, fitted to one
    model on one grid.
    """
    if weights is not None:
        rows, count = weights, len(ts) - 1
        told = f"sampler.weights are for {len(rows)} steps from noise to data, and here are {count}"
        require(count == len(rows), told)
        told = "sampler.weights must be a row for each step: one weight, then two, and so on, of all z_hat so far"
        require([len(row) for row in rows] == list(range(1, len(rows) + 1)), told)
        return weighted(denoise, schedule, x, ts, lambda i, *state: rows[i])

    def equal(past: list[Level], then: Level) -> list[float]:
        return adams_bashforth([-float(j) for j in range(len(past))])

    return multistep(denoise, schedule, x, ts, order, equal)


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


def weighted(denoise: Denoise, schedule: Schedule, x: Tensor, ts: Tensor, row: Row) -> Tensor:
    """Steps y_s = y_t + (n_s - n_t) sum_j w_j z_hat_j with weights of their own, which need not sum to 1.

    They make good what a step misses, that to data, too, as the general multistep methods of bespoke solvers do (Shaul
    et al. 2024, "Bespoke non-stationary solvers", arXiv 2403.01329). A step from pure noise is Euler's.
    """
    past: list[Tensor] = []  # newest first
    for i, now, then in steps(schedule, ts):
        x0_hat = denoise(x, now.t)
        past = [z_hat(x, x0_hat, now), *past]
        if now.alpha == 0:
            x = euler_step(x, x0_hat, now, then)
            continue
        kept, width = x * (then.alpha / now.alpha), then.sigma - then.alpha * now.nsr
        parts = [width * z for z in past]
        x = combined((1.0, kept), *zip(row(i, kept, parts), parts, strict=True))
    return x
