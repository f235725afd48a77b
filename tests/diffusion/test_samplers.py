"""Samplers with an exact denoiser: order of convergence, the one solution, the right distribution, and their
papers."""

import math
from functools import cache
from itertools import pairwise

import pytest
import torch
from cases import SCHEDULE_NAMES, config, finite, grid, sampler, schedule
from gmm import mixture, noises, start
from scipy.integrate import quad
from scipy.stats import kstest

from diffgen.core.errors import UsageError
from diffgen.core.registry import parameters
from diffgen.diffusion.samplers import SAMPLERS, adams, encode, time_grid
from diffgen.diffusion.samplers.steps import phi
from diffgen.diffusion.transitions import posterior

F64 = torch.float64
DATA = mixture()


def run(row, s, ts, x=None, n=32, noise=None):
    x = start(s, ts, n) if x is None else x
    return row(DATA.denoise(s), s, x, ts, noise or noises(x))


# --- ODE samplers: their order, and what they converge to ---------------------------------------------------

ORDERS = [
    ("euler", {}, 1),
    ("ddim", {"eta": 0.0}, 1),
    ("heun", {}, 2),
    ("dpm2", {}, 2),
    ("lms", {"order": 2}, 2),
    ("lms", {"order": 3}, 3),
    ("ipndm", {"order": 2}, 2),
    ("ipndm", {"order": 4}, 2),  # its weights are those of equal steps, and these are not
    ("deis", {"order": 2}, 2),
    ("deis", {"order": 3}, 3),
    ("dpmpp_2m", {}, 2),
    ("dpmpp_2m_sde", {"eta": 0.0}, 2),
    ("dpmpp_3m_sde", {"eta": 0.0}, 3),
    ("unipc", {"order": 1, "variant": "bh1"}, 2),
    ("unipc", {"order": 1, "variant": "bh2"}, 2),
    ("unipc", {"order": 2, "variant": "bh1"}, 3),
    ("unipc", {"order": 2, "variant": "bh2"}, 3),
    ("unipc", {"order": 3, "variant": "bh2"}, 3),  # 4 by its theory, but for its low-order start
]
"""Order of convergence: the error is proportional to steps^-order."""


@cache
def solution(schedule_name):
    """The exact answer for the starting noise of 32 points."""
    s = finite(schedule_name)
    ts = grid(s, 2, sigma_max=1e3)
    return DATA.solve(s, start(s, ts, 32), ts)


@pytest.mark.parametrize("schedule_name", SCHEDULE_NAMES)
@pytest.mark.parametrize(("name", "options", "order"), ORDERS)
def test_the_error_falls_with_the_order_of_the_method(name, options, order, schedule_name):
    s, errors = finite(schedule_name), []
    for steps in (40, 80):
        ts = grid(s, steps + 1, sigma_max=1e3)  # the part above t_min in exactly 40 and 80 equal steps of log SNR
        errors.append(float((run(sampler(name, **options), s, ts) - solution(schedule_name)).norm()))
    measured = math.log2(errors[0] / errors[1])
    assert order - 0.45 < measured < order + 0.5, f"{measured:.2f}, errors {errors}"


@pytest.mark.parametrize("schedule_name", ["ve", "rectified_flow"])
@pytest.mark.parametrize("name", sorted(name for name, facts in SAMPLERS.facts.items() if facts.order))
def test_the_order_that_a_sampler_declares_is_its_own(name, schedule_name):
    """With the settings of its YAML, and without noise."""
    still = {"eta": 0.0} if "eta" in parameters(SAMPLERS[name]) else {}
    s, errors = finite(schedule_name), []
    for steps in (40, 80):
        ts = grid(s, steps + 1, sigma_max=1e3)
        errors.append(float((run(sampler(name, **still), s, ts) - solution(schedule_name)).norm()))
    assert SAMPLERS.facts[name].order == round(math.log2(errors[0] / errors[1])), errors


