"""Samplers with an exact denoiser: order of convergence, the one solution, the right distribution, and their papers."""

import math

import pytest
import torch
from cases import SCHEDULE_NAMES, config, finite, schedule
from gmm import mixture, noises, start

from diffgen.errors import UsageError
from diffgen.registry import bind
from diffgen.samplers import SAMPLERS, time_grid
from diffgen.schedules import posterior

F64 = torch.float64
DATA = mixture()
GRID = ("steps", "spacing", "rho", "sigma_max", "sigmas", "clip")


def sampler(name, **changes):
    """A row of the table with the options of its YAML file."""
    own = {key: value for key, value in config("sampler", name).items() if key not in GRID}
    return bind(SAMPLERS, {**own, **changes})


def grid(s, steps, spacing="logsnr", sigma_max=80.0):
    return time_grid(s, steps=steps, spacing=spacing, rho=7.0, sigma_max=sigma_max, sigmas=None)


def run(row, s, ts, x=None, n=32, noise=None):
    x = start(s, ts, n) if x is None else x
    return row(DATA.denoise(s), s, x, ts, noise or noises(x))


# --- ODE samplers: their order, and what they converge to -------------------------------------------------------------

ORDERS = {"ddim": (1, {}), "heun": (2, {}), "dpmpp_2m": (2, {})}


@pytest.mark.parametrize("schedule_name", SCHEDULE_NAMES)
@pytest.mark.parametrize("name", ORDERS)
def test_the_error_falls_with_the_order_of_the_method(name, schedule_name):
    s = finite(schedule_name)
    order, options = ORDERS[name]
    errors = []
    for steps in (40, 80):
        ts = grid(s, steps + 1)  # so that the part above t_min is cut in exactly 40 and 80
        errors.append(
            float((run(sampler(name, **options), s, ts) - DATA.solve(s, start(s, ts, 32), ts)).norm())
        )
    measured = math.log2(errors[0] / errors[1])
    assert order - 0.25 < measured < order + 0.6, (
        f"{name} on {schedule_name}: {measured:.2f}, errors {errors}"
    )


# --- identities -------------------------------------------------------------------------------------------------------


def test_ddim_without_noise_is_the_euler_step_of_rectified_flow():
    s = schedule("rectified_flow")
    ts = grid(s, 10, "uniform")
    x = euler = start(s, ts, 8)
    for t, t_next in zip(ts[:-1], ts[1:], strict=True):
        # v = z - x0 = (x - x0) / t on the straight path
        velocity = (euler - DATA.denoise(s)(euler, t)) / t
        euler = euler + (t_next - t) * velocity
    assert torch.allclose(run(sampler("ddim", eta=0.0), s, ts, x), euler, rtol=1e-10)


@pytest.mark.parametrize("schedule_name", SCHEDULE_NAMES)
def test_full_noise_is_the_posterior_of_ddpm(schedule_name):
    s = schedule(schedule_name)
    ts = grid(s, 12, "auto")
    x = by_hand = start(s, ts, 8)
    noise = noises(x)
    for i, (t, t_next) in enumerate(zip(ts[:-1], ts[1:], strict=True)):
        c_x, c_0, variance = posterior(s, t_next, t)
        by_hand = c_x * by_hand + c_0 * DATA.denoise(s)(by_hand, t) + variance.clamp(min=0).sqrt() * noise(i)
    for row in (sampler("ddim", eta=1.0), sampler("ancestral", variance="small")):
        assert torch.allclose(run(row, s, ts, x, noise=noise), by_hand, rtol=1e-8, atol=1e-10)


def test_large_variance_is_beta():
    s = schedule("ddpm_linear", steps=20, beta_end=0.015)
    ts = grid(s, 20, "uniform")
    x = by_hand = start(s, ts, 8)
    noise = noises(x)
    beta = torch.linspace(1e-4, 0.015, 20, dtype=F64) * 50
    for i in range(20):
        c_x, c_0, _ = posterior(s, ts[i + 1], ts[i])
        by_hand = c_x * by_hand + c_0 * DATA.denoise(s)(by_hand, ts[i])
        if i < 19:  # their algorithm 2: z = 0 in the last step
            by_hand = by_hand + beta[19 - i].sqrt() * noise(i)
    assert torch.allclose(
        run(sampler("ancestral", variance="large"), s, ts, x, noise=noise), by_hand, rtol=1e-8
    )


