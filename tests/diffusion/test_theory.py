"""The numbered formulas of docs/theory.md, each against something computed another way."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from cases import SCHEDULE_NAMES, denoising_loss
from rows import row, schedule

from diffgen.core.registry import bind
from diffgen.data.mixture import mixture
from diffgen.diffusion.denoiser import Denoiser
from diffgen.diffusion.guidance import Guidance, guided
from diffgen.diffusion.parameterizations import PARAMETERIZATIONS
from diffgen.diffusion.samplers import SAMPLERS
from diffgen.diffusion.transitions import posterior, snr, transition
from diffgen.diffusion.weightings import WEIGHTINGS
from diffgen.nets import MLP

F64 = torch.float64
CLOCKS = SCHEDULE_NAMES
FLOW = schedule("rectified_flow")
STD, MEAN = 0.7, 0.3  # the one Gaussian with closed forms for everything


def at(*values):
    return [torch.tensor(value, dtype=F64) for value in values]


def times(clock, *shares):
    """Times at the given shares of the clock's range; on a logarithmic scale where it spans decades."""
    low, high = clock.t_min, clock.t_max
    spread = [low * (high / low) ** u if high > 2 else low + (high - low) * u for u in shares]
    return [clock.snap(torch.tensor([t], dtype=F64))[0] for t in spread]


def gauss_mean(x, alpha, sigma):
    """E[x0 | x] for x0 ~ N(MEAN, STD^2), by the textbook rule mean + cov/var (x - mean)."""
    return MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)


def gauss_denoise(clock):
    return lambda x, t: gauss_mean(x, clock.alpha(t), clock.sigma(t))


def noise_of(seed, like):
    return lambda i: torch.randn(like.shape, generator=torch.Generator().manual_seed(1000 * seed + i), dtype=F64)


def no_noise(step):
    raise AssertionError("a deterministic sampler asked for noise")


def sampler(name, **options):
    """A sampler with its YAML's own options, without those of the grid."""
    keys = ("name", "eta", "variance", "s_churn", "s_min", "s_max", "s_noise")
    return bind(SAMPLERS, {k: v for k, v in {**row("sampler", name), **options}.items() if k in keys})


# --- 1, 2: the path and the chain -----------------------------------------------------------------


def test_1_the_tutorials_line_is_the_schedule_rectified_flow():
    t = torch.linspace(0.01, 1, 7, dtype=F64)
    torch.testing.assert_close(FLOW.alpha(t), 1 - t)
    torch.testing.assert_close(FLOW.sigma(t), t)
    torch.testing.assert_close(snr(FLOW, t), ((1 - t) / t) ** 2)


@pytest.mark.parametrize("name", CLOCKS)
def test_3_signal_to_noise_falls(name):
    clock = schedule(name)
    t = torch.stack(times(clock, *torch.linspace(0, 1, 50).tolist())).unique()
    assert (snr(clock, t).diff() < 0).all()


def test_4_transition_of_the_tutorials_path():
    s, t = at(0.2, 0.5)
    gain, variance = transition(FLOW, s, t)
    assert float(gain) == pytest.approx(0.5 / 0.8)
    assert float(variance) == pytest.approx(0.5**2 - (0.5 / 0.8 * 0.2) ** 2)


@pytest.mark.parametrize("name", CLOCKS)
def test_4_5_marginals_and_transitions_compose(name):
    clock = schedule(name)
    r, s, t = times(clock, 0.2, 0.5, 0.8)
    (gain_rs, var_rs), (gain_st, var_st), (gain_rt, var_rt) = (transition(clock, *p) for p in ((r, s), (s, t), (r, t)))
    torch.testing.assert_close(gain_st * clock.alpha(s), clock.alpha(t))
    torch.testing.assert_close(gain_st**2 * clock.sigma(s) ** 2 + var_st, clock.sigma(t) ** 2)
    torch.testing.assert_close(gain_st * gain_rs, gain_rt)
    torch.testing.assert_close(gain_st**2 * var_rs + var_st, var_rt)
    assert var_rs > 0 and var_st > 0


