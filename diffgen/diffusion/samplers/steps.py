"""What samplers share: the table, levels of noise, and the steps that have a name of their own.

A sampler is a pure function (denoise, schedule, x, ts, noise, *, options) -> x. `denoise(x, t) -> x0_hat` has label,
guidance and clipping closed over; `ts` falls from t_max to 0 (`grid.time_grid`);
`noise(i)` is fresh N(0, I) like x for step i. With z_hat = (x - alpha x0_hat)/sigma the probability-flow ODE is
dx = x0_hat d(alpha) + z_hat d(sigma), for every schedule and with no derivative of either. So a step that holds x0_hat
and z_hat is x_s = alpha_s x0_hat + sigma_s z_hat: DDIM, EDM's Euler and rectified flow's Euler are this one line.
The other samplers differ in what they know of x0_hat or z_hat between the nodes:

    steps        what they share: levels of noise, the line above, the posterior of DDPM, weights of a polynomial
    single_step  nothing: ddim, euler; the posterior: ancestral, euler_ancestral; a second evaluation: heun, dpm2
    adams        a polynomial through past z_hat: lms, deis, ipndm
    exponential  a polynomial through past x0_hat: dpmpp_2m, dpmpp_2m_sde, dpmpp_3m_sde, unipc
    adaptive     steps of the size that a tolerance asks for: ode, and the way back from data to noise
    grid         where the steps end

Options are keyword-only and equal the YAML keys, beside those of the time grid.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from diffgen.core.registry import Table
from diffgen.diffusion.schedules import Schedule


class Facts(NamedTuple):
    """What a sampler declares of itself; tests measure it.

    Attributes:
        order: Of convergence to the solution of the ODE, with the settings of its YAML and eta = 0 if it has one; None
            where it chooses its own steps, always adds noise, or converges to something else.
        calls: Network calls a step but the last, which takes one; None if it chooses its own steps.
        noise: Whether it adds noise with the settings of its YAML.
    """

    order: int | None = 1
    calls: int | None = 1
    noise: bool = False


SAMPLERS = Table("sampler", Facts)

Denoise = Callable[..., Tensor]
"""(x [B, ...], t []) -> x0_hat; of a network that is told how far a step goes a third may be where it ends, []."""

Noise = Callable[[int], Tensor]

PURE_NOISE = 1e8
"""sigma/alpha from which a level holds no signal: x/alpha would keep no digits of it."""


class Level(NamedTuple):
    """A point of the grid: its time (a scalar tensor) and its alpha and sigma (Python floats, from float64)."""

    t: Tensor
    alpha: float
    sigma: float

    @property
    def nsr(self) -> float:
        """sigma/alpha; infinite in pure noise."""
        return self.sigma / self.alpha if self.alpha else math.inf

    @property
    def lambda_(self) -> float:
        """log(alpha/sigma), half the log SNR; -inf in pure noise, inf at data."""
        return -math.log(self.nsr) if self.nsr else math.inf


def level(schedule: Schedule, t: Tensor) -> Level:
    """alpha and sigma at a scalar time."""
    return _level(t, float(schedule.alpha(t)), float(schedule.sigma(t)))


def _level(t: Tensor, alpha: float, sigma: float) -> Level:
    return Level(t, alpha if sigma < PURE_NOISE * alpha else 0.0, sigma)


def steps(schedule: Schedule, ts: Tensor) -> Iterator[tuple[int, Level, Level]]:
    """Each step of the grid: its number, where it starts and where it ends."""
    alphas, sigmas = schedule.alpha(ts.double()).tolist(), schedule.sigma(ts.double()).tolist()
    levels = [_level(t, alpha, sigma) for t, alpha, sigma in zip(ts.double(), alphas, sigmas, strict=True)]
    return ((i, now, then) for i, (now, then) in enumerate(pairwise(levels)))


def z_hat(x: Tensor, x0_hat: Tensor, at: Level) -> Tensor:
    """The noise that x and x0_hat imply."""
    return (x - at.alpha * x0_hat) / at.sigma


def euler_step(x: Tensor, x0_hat: Tensor, now: Level, then: Level) -> Tensor:
    """alpha_s x0_hat + sigma_s z_hat, first order."""
    return mixed(x, x0_hat, now, then.alpha, then.sigma)


def mixed(x: Tensor, x0_hat: Tensor, at: Level, alpha: float, sigma: float) -> Tensor:
    """alpha x0_hat + sigma z_hat in two operations on images, with z_hat = (x - alpha_t x0_hat) / sigma_t."""
    keep = sigma / at.sigma
    return combined((keep, x), (alpha - keep * at.alpha, x0_hat))


def combined(first: tuple[float, Tensor], *others: tuple[float, Tensor]) -> Tensor:
    """The sum of weight times images, one operation on images for each."""
    weight, images = first
    total = weight * images
    for weight, images in others:
        total.add_(images, alpha=weight)
    return total


def posterior_step(
    x: Tensor,
    x0_hat: Tensor,
    now: Level,
    then: Level,
    *,
    eta: float,
    scale: float,
    noise: Callable[[], Tensor],
) -> Tensor:
    """alpha_s x0_hat + sqrt(sigma_s^2 - eta^2 v) z_hat + scale sqrt(v) noise, with the posterior variance v.

    v = (sigma_s/sigma_t)^2 (sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2); it is finite at alpha_t = 0 and 0 at data.
    """
    forward = now.sigma**2 - (now.alpha / then.alpha * then.sigma) ** 2
    v = max((then.sigma / now.sigma) ** 2 * forward, 0.0)
    x = mixed(x, x0_hat, now, then.alpha, math.sqrt(max(then.sigma**2 - eta**2 * v, 0.0)))
    return x + scale * math.sqrt(v) * noise() if scale * v > 0 else x


def polynomial_weights(nodes: list[float], moments: list[float]) -> list[float]:
    """The weights w with sum_j w_j nodes_j^k = moments_k for k < len(nodes): exact for polynomials of that degree."""
    powers = torch.vander(torch.tensor(nodes, dtype=torch.float64, device="cpu"), increasing=True).T
    right = torch.tensor(moments, dtype=torch.float64, device="cpu")
    return [float(w) for w in torch.linalg.solve(powers, right)]


def phi(k: int, z: float) -> float:
    """phi_k(z) = (phi_{k-1}(z) - 1/(k-1)!)/z with phi_0 = exp, that is, sum_j z^j/(j + k)!.

    k! phi_{k+1}(z) is the integral of s^k exp((1 - s) z) over [0, 1]: what exponential integrators need of a monomial.
    """
    if abs(z) < 1:  # where the recursion cancels
        return sum(z**j / math.factorial(j + k) for j in range(20))
    return (phi(k - 1, z) - 1 / math.factorial(k - 1)) / z if k else math.exp(z)