@pytest.mark.parametrize("churn", [0.0, 30.0])
def test_heun_is_algorithm_2_of_edm(churn):
    s, steps, s_min, s_max, s_noise = schedule("ve"), 12, 0.05, 50.0, 1.007
    ts = grid(s, steps, "karras")
    x0 = x = start(s, ts, 8)
    noise = noises(x)

    def D(x, sigma):
        return DATA.posterior_mean(x, torch.ones((), dtype=F64), sigma)

    for i in range(steps):
        t, t_next = ts[i], ts[i + 1]
        gamma = min(churn / steps, math.sqrt(2) - 1) if s_min <= t <= s_max else 0.0
        t_hat = t + gamma * t
        x_hat = x + (t_hat**2 - t**2).sqrt() * s_noise * noise(i)
        d = (x_hat - D(x_hat, t_hat)) / t_hat
        x = x_hat + (t_next - t_hat) * d
        if t_next != 0:
            d_next = (x - D(x, t_next)) / t_next
            x = x_hat + (t_next - t_hat) * (d / 2 + d_next / 2)
    row = sampler("heun", s_churn=churn, s_min=s_min, s_max=s_max, s_noise=s_noise)
    assert torch.allclose(run(row, s, ts, x0, noise=noise), x, rtol=1e-9)


def test_dpmpp_2m_is_algorithm_2_of_its_paper():
    s = schedule("vp_linear")
    ts = grid(s, 10)
    x0 = x = start(s, ts, 8)
    alpha, sigma = s.alpha(ts), s.sigma(ts)
    lam = (alpha / sigma).log()
    h = lam.diff()
    D = [DATA.denoise(s)(x, ts[0])]
    x = sigma[1] / sigma[0] * x - alpha[1] * torch.expm1(-h[0]) * D[0]
    for i in range(2, 10):  # i as in the paper: x_i from x_{i-1} and x_{i-2}
        D.append(DATA.denoise(s)(x, ts[i - 1]))
        r = h[i - 2] / h[i - 1]
        mixed = (1 + 1 / (2 * r)) * D[i - 1] - 1 / (2 * r) * D[i - 2]
        x = sigma[i] / sigma[i - 1] * x - alpha[i] * torch.expm1(-h[i - 1]) * mixed
    x = DATA.denoise(s)(x, ts[9])  # and the step to data, which the paper leaves out
    assert torch.allclose(run(sampler("dpmpp_2m"), s, ts, x0), x, rtol=1e-9)


# --- stochastic samplers ----------------------------------------------------------------------------------------------

STOCHASTIC = [("ancestral", {"variance": "small"}), ("ddim", {"eta": 0.6}), ("heun", {"s_churn": 40.0})]


@pytest.mark.parametrize("schedule_name", ["vp_linear", "ve", "rectified_flow"])
@pytest.mark.parametrize(("name", "options"), STOCHASTIC)
def test_stochastic_samplers_draw_from_the_data(name, options, schedule_name):
    s, n = schedule(schedule_name), 20_000
    x = run(sampler(name, **options), s, grid(s, 150, "karras"), n=n)
    assert_moments(x, n)


def assert_moments(x, n, bias=0.012):
    """Mean and covariance within four Monte Carlo standard errors and the bias of the steps."""
    error = (x.mean(0) - DATA.mean()).abs()
    assert (error < 4 * (DATA.cov().diagonal() / n).sqrt() + bias).all(), error
    centred = x - x.mean(0)
    products = centred[:, :, None] * centred[:, None]
    error = (products.mean(0) - DATA.cov()).abs()
    assert (error < 4 * products.std(0) / math.sqrt(n) + bias).all(), error


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_is_a_share(eta):
    with pytest.raises(UsageError, match="eta"):
        run(sampler("ddim", eta=eta), schedule("ve"), grid(schedule("ve"), 2))