def test_5_the_line_between_neighbours_is_not_the_chain():
    """x <- (1 - h) x + h z leaves exp(-1) of the data at the end, and too little noise."""
    h = 1 / 1000
    kept, noise = (1 - h) ** 1000, h**2 * sum((1 - h) ** (2 * i) for i in range(1000))
    assert kept == pytest.approx(0.3677, abs=1e-4)
    assert noise == pytest.approx(0.000433, abs=1e-6)  # where the true variance is 1


@pytest.mark.parametrize("name", CLOCKS)
def test_6_posterior_is_gaussian_conditioning(name):
    """Condition the joint Gaussian of (x_s, x_t) given x0, with covariances from marginals and gain."""
    clock = schedule(name)
    s, t = times(clock, 0.3, 0.7)
    gain, _ = transition(clock, s, t)
    var_s, var_t, covariance = clock.sigma(s) ** 2, clock.sigma(t) ** 2, gain * clock.sigma(s) ** 2
    x0, x_t = at(0.4, -0.9)
    mean = clock.alpha(s) * x0 + covariance / var_t * (x_t - clock.alpha(t) * x0)
    variance = var_s - covariance**2 / var_t
    c_x, c_0, v = posterior(clock, s, t)
    torch.testing.assert_close(c_x * x_t + c_0 * x0, mean)
    torch.testing.assert_close(v, variance)


def test_6_at_pure_noise_x_t_says_nothing():
    c_x, c_0, v = posterior(FLOW, *at(0.4, 1.0))
    assert (float(c_x), float(c_0), float(v)) == pytest.approx((0.0, 0.6, 0.16))


# --- 3: what the network learns -------------------------------------------------------------------


def monte_carlo(t, n=400_000):
    x0 = MEAN + STD * torch.randn(n, generator=torch.Generator().manual_seed(1), dtype=F64)
    z = torch.randn(n, generator=torch.Generator().manual_seed(2), dtype=F64)
    return x0, (1 - t) * x0 + t * z


def test_7_8_least_squares_finds_the_posterior_mean_and_stops_at_the_conditional_variance():
    t = 0.6
    x0, x = monte_carlo(t)
    design = torch.stack([x, torch.ones_like(x)], 1)
    slope, offset = torch.linalg.lstsq(design, x0[:, None]).solution[:, 0]
    line = gauss_mean(torch.tensor([0.0, 1.0], dtype=F64), 1 - t, t)
    assert float(offset) == pytest.approx(float(line[0]), abs=5e-3)
    assert float(slope) == pytest.approx(float(line[1] - line[0]), abs=5e-3)
    floor = (STD * t) ** 2 / ((1 - t) ** 2 * STD**2 + t**2)
    assert float((slope * x + offset - x0).square().mean()) == pytest.approx(floor, rel=0.01)
    worse = gauss_mean(x, 1 - t, t) + 0.1
    assert float((worse - x0).square().mean()) == pytest.approx(floor + 0.1**2, rel=0.01)  # the two terms of (8)


def test_9_tweedie():
    alpha, sigma = at(0.6, 0.9)
    x = torch.linspace(-2, 2, 9, dtype=F64).requires_grad_()
    law = torch.distributions.Normal(alpha * MEAN, (alpha**2 * STD**2 + sigma**2).sqrt())
    (score,) = torch.autograd.grad(law.log_prob(x).sum(), x)
    torch.testing.assert_close(score, (alpha * gauss_mean(x, alpha, sigma) - x) / sigma**2)


# --- 4: the way back ------------------------------------------------------------------------------


