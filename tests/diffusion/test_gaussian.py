"""Gaussian data, of which the whole path is known: every sampler on every schedule must follow it."""

import itertools
import math

import pytest
import torch
from cases import SCHEDULE_NAMES, config, sampler, schedule
from gmm import noises

from diffgen.core.errors import UsageError
from diffgen.core.registry import parameters
from diffgen.diffusion.gaussian import LARGEST, Gaussian, Moments, answered_first
from diffgen.diffusion.samplers import SAMPLERS, time_grid
from diffgen.diffusion.samplers.steps import Level, level

F64 = torch.float64
DATA = Level(torch.zeros(()), 1.0, 0.0)


def examples(n=400, classes=2):
    """x0 [n, 2, 2] of two classes apart, and some without a label."""
    rng = torch.Generator().manual_seed(0)
    mix = torch.randn(4, 4, generator=rng, dtype=F64) / 2
    labels = torch.arange(n) % (classes + 1) - 1
    x = torch.randn(n, 4, generator=rng, dtype=F64) @ mix + torch.linspace(-1, 1, 4, dtype=F64) * labels[:, None]
    return x.reshape(n, 2, 2), labels


def gaussian():
    x, labels = examples()
    return Gaussian.of(Moments.of([(x[:100], labels[:100]), (x[100:], labels[100:])], 2))


G = gaussian()
LABELS = torch.tensor([0, 1, -1, 0, 1, -1])