@pytest.mark.parametrize("name", ["lms", "deis", "unipc"])
def test_a_higher_order_has_a_smaller_error(name):
    s = schedule("ve")
    ts = grid(s, 41)
    orders = (1, 2, 3) if name == "unipc" else (1, 2, 3, 4)
    errors = [float((run(sampler(name, order=order), s, ts) - solution("ve")).norm()) for order in orders]
    assert all(high < 0.65 * low for low, high in pairwise(errors)), errors


@pytest.mark.parametrize("schedule_name", SCHEDULE_NAMES)
def test_all_samplers_find_the_same_solution_from_pure_noise(schedule_name):
    """Here alpha may be 0 at t_max, and the first steps must do without x/alpha."""
    s = schedule(schedule_name)
    ts = grid(s, 121, sigma_max=1e3)
    wanted = run(sampler("ode", rtol=1e-9, atol=1e-9), s, ts[[0, -2, -1]])
    for name, options, order in ORDERS:
        error = (run(sampler(name, **options), s, ts) - wanted).square().mean().sqrt()
        assert error < (2e-2 if order == 1 else 2e-3), (name, options)


def test_zero_terminal_snr_is_sampled_by_all():
    s = schedule("ddpm_linear", zero_terminal_snr=True)
    ts = grid(s, 121, sigma_max=1e3)
    wanted = run(sampler("ode", rtol=1e-9, atol=1e-9), s, ts[[0, -2, -1]])
    for name, options, order in ORDERS:
        error = (run(sampler(name, **options), s, ts) - wanted).square().mean().sqrt()
        assert error < (2e-2 if order == 1 else 2e-3), (name, options)


@pytest.mark.parametrize("schedule_name", SCHEDULE_NAMES)
def test_ode_is_as_exact_as_its_tolerance(schedule_name):
    s = finite(schedule_name)
    ts = grid(s, 2, sigma_max=1e3)
    for rtol, bound in ((1e-4, 3e-3), (1e-9, 1e-7)):
        error = (run(sampler("ode", rtol=rtol, atol=rtol), s, ts) - solution(schedule_name)).abs().max()
        assert error < bound


@pytest.mark.parametrize("schedule_name", SCHEDULE_NAMES)
def test_encoding_is_the_inverse_and_makes_noise_of_data(schedule_name):
    s = schedule(schedule_name)
    rng = torch.Generator().manual_seed(0)
    blob = torch.multinomial(DATA.weights, 400, replacement=True, generator=rng)
    x0 = DATA.means[blob] + DATA.stds[blob, None] * torch.randn(400, 2, dtype=F64, generator=rng)
    x0 = s.alpha(torch.tensor(s.t_min, dtype=F64)) * x0
    z = encode(DATA.denoise(s), s, x0, t_end=s.t_max, rtol=1e-8, atol=1e-8)
    again = run(sampler("ode", rtol=1e-8, atol=1e-8), s, grid(s, 2), z)
    # the last step goes on to E[x0 | x_t_min], closer than the noise that is left
    assert (again - x0).abs().max() < 3 * float(s.sigma(torch.tensor(s.t_min, dtype=F64))) + 1e-5
    sigma = float(s.sigma(torch.tensor(s.t_max, dtype=F64)))
    for column in z.T / sigma:
        assert kstest(column.numpy(), "norm").pvalue > 0.01


def test_encoding_enters_the_path_at_t_min():
    """Far from data, at t_min = 0.4, where alpha x0 is not x0."""
    s = schedule("rectified_flow", t_min=0.4, t_max=0.9)
    x0 = torch.tensor([[0.5, -0.2]], dtype=F64)
    z = encode(DATA.denoise(s), s, x0, t_end=s.t_max, rtol=1e-9, atol=1e-9)
    at_t_min = run(sampler("ode", rtol=1e-9, atol=1e-9), s, grid(s, 2)[:2], z)
    assert torch.allclose(at_t_min, 0.6 * x0, atol=1e-7)