def test_10_reverse_transition_adds_the_uncertainty_of_x0():
    """Exact p(x_s | x_t) of Gaussian data, from the joint law of (x0, x_s, x_t)."""
    s, t = at(0.3, 0.7)
    gain, variance = transition(FLOW, s, t)
    maps = torch.tensor([[1.0, 0, 0], [0.7, 0.3, 0], [0.7 * gain, 0.3 * gain, variance.sqrt()]], dtype=F64)
    covariance = maps @ torch.diag(torch.tensor([STD**2, 1, 1], dtype=F64)) @ maps.T
    mean = maps @ torch.tensor([MEAN, 0, 0], dtype=F64)
    x_t = torch.tensor(0.5, dtype=F64)
    exact_mean = mean[1] + covariance[1, 2] / covariance[2, 2] * (x_t - mean[2])
    exact_variance = covariance[1, 1] - covariance[1, 2] ** 2 / covariance[2, 2]

    c_x, c_0, v = posterior(FLOW, s, t)
    spread = (STD * 0.7) ** 2 / (0.3**2 * STD**2 + 0.7**2)  # Var[x0 | x_t]
    torch.testing.assert_close(c_x * x_t + c_0 * gauss_mean(x_t, 0.3, 0.7), exact_mean)
    torch.testing.assert_close(v + c_0**2 * spread, exact_variance)


def ancestral_variance(steps):
    """Variance of what ancestral sampling makes of Gaussian data; each step is a line plus noise."""
    ts = torch.linspace(1, 0, steps + 1, dtype=F64)
    total = torch.tensor(1.0, dtype=F64)
    for t, s in pairwise(ts):
        c_x, c_0, v = posterior(FLOW, s, t)
        slope = (1 - t) * STD**2 / ((1 - t) ** 2 * STD**2 + t**2)
        total = (c_x + c_0 * slope) ** 2 * total + v
    return float(total)


def test_10_replacing_x0_by_its_mean_costs_variance_of_first_order():
    short = [STD**2 - ancestral_variance(steps) for steps in (50, 100, 200)]
    assert short[0] > 0
    assert short[0] / short[1] == pytest.approx(2, rel=0.15) and short[1] / short[2] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("name", CLOCKS)
def test_11_ancestral_is_the_posterior_with_x0_hat(name):
    clock = schedule(name)
    s, t = times(clock, 0.3, 0.7)
    ts = torch.stack([t, s])
    x = torch.linspace(-1, 1, 5, dtype=F64) * clock.sigma(t)
    noise = noise_of(0, x)
    c_x, c_0, v = posterior(clock, s, t)
    expected = c_x * x + c_0 * gauss_denoise(clock)(x, t) + v.sqrt() * noise(0)
    torch.testing.assert_close(sampler("ddim", eta=1.0)(gauss_denoise(clock), clock, x, ts, noise), expected)
    torch.testing.assert_close(sampler("ancestral")(gauss_denoise(clock), clock, x, ts, noise), expected)


# --- 5: targets and weights -----------------------------------------------------------------------


@pytest.mark.parametrize("target", sorted(PARAMETERIZATIONS))
@pytest.mark.parametrize("name", CLOCKS)
def test_12_one_formula_recovers_x0_from_every_target(name, target):
    clock, sigma_data = schedule(name), 0.5
    (t,) = times(clock, 0.5)
    x0, z = torch.randn(2, 9, dtype=F64)
    alpha, sigma = clock.alpha(t), clock.sigma(t)
    a, b = PARAMETERIZATIONS[target](alpha, sigma, sigma_data)
    x, value = alpha * x0 + sigma * z, a * x0 + b * z
    torch.testing.assert_close((b * x - sigma * value) / (b * alpha - a * sigma), x0)


def test_12_targets_as_their_papers_write_them():
    alpha, sigma, s_d = torch.tensor(1.0, dtype=F64), torch.tensor(1.7, dtype=F64), 0.5
    x0, z = torch.randn(2, 9, dtype=F64)
    a, b = PARAMETERIZATIONS["edm"](alpha, sigma, s_d)
    c_skip, c_out = s_d**2 / (sigma**2 + s_d**2), sigma * s_d / (sigma**2 + s_d**2).sqrt()
    torch.testing.assert_close(a * x0 + b * z, (x0 - c_skip * (x0 + sigma * z)) / c_out)
    for target, expected in {"eps": z, "x0": x0, "v": z - sigma * x0, "flow": z - x0}.items():
        a, b = PARAMETERIZATIONS[target](alpha, sigma, s_d)
        torch.testing.assert_close(a * x0 + b * z, expected)


