"""Gaussian-mixture data, for which everything is known in closed form, in float64.

If x0 ~ sum_k w_k N(mu_k, s_k^2 I), then x_t ~ sum_k w_k N(alpha mu_k, (alpha^2 s_k^2 + sigma^2) I), and E[x0 | x_t] is a
mixture of Wiener filters. So every sampler can be run with a denoiser that has no error, and must find the one solution.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from diffgen.diffusion.samplers import Denoise, Noise
from diffgen.diffusion.schedules import Schedule


@dataclass(frozen=True)
class Mixture:
    """means [K, D], stds [K] and weights [K]; weights sum to 1."""

    means: Tensor
    stds: Tensor
    weights: Tensor

    def denoise(self, schedule: Schedule) -> Denoise:
        """E[x0 | x_t = x], as samplers call it: x [B, D], t a scalar."""
        return lambda x, t: self.posterior_mean(x, schedule.alpha(t.double()), schedule.sigma(t.double()))

    def posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | alpha x0 + sigma z = x] for x [B, D] and scalars alpha, sigma > 0."""
        variance = (alpha * self.stds) ** 2 + sigma**2  # [K]
        residual = x[:, None] - alpha * self.means  # [B, K, D]
        share = self._log_joint(x, alpha, sigma).softmax(1)  # [B, K]
        filtered = self.means + (alpha * self.stds**2 / variance)[:, None] * residual
        return (share[..., None] * filtered).sum(1)

    def log_prob(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """log density of x_t at x, [B]."""
        return self._log_joint(x, alpha, sigma).logsumexp(1)

    def _log_joint(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        variance = (alpha * self.stds) ** 2 + sigma**2
        square = (x[:, None] - alpha * self.means).square().sum(-1)
        dims = x.shape[1]
        return self.weights.log() - square / (2 * variance) - dims / 2 * torch.log(2 * torch.pi * variance)

    def mean(self) -> Tensor:
        """E[x0], [D]."""
        return self.weights @ self.means

    def cov(self) -> Tensor:
        """Cov[x0], [D, D]."""
        centred = self.means - self.mean()
        within = (self.weights @ self.stds**2) * torch.eye(self.means.shape[1], dtype=self.means.dtype)
        return within + (self.weights[:, None] * centred).T @ centred

    def solve(self, schedule: Schedule, x: Tensor, ts: Tensor) -> Tensor:
        """What an exact ODE solver returns: the flow from ts[0] to ts[-2] to 12 digits, then x0_hat.

        It is solved as d(x/alpha)/d log(sigma/alpha) = x/alpha - x0_hat (Karras et al. 2022, eq. 1), so sigma/alpha must be
        finite at ts[0].
        """
        alphas, sigmas = schedule.alpha(ts[[0, -2]]), schedule.sigma(ts[[0, -2]])
        start, end = (sigmas / alphas).log().tolist()

        def slope(log_nsr: float, y: np.ndarray) -> np.ndarray:
            t = schedule.time_at(torch.tensor(log_nsr, dtype=torch.float64).exp())
            y = torch.as_tensor(y).reshape(x.shape)
            alpha, sigma = schedule.alpha(t), schedule.sigma(t)
            return (y - self.posterior_mean(alpha * y, alpha, sigma)).reshape(-1).numpy()

        y = (x / alphas[0]).reshape(-1).numpy()
        end_y = solve_ivp(slope, (start, end), y, "DOP853", rtol=1e-12, atol=1e-12).y[:, -1]
        return self.posterior_mean(alphas[1] * torch.as_tensor(end_y).reshape(x.shape), alphas[1], sigmas[1])


def mixture() -> Mixture:
    """Three unequal blobs in the plane, within [-1, 1] as images are."""
    means = torch.tensor([[-0.6, 0.3], [0.5, 0.6], [0.2, -0.7]], dtype=torch.float64)
    stds = torch.tensor([0.25, 0.15, 0.3], dtype=torch.float64)
    return Mixture(means, stds, torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64))


def start(schedule: Schedule, ts: Tensor, n: int, seed: int = 0) -> Tensor:
    """Starting noise sigma(ts[0]) z, float64 [n, 2]."""
    z = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return schedule.sigma(ts[0]) * z


def noises(like: Tensor, seed: int = 1) -> Noise:
    """noise(i): fresh standard normal noise for step i, the same each time it is asked for."""

    def noise(step: int) -> Tensor:
        rng = torch.Generator().manual_seed(1000 * seed + step)
        return torch.randn(like.shape, dtype=like.dtype, generator=rng)

    return noise