# --- identities ---------------------------------------------------------------------------------------------


def same(schedule_name, one, other, **tolerance):
    s = schedule(schedule_name)
    ts = grid(s, 12, "auto")
    assert torch.allclose(run(one, s, ts), run(other, s, ts), **{"rtol": 1e-10, "atol": 1e-12} | tolerance)


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
def test_one_step_under_several_names(name):
    same(name, sampler("euler"), sampler("ddim", eta=0.0))
    same(name, sampler("lms", order=1), sampler("euler"))
    same(name, sampler("ipndm", order=1), sampler("euler"))
    same(name, sampler("deis", order=1), sampler("euler"))
    same(name, sampler("euler_ancestral", eta=0.7), sampler("ddim", eta=0.7))
    same(name, sampler("euler_ancestral", eta=1.0), sampler("ancestral", variance="small"), rtol=1e-7)
    same(name, sampler("dpmpp_2m_sde", eta=0.0), sampler("dpmpp_2m"))


def quadrature(nodes, end, density):
    """Integral of each Lagrange polynomial through `nodes` from nodes[0] to `end`, over that of 1, by brute
    force."""
    whole = quad(density, nodes[0], end)[0]

    def share(j):
        def basis(u):
            return math.prod((u - n) / (nodes[j] - n) for k, n in enumerate(nodes) if k != j)

        return quad(lambda u: basis(u) * density(u), nodes[0], end)[0] / whole

    return [share(j) for j in range(len(nodes))]


NSRS = [2.0, 3.0, 4.7, 9.0]  # of the present node and those before it
PAST = [adams.Level(torch.tensor(nsr), 1.0, nsr) for nsr in NSRS]


def weights_of(name, order, monkeypatch):
    """The weights that a row hands to the multistep loop."""
    got = []
    monkeypatch.setattr(adams, "multistep", lambda *args: got.append(args[-1]))
    given = {"weights": None} if name == "ipndm" else {}
    SAMPLERS[name](None, None, None, None, None, order=order, **given)
    return got[0](PAST[:order], adams.Level(torch.tensor(1.2), 1.0, 1.2))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_adams_weights_integrate_the_interpolating_polynomial(order, monkeypatch):
    linear = quadrature(NSRS[:order], 1.2, lambda n: 1.0)
    assert weights_of("lms", order, monkeypatch) == pytest.approx(linear, rel=1e-9)
    logs = [math.log(n) for n in NSRS[:order]]
    logarithmic = quadrature(logs, math.log(1.2), math.exp)
    assert weights_of("deis", order, monkeypatch) == pytest.approx(logarithmic, rel=1e-7)
    table = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
    assert weights_of("ipndm", order, monkeypatch) == pytest.approx(table[order - 1], rel=1e-9)


@pytest.mark.parametrize("k", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("z", [-30.0, -1.01, -0.99, -1e-3, 0.0, 1e-6, 0.99, 1.01, 8.0])
def test_phi_is_its_integral(k, z):
    wanted = math.exp(z) if k == 0 else quad(lambda s: s ** (k - 1) * math.exp((1 - s) * z), 0, 1, epsabs=1e-13)[0]
    assert phi(k, z) * math.factorial(max(k - 1, 0)) == pytest.approx(wanted, rel=1e-9)


def test_ddim_without_noise_is_the_euler_step_of_rectified_flow():
    s = schedule("rectified_flow")
    ts = grid(s, 10, "uniform")
    x = euler = start(s, ts, 8)
    for t, t_next in pairwise(ts):
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
    for i, (t, t_next) in enumerate(pairwise(ts)):
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
    assert torch.allclose(run(sampler("ancestral", variance="large"), s, ts, x, noise=noise), by_hand, rtol=1e-8)


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


# --- stochastic samplers ------------------------------------------------------------------------------------

STOCHASTIC = [
    ("ancestral", {"variance": "small"}),
    ("ddim", {"eta": 0.6}),
    ("heun", {"s_churn": 40.0}),
    ("dpmpp_2m_sde", {"eta": 1.0}),
    ("dpmpp_2m_sde", {"eta": 0.4}),
    ("dpmpp_3m_sde", {"eta": 1.0}),
]


@pytest.mark.parametrize(
    "schedule_name", ["rectified_flow", *(pytest.param(s, marks=pytest.mark.slow) for s in ("vp_linear", "ve"))]
)
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


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("lms", {"order": 5}, "order"),
        ("deis", {"order": 0}, "order"),
        ("unipc", {"order": 4}, "order"),
        ("dpmpp_2m_sde", {"eta": -1.0}, "eta"),
        ("ode", {"rtol": 0.0}, "rtol"),
        ("ode", {"atol": 0.0}, "atol"),
    ],
)
def test_samplers_refuse_numbers_out_of_range(name, options, word):
    with pytest.raises(UsageError, match=word):
        run(sampler(name, **options), schedule("ve"), grid(schedule("ve"), 2))


