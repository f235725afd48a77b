"""Likelihood along the probability-flow ODE against a density that is known."""

import pytest
import torch
from cases import SCHEDULE_NAMES, schedule
from gmm import mixture

from diffgen.diffusion.likelihood import log_likelihood

DATA = mixture()


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
def test_likelihood_of_a_mixture_is_the_exact_one(name):
    """Up to the little noise at t_min, with which data enter, and to what x at t_max still knows of the data."""
    s = schedule(name)
    generator = torch.Generator().manual_seed(0)
    x0 = DATA.mean() + 0.6 * torch.randn(12, len(DATA.mean()), generator=generator, dtype=torch.float64)
    t = torch.tensor(s.t_min, dtype=torch.float64)
    alpha, sigma = s.alpha(t), s.sigma(t)
    exact = DATA.log_prob(alpha * x0, alpha, sigma) + x0.shape[1] * alpha.log()
    measured = log_likelihood(DATA.denoise(s), s, x0, rtol=1e-8, atol=1e-8)
    end = torch.tensor(s.t_max, dtype=torch.float64)
    known = float(s.alpha(end) / s.sigma(end))  # 0 where the path ends in noise; means and |z| are of size 1
    torch.testing.assert_close(measured, exact, rtol=0, atol=1e-4 + known)


def test_a_gaussian_in_closed_form():
    """N(0, 0.5^2) in three dimensions on the straight path, where x at t = 1 is pure noise."""
    s = schedule("rectified_flow")

    def denoise(x, t):
        alpha, sigma = s.alpha(t), s.sigma(t)
        return alpha * 0.25 / (alpha**2 * 0.25 + sigma**2) * x

    x0 = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3, 1)
    normal = torch.distributions.Normal(0.0, 0.5)
    expected = normal.log_prob(x0).sum((1, 2))
    torch.testing.assert_close(log_likelihood(denoise, s, x0, rtol=1e-9, atol=1e-9), expected, rtol=0, atol=1e-4)