def test_13_c_out_of_each_target():
    alpha, sigma, s_d = at(0.8, 0.6, 0.5)
    m = (alpha**2 * s_d**2 + sigma**2).sqrt()
    table = {
        "x0": 1.0,
        "eps": -sigma / alpha,
        "v": -sigma,
        "flow": -sigma / (alpha + sigma),
        "edm": sigma * s_d / m,
    }
    for target, expected in table.items():
        a, b = PARAMETERIZATIONS[target](alpha, sigma, 0.5)
        assert float(-sigma / (b * alpha - a * sigma)) == pytest.approx(float(expected)), target


def test_14_velocity_loss_is_the_x0_loss_over_t_squared():
    """The same function x -> x0_hat, dressed as a velocity network and as an x0 network."""
    x0, z = torch.randn(2, 6, 3, 1, 1, dtype=F64)
    t, none = torch.linspace(0.1, 0.9, 6, dtype=F64), torch.full((6,), -1)

    def estimate(x, condition, label):
        return torch.tanh(x)

    def velocity(x, condition, label):
        return (x - torch.tanh(x)) / (condition / 1000).to(x)[:, None, None, None]

    losses = [
        denoising_loss(
            Denoiser(net, FLOW, PARAMETERIZATIONS[target], sigma_data=0.5, scale_input=False),
            WEIGHTINGS["unit"], x0, none, t, z,
        )
        for net, target in ((velocity, "flow"), (estimate, "x0"))
    ]  # fmt: skip
    torch.testing.assert_close(losses[0], losses[1] / t**2, rtol=1e-4, atol=0)  # networks see float32


# --- 6: the ODE -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLOCKS)
def test_15_the_ode_carries_the_marginals(name):
    """Along dx = x0_hat d(alpha) + z_hat d(sigma) mean and std of Gaussian data stay those of x_t."""
    clock = schedule(name)
    s, t = times(clock, 0.45, 0.5)
    h = (t - s) / 1000
    t, s = t, t - h
    mean, std = clock.alpha(t) * MEAN, (clock.alpha(t) ** 2 * STD**2 + clock.sigma(t) ** 2).sqrt()
    x = torch.stack([mean, mean + std])
    x0_hat = gauss_mean(x, clock.alpha(t), clock.sigma(t))
    z_hat = (x - clock.alpha(t) * x0_hat) / clock.sigma(t)
    dx = x0_hat * (clock.alpha(s) - clock.alpha(t)) + z_hat * (clock.sigma(s) - clock.sigma(t))
    d_std = (clock.alpha(s) ** 2 * STD**2 + clock.sigma(s) ** 2).sqrt() - std
    torch.testing.assert_close(dx[0], (clock.alpha(s) - clock.alpha(t)) * MEAN, rtol=1e-3, atol=1e-12)
    torch.testing.assert_close(dx[1] - dx[0], d_std, rtol=2e-3, atol=1e-12)


@pytest.mark.parametrize("name", CLOCKS)
def test_16_euler_in_the_increments_is_ddim(name):
    clock = schedule(name)
    s, t = times(clock, 0.3, 0.7)
    x = torch.linspace(-1, 1, 5, dtype=F64) * clock.sigma(t)
    x0_hat = gauss_denoise(clock)(x, t)
    z_hat = (x - clock.alpha(t) * x0_hat) / clock.sigma(t)
    euler = x + x0_hat * (clock.alpha(s) - clock.alpha(t)) + z_hat * (clock.sigma(s) - clock.sigma(t))
    torch.testing.assert_close(euler, clock.alpha(s) * x0_hat + clock.sigma(s) * z_hat)
    ddim = sampler("ddim", eta=0.0)(gauss_denoise(clock), clock, x, torch.stack([t, s]), no_noise)
    torch.testing.assert_close(ddim, euler)