# --- consistency --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule_name", SCHEDULE_NAMES)
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_consistency_draws_from_the_data_where_the_map_is_exact(schedule_name, steps):
    """Gaussian data: the ODE takes x_t to x0 = mean + s (x_t - alpha mean) / sqrt(alpha^2 s^2 + sigma^2)."""
    s, std, mean = schedule(schedule_name), 0.6, 1.5
    ts = grid(s, steps, "inner")

    def end_of_ode(x, t):
        alpha, sigma = s.alpha(t), s.sigma(t)
        return mean + std * (x - alpha * mean) / torch.sqrt(alpha**2 * std**2 + sigma**2)

    x = start(s, ts, 4000)
    drawn = sampler("consistency")(end_of_ode, s, x, ts, noises(x, seed=2))
    slack = 0.06 if float(s.alpha(ts[0])) > 1e-12 else 0.0  # of the signal that noise at t_max still lets through
    for column in drawn.T:
        assert abs(float(column.mean()) - mean) < 0.05 + slack and abs(float(column.std()) - std) < 0.03 + slack
    if steps > 1 or not slack:
        for column in drawn.T:
            assert kstest(((column - mean) / std).numpy(), "norm").pvalue > (0.01 if not slack else 1e-4)


def test_consistency_makes_one_point_of_one_point_and_draws_no_noise_at_the_end():
    s, drawn = schedule("ve"), []
    ts = grid(s, 3, "inner")
    x = start(s, ts, 5)

    def noise(step):
        drawn.append(step)
        return torch.randn(x.shape, dtype=F64)

    seen = []

    def point(x, t):
        seen.append((float(t), x))
        return torch.full_like(x, 0.25)

    assert torch.equal(sampler("consistency")(point, s, x, ts, noise), torch.full_like(x, 0.25))
    assert drawn == [0, 1] and [t for t, _ in seen] == ts[:-1].tolist()


@pytest.mark.parametrize("schedule_name", SCHEDULE_NAMES)
def test_inner_nodes_are_those_of_a_step_more_without_the_last(schedule_name):
    s = schedule(schedule_name)
    for steps in (1, 2, 5):
        more, inner = grid(s, steps + 1, "karras"), grid(s, steps, "inner")
        assert len(inner) == steps + 1 and inner[0] == s.t_max and inner[-1] == 0
        torch.testing.assert_close(inner[:-1], more[:-2])
        assert inner[-2] > s.t_min


GRID_KEYS = ("steps", "spacing", "rho", "sigma_max", "sigmas", "skip_to")


def test_two_steps_of_its_yaml_stop_near_the_published_level():
    """0.821 for CIFAR-10 (Geng et al. 2024)."""
    own = config("sampler", "consistency")
    ts = time_grid(schedule("ve"), **{key: own[key] for key in GRID_KEYS})
    assert ts.tolist() == pytest.approx([80.0, 0.8007, 0.0], abs=1e-3)