def noise_at(s, t, n=6):
    z = torch.randn(n, 2, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    return float(s.sigma(torch.tensor(t, dtype=F64))) * z[: len(LABELS)]


def denoise(s):
    return lambda x, t: G.denoise(x, LABELS, level(s, t))


def top(s):
    return level(s, torch.tensor(s.t_max, dtype=F64))


def ts_of(s, steps, skip_to=None):
    return time_grid(s, steps=steps, spacing="logsnr", rho=7.0, sigma_max=80.0, sigmas=None, skip_to=skip_to)


def still(name):
    return {"eta": 0.0} if "eta" in parameters(SAMPLERS[name]) else {}


def test_moments_are_those_of_the_examples():
    x, labels = examples()
    flat = x.flatten(1)
    moments = Moments.of([(x[:150], labels[:150]), (x[150:], labels[150:])], 2)
    for row, label in enumerate((0, 1, -1)):
        assert moments.counts[row] == (labels == label).sum()
        torch.testing.assert_close(moments.means[row].double(), flat[labels == label].mean(0), atol=1e-6, rtol=1e-5)
    within = sum((labels == c).sum() * torch.cov(flat[labels == c].T, correction=0) for c in (0, 1, -1)) / len(x)
    torch.testing.assert_close(moments.covariance.double(), within, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(G.mean, flat.mean(0), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(G.whole.covariance, torch.cov(flat.T, correction=0), atol=1e-6, rtol=1e-5)


def test_a_class_without_examples_is_like_all_of_them():
    x, labels = examples()
    known = Gaussian.of(Moments.of([(x, labels)], 5))
    torch.testing.assert_close(known.means[4], known.mean)
    assert bool(known.means.isfinite().all())


def test_labels_that_a_network_is_not_told_of_make_one_class():
    x, labels = examples()
    known = Gaussian.of(Moments.of([(x, labels)], 0))
    assert known.means.shape == (0, 4)
    torch.testing.assert_close(known.whole.covariance, torch.cov(x.flatten(1).T, correction=0), atol=1e-6, rtol=1e-5)


def test_a_covariance_that_is_too_large_is_refused_before_it_is_summed():
    with pytest.raises(UsageError, match=str(LARGEST + 1)):
        Moments.of([(torch.zeros(1, LARGEST + 1), torch.zeros(1).long())], 1)


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
def test_the_way_is_the_solution_of_the_ode(name):
    """dx = x0_hat d(alpha) + z_hat d(sigma), by differences in the middle of the way."""
    s = schedule(name)
    t = torch.tensor(0.5 * (s.t_min + s.t_max), dtype=F64) if name != "ve" else torch.tensor(0.7, dtype=F64)
    h = 1e-4 * float(t)
    here, before, after = level(s, t), level(s, t - h), level(s, t + h)
    x = noise_at(s, float(t))
    moved = (G.carried(x, LABELS, here, after) - G.carried(x, LABELS, here, before)) / 2
    x0_hat = G.denoise(x, LABELS, here)
    z_hat = (x - here.alpha * x0_hat) / here.sigma
    wanted = x0_hat * (after.alpha - before.alpha) / 2 + z_hat * (after.sigma - before.sigma) / 2
    torch.testing.assert_close(moved, wanted, atol=1e-9, rtol=2e-4)


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
def test_two_parts_of_the_way_are_the_whole(name):
    s = schedule(name)
    middle = level(s, s.time_at(torch.tensor(3.0, dtype=F64)))
    x = noise_at(s, s.t_max)
    halves = G.carried(G.carried(x, LABELS, top(s), middle), LABELS, middle, DATA)
    torch.testing.assert_close(halves, G.carried(x, LABELS, top(s), DATA))


ODE = sorted(name for name, facts in SAMPLERS.facts.items() if facts.order)


@pytest.mark.parametrize(("name", "schedule_name"), itertools.product(ODE, SCHEDULE_NAMES))
def test_every_sampler_goes_on_from_a_start_in_closed_form(name, schedule_name):
    """It ends where Gaussian data do."""
    s = schedule(schedule_name)
    row, x = sampler(name, **still(name)), noise_at(s, s.t_max)
    exact = G.carried(x, LABELS, top(s), level(s, torch.tensor(s.t_min, dtype=F64)))
    exact = G.denoise(exact, LABELS, level(s, torch.tensor(s.t_min, dtype=F64)))
    ts = ts_of(s, 400, skip_to=5.0)
    begun = G.carried(x, LABELS, top(s), level(s, ts[0]))
    found = row(denoise(s), s, begun, ts, noises(x))
    torch.testing.assert_close(found, exact, atol=0.02, rtol=0)


@pytest.mark.parametrize(("name", "schedule_name"), itertools.product(sorted(SAMPLERS), SCHEDULE_NAMES))
def test_every_sampler_takes_its_first_step_in_closed_form(name, schedule_name):
    """The network is right here, so the samples are the same, for one call less."""
    if name == "ode":  # its first call is made twice
        pytest.skip("chooses its own steps")
    s, calls = schedule(schedule_name), []

    def counted(x, t):
        calls.append(float(t))
        return denoise(s)(x, t)

    row, ts, x = sampler(name), ts_of(s, 6), noise_at(s, s.t_max)
    plain = row(denoise(s), s, x, ts, noises(x))
    begun = row(answered_first(counted, G, LABELS, s), s, x, ts, noises(x))
    torch.testing.assert_close(begun, plain, atol=1e-9, rtol=1e-9)
    facts = SAMPLERS.facts[name]
    if facts.calls:
        assert len(calls) <= facts.calls * 6 - (facts.calls - 1) - 1


def test_without_moments_data_have_the_deviation_that_the_denoiser_knows():
    s, known = schedule("ve"), Gaussian.isotropic(0.5)
    x, at = noise_at(s, 2.0), level(s, torch.tensor(2.0, dtype=F64))
    torch.testing.assert_close(known.denoise(x, LABELS, at), x * 0.25 / (0.25 + 4))


@pytest.mark.parametrize("spacing", ["uniform", "quadratic", "karras", "logsnr"])
@pytest.mark.parametrize("schedule_name", SCHEDULE_NAMES)
def test_a_grid_that_skips_begins_at_the_level(schedule_name, spacing):
    s = schedule(schedule_name)
    ts = time_grid(s, steps=6, spacing=spacing, rho=7.0, sigma_max=80.0, sigmas=None, skip_to=2.0)
    nsr = s.sigma(ts[:-1]) / s.alpha(ts[:-1])
    assert math.isclose(float(nsr[0]), 2.0, rel_tol=1e-5)
    assert bool((ts.diff() < 0).all())
    assert ts[-1] == 0


@pytest.mark.parametrize("skip_to", [0.0, -1.0, 1e-9, 80.0, 1e9])
def test_a_level_outside_the_path_is_refused(skip_to):
    with pytest.raises(UsageError, match=r"sampler.skip_to=.* must be inside"):
        ts_of(schedule("ve"), 6, skip_to)


def test_a_level_that_a_list_of_levels_does_not_begin_with_is_refused():
    with pytest.raises(UsageError, match="leave one of them out"):
        time_grid(schedule("ve"), steps=2, spacing="auto", rho=7.0, sigma_max=80.0, sigmas=(5.0, 1.0), skip_to=6.0)


def test_every_sampler_s_yaml_can_begin_in_closed_form():
    for name in SAMPLERS:
        assert config("sampler", name)["skip_to"] is None
        assert config("sampler", name)["first_step"] == "network"