def test_16_flow_and_edm_write_the_same_step():
    x, x0_hat = torch.randn(2, 7, dtype=F64)
    t, s = 0.7, 0.3
    velocity = (x - x0_hat) / t  # z_hat - x0_hat on the straight path
    torch.testing.assert_close(x + (s - t) * velocity, (1 - s) * x0_hat + s * (x - (1 - t) * x0_hat) / t)
    torch.testing.assert_close(x + (s - t) * (x - x0_hat) / t, x0_hat + s * (x - x0_hat) / t)  # alpha = 1, t = sigma


@pytest.mark.parametrize("name", CLOCKS)
def test_17_heun_converges_to_the_exact_flow_of_a_gaussian(name):
    clock = schedule(name)
    s, t = times(clock, 0.3, 0.8)
    x = torch.linspace(-1, 1, 5, dtype=F64) * clock.sigma(t)
    spread = [(clock.alpha(u) ** 2 * STD**2 + clock.sigma(u) ** 2).sqrt() for u in (s, t)]
    exact = clock.alpha(s) * MEAN + spread[0] / spread[1] * (x - clock.alpha(t) * MEAN)
    errors = []
    for steps in (40, 80):
        nsr = torch.linspace(*((clock.sigma(u) / clock.alpha(u)).log() for u in (t, s)), steps + 1, dtype=F64).exp()
        ts = clock.time_at(nsr)
        errors.append(float((sampler("heun")(gauss_denoise(clock), clock, x, ts, no_noise) - exact).abs().max()))
    assert errors[1] < 1e-3 * float(exact.abs().max())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.15)


def test_18_all_clocks_walk_one_path():
    """At equal sigma/alpha, x / alpha is the same state: each Euler step agrees."""
    nsr = torch.tensor([2.0, 0.5], dtype=F64)
    y = torch.linspace(-3, 3, 7, dtype=F64)
    ends = []
    for name in CLOCKS:
        clock = schedule(name)
        ts = clock.time_at(nsr)
        x = sampler("ddim", eta=0.0)(gauss_denoise(clock), clock, clock.alpha(ts[0]) * y, ts, no_noise)
        ends.append(x / clock.alpha(ts[1]))
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-6, atol=1e-6)


# --- 7: guidance ----------------------------------------------------------------------------------


@pytest.mark.parametrize("w", [0.0, 1.0, 3.0])
def test_19_guidance_is_the_score_of_a_tilted_density(w):
    """(alpha D - x)/sigma^2 is the gradient of log p(x) + w (log p(x | c) - log p(x)), two Gaussians."""
    alpha, sigma = at(0.6, 0.9)
    x = torch.linspace(-2, 2, 9, dtype=F64).requires_grad_()
    variance = alpha**2 * STD**2 + sigma**2
    log_c = [-((x - alpha * m) ** 2) / (2 * variance) for m in (-1.0, 1.0)]
    log_none = torch.logsumexp(torch.stack(log_c), 0)
    tilted = log_none + w * (log_c[1] - log_none)
    score = torch.autograd.grad(tilted.sum(), x)[0]
    lines = [m + alpha * STD**2 / variance * (x - alpha * m) for m in (-1.0, 1.0)]
    share = torch.softmax(torch.stack(log_c), 0)
    estimates = {1: lines[1], -1: share[0] * lines[0] + share[1] * lines[1]}

    class Exact(Denoiser):
        def __call__(self, x, t, label):
            return torch.stack([estimates[int(each)][i % 9] for i, each in enumerate(label)])

    exact = Exact(lambda *_: None, FLOW, PARAMETERIZATIONS["x0"], sigma_data=0.5, scale_input=False)
    result = guided(exact, torch.ones(9, dtype=torch.long), Guidance(scale=w), clip=False)(x, torch.tensor(0.5))
    torch.testing.assert_close((alpha * result - x) / sigma**2, score)


# --- 8: where tutorials go wrong ------------------------------------------------------------------


def errors_after_training(draw_time, steps=1500):
    """Network over exact error at t = 0.1, 0.5, 0.9, trained with times draw_time(share of the run, n)."""
    data = mixture(n=4096, dim=2, components=3, std=0.3, seed=0)
    torch.manual_seed(0)
    net = MLP(data.shape, width=32, blocks=2)
    denoiser = Denoiser(net, FLOW, PARAMETERIZATIONS["x0"], sigma_data=1.0, scale_input=False)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    none = torch.full((128,), -1)
    for k in range(steps):
        x0 = data.values[torch.randint(4096, (128,))][:, :, None, None]
        t = draw_time(k / steps, 128).clamp(1e-3, 1)
        loss = denoising_loss(denoiser, WEIGHTINGS["unit"], x0, none, t, torch.randn_like(x0)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x0, z = data.pairs(4096)
    ratios = []
    for t in at(0.1, 0.5, 0.9):
        x = (1 - t) * x0 + t * z
        with torch.no_grad():
            x0_hat = denoiser(x.float()[:, :, None, None], t.float().expand(4096), torch.full((4096,), -1)).flatten(1)
        exact = data.posterior_mean(x, 1 - t, t)
        ratios.append(float((x0_hat - x0).square().mean() / (exact - x0).square().mean()))
    return ratios


@pytest.mark.slow
def test_t_from_the_epoch_number_forgets_the_data_end():
    drawn = errors_after_training(lambda share, n: torch.rand(n))
    scheduled = errors_after_training(lambda share, n: torch.full((n,), share))
    print("network / exact error at t = 0.1, 0.5, 0.9:", drawn, scheduled)
    assert max(drawn) < 1.5
    assert scheduled[0] > 5 * drawn[0] and scheduled[1] > 1.2 * drawn[1]
    assert scheduled[2] < 1.2  # what it saw last it knows


def test_a_reverse_step_that_adds_noise_ends_in_noise():
    """x <- (1 - h) x + h z: whatever the data were, mean 0 and variance h / (2 - h)."""
    h, mean, variance = 0.02, 5.0, 1.0
    for _ in range(2000):
        mean, variance = (1 - h) * mean, (1 - h) ** 2 * variance + h**2
    assert mean == pytest.approx(0, abs=1e-9)
    assert variance == pytest.approx(h / (2 - h))


def test_without_x0_the_posterior_is_no_gaussian():
    """Data are +1 or -1. Halfway from noise, p(x_s | x_t) has two humps and a dip between them."""
    s, t = at(0.1, 0.7)
    c_x, c_0, v = posterior(FLOW, s, t)
    x_t = torch.tensor(0.0, dtype=F64)  # both data points are equally likely

    def density(x_s):
        return sum(torch.exp(-((x_s - c_x * x_t - c_0 * x0) ** 2) / (2 * v)) / 2 for x0 in (-1, 1))

    assert density(torch.tensor(0.0, dtype=F64)) < 1e-6 * density(c_0)


def test_undoing_the_forward_step_explodes_where_the_posterior_is_calm():
    s, t = at(0.998, 0.999)
    gain, _ = transition(FLOW, s, t)
    c_x, c_0, v = posterior(FLOW, s, t)
    assert 1 / float(gain) == pytest.approx(2)
    assert float(c_x) < 0.5 and float(c_0) < 0.01 and 0 < float(v) < 1


# --- the document ---------------------------------------------------------------------------------


def test_every_formula_of_the_document_is_tested_here():
    root = Path(__file__).parents[2]
    numbers = {int(n) for n in re.findall(r"\((\d+)\)$", (root / "docs/theory.md").read_text(), re.MULTILINE)}
    names = re.findall(r"^def test_([\d_]+)_", Path(__file__).read_text(), re.MULTILINE)
    tested = {int(n) for name in names for n in name.split("_")}
    assert numbers == set(range(1, max(numbers) + 1))
    assert numbers - tested == {2}  # (2) names alpha and sigma
