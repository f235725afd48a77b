"""Bits per dimension against Gaussians and a mixture whose likelihood is known, and the variational bound of DDPM."""

import math

import pytest
import torch
from cases import SCHEDULE_NAMES, finite, schedule
from gmm import mixture
from torch.distributions import Normal, kl_divergence

from diffgen.build import restore
from diffgen.core.errors import UsageError
from diffgen.core.registry import bind
from diffgen.data.digits import digits
from diffgen.diffusion.denoiser import Denoiser, like
from diffgen.diffusion.guidance import Guidance, guided
from diffgen.diffusion.likelihood import exact_trace, hutchinson_trace, log_likelihood
from diffgen.diffusion.parameterizations import PARAMETERIZATIONS
from diffgen.diffusion.samplers import Denoise
from diffgen.diffusion.schedules import Schedule
from diffgen.diffusion.transitions import posterior
from diffgen.evaluation.bits_per_dim import (
    LEVELS,
    bits_per_dim,
    chosen_terms,
    dequantise,
    discretised_gaussian,
    kl_terms,
    levels,
    mean_and_error,
    noised,
    probes,
    variational_bound,
)
from diffgen.storage.checkpoint import load

STD = 0.4
"""Of the Gaussian data, N(0, STD^2) in every pixel."""

PIXELS = ((torch.randn(6, 1, 2, 3, generator=torch.Generator().manual_seed(0)) * STD + 1) * LEVELS).clamp(0, 255).byte()
IMAGES = list(range(6))


def wiener(s: Schedule, std: float = STD) -> Denoise:
    """The exact denoiser of N(0, std^2), for one time or one each."""

    def denoise(x, t):
        alpha, sigma = (like(of(t.double()), x) for of in (s.alpha, s.sigma))
        return alpha * std**2 / (alpha**2 * std**2 + sigma**2) * x

    return denoise


class WienerNetwork:
    """The same as a network that outputs F = a x0 + b z; it is told the time, which real ones read off noise_cond."""

    def __init__(self, s: Schedule, target: str) -> None:
        self.denoiser = Denoiser(self, s, bind(PARAMETERIZATIONS, {"name": target}), sigma_data=0.5, scale_input=True)
        self.t = torch.tensor(1.0)

    def __call__(self, x_in, noise_cond, label):
        alpha, sigma, a, b, _ = self.denoiser.coefficients(self.t)
        x = x_in.double() * torch.hypot(alpha * 0.5, sigma)
        x0_hat = wiener(self.denoiser.schedule)(x, self.t)
        return a * x0_hat + b * (x - alpha * x0_hat) / sigma

    def denoise(self) -> Denoise:
        inner = guided(self.denoiser, torch.full((6,), -1), Guidance(scale=1), clip=False)

        def denoise(x, t):
            self.t = t
            return inner(x, t)

        return denoise


def exact_bits(s: Schedule) -> torch.Tensor:
    """Of the dequantised images, with the little noise at t_min with which data enter."""
    t = torch.tensor(s.t_min, dtype=torch.float64)
    std = math.hypot(STD, float(s.sigma(t) / s.alpha(t)))
    nats = -Normal(0.0, std).log_prob(dequantise(PIXELS, IMAGES, 0)).flatten(1).mean(1)
    return nats / math.log(2) + math.log2(LEVELS)


@pytest.mark.parametrize("target", PARAMETERIZATIONS)
@pytest.mark.parametrize("name", SCHEDULE_NAMES)
def test_bits_of_gaussian_pixels_are_the_exact_ones(name, target):
    """The Jacobian of the denoiser is a number times I, for which one probe of signs gives the trace itself."""
    s = finite(name)
    found = bits_per_dim(WienerNetwork(s, target).denoise(), s, PIXELS, IMAGES, seed=0, rtol=1e-6, atol=1e-6)
    end = torch.tensor(s.t_max, dtype=torch.float64)
    known = float(s.alpha(end) * STD / s.sigma(end)) ** 2  # what x at t_max still knows of the data
    torch.testing.assert_close(found.each, exact_bits(s), rtol=0, atol=2e-4 + 4 * known)


def test_a_wrong_model_pays_for_it():
    s = schedule("rectified_flow")
    right, wrong = (
        bits_per_dim(wiener(s, std), s, PIXELS, IMAGES, seed=0, rtol=1e-6, atol=1e-6).each.mean() for std in (STD, 0.2)
    )
    assert wrong > right + 0.5


def test_calls_are_counted():
    s, calls = schedule("rectified_flow"), []

    def denoise(x, t):
        calls.append(t)
        return wiener(s)(x, t)

    assert bits_per_dim(denoise, s, PIXELS, IMAGES, seed=0, rtol=1e-3, atol=1e-3).nfe == len(calls) > 5


def test_an_image_has_its_bits_in_any_batch():
    s = schedule("cosine")
    whole = bits_per_dim(wiener(s), s, PIXELS, IMAGES, seed=0, rtol=1e-7, atol=1e-7).each
    part = bits_per_dim(wiener(s), s, PIXELS[[4, 2]], [4, 2], seed=0, rtol=1e-7, atol=1e-7).each
    torch.testing.assert_close(part, whole[[4, 2]], rtol=0, atol=1e-5)


def test_one_probe_is_noisy_but_its_mean_is_the_exact_likelihood_of_a_mixture():
    """Components close to each other, where the Jacobian is far from diagonal."""
    s, data = schedule("rectified_flow"), mixture()
    x0 = (data.mean() + 0.1).expand(400, 2)
    exact = log_likelihood(data.denoise(s), s, x0[:1], rtol=1e-6, atol=1e-6)
    trace = hutchinson_trace(probes((2,), list(range(400)), seed=0))
    found = log_likelihood(data.denoise(s), s, x0, rtol=1e-6, atol=1e-6, trace=trace)
    mean, error = mean_and_error(found)
    assert 0 < error < 0.05
    assert abs(mean - float(exact)) < 3 * error


def test_hutchinsons_mean_over_all_signs_is_the_trace():
    matrix = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    x = torch.randn(1, 3, requires_grad=True)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)
    found = torch.stack([hutchinson_trace(v[None])(x @ matrix, x) for v in signs]).mean()
    torch.testing.assert_close(found, matrix.trace())
    torch.testing.assert_close(exact_trace(x @ matrix, x)[0], matrix.trace())


def test_dequantised_pixels_fill_their_bins_evenly():
    pixels = torch.arange(256).byte().repeat(100, 1).reshape(100, 1, 16, 16)
    x = dequantise(pixels, list(range(100)), seed=0)
    offset = (x - levels(pixels)) * LEVELS
    assert -0.5 <= offset.min() < -0.499 and 0.499 < offset.max() < 0.5
    assert abs(offset.mean()) < 0.01
    assert offset.var() == pytest.approx(1 / 12, rel=0.02)
    assert torch.equal(x[[7]], dequantise(pixels[[7]], [7], seed=0))
    assert not torch.equal(x[[7]], dequantise(pixels[[7]], [7], seed=0, draw=1))


def test_probes_are_signs_of_their_image():
    v = probes((1, 4, 4), [3, 5], seed=0)
    assert set(v.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(v[1:], probes((1, 4, 4), [5], seed=0))
    assert not torch.equal(v[0], v[1])


def test_mean_and_error():
    assert mean_and_error(torch.tensor([1.0, 3.0])) == (2.0, pytest.approx(1.0))
    assert mean_and_error(torch.tensor([1.0])) == (1.0, math.inf)


# --- the variational bound ----------------------------------------------------------------------------------------


def bound(pixels, steps, s=None, seed=0, draws=None):
    s = s or schedule("ddpm_linear")
    return variational_bound(wiener(s), s, pixels, list(range(len(pixels))), steps=steps, seed=seed, draws=draws)


def test_masses_of_the_discretised_gaussian_sum_to_one():
    pixels = torch.arange(256).byte()
    for mean, std in ((0.0, 0.3), (0.98, 0.01), (-2.0, 0.05), (0.5, 3.0)):
        mass = discretised_gaussian(pixels, torch.full((256,), mean, dtype=torch.float64), std).exp()
        assert float(mass.sum()) == pytest.approx(1, abs=1e-12)


def test_masses_are_those_of_the_normal_distribution():
    pixels, mean, std = torch.arange(1, 255).byte(), torch.tensor(0.1, dtype=torch.float64), 0.2
    x, normal = levels(pixels), Normal(mean, std)
    expected = (normal.cdf(x + 1 / 255) - normal.cdf(x - 1 / 255)).log()
    torch.testing.assert_close(discretised_gaussian(pixels, mean, std), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("pixel", "mean"), [(250, -1.0), (5, 1.0)])
def test_far_tails_keep_their_digits(pixel, mean):
    """The nearest edge of the bin is z standard deviations away: the log of its mass is about -z^2/2."""
    found = float(discretised_gaussian(torch.tensor([pixel]).byte(), torch.tensor([mean]).double(), 0.01)[0])
    z = (abs(pixel - (0 if mean < 0 else 255)) - 0.5) / LEVELS / 0.01
    assert found == pytest.approx(-(z**2) / 2, rel=1e-3)


def test_terms_are_the_kl_divergences_they_claim_to_be():
    """Two steps, so that there is one term of each kind: against torch.distributions."""
    s = schedule("ddpm_linear", steps=2, beta_start=1e-4, beta_end=1e-3)
    x0, (first, last) = levels(PIXELS), torch.tensor([0.5, 1.0], dtype=torch.float64)
    found = bound(PIXELS, 2, s)
    alpha, sigma = s.alpha(last), s.sigma(last)
    prior = kl_divergence(Normal(alpha * x0, sigma), Normal(torch.zeros_like(x0), sigma))
    x, beta = noised(x0, s, last, IMAGES, 0, 1), 1 - (alpha / s.alpha(first)) ** 2

    def q(clean):  # Ho et al. 2020, eq. 7
        mean = s.alpha(first) * beta / sigma**2 * clean + alpha / s.alpha(first) * s.sigma(first) ** 2 / sigma**2 * x
        return Normal(mean, s.sigma(first) / sigma * beta.sqrt())

    step = kl_divergence(q(x0), Normal(q(wiener(s)(x, last)).mean, beta.sqrt()))
    for term, expected in ((found.prior, prior), (found.steps, step)):
        torch.testing.assert_close(term, expected.flatten(1).mean(1) / math.log(2))
    torch.testing.assert_close(found.total, found.prior + found.steps + found.decoder)


def test_the_bound_of_gaussian_pixels_is_tight_but_for_the_decoders_variance():
    """The error of x0_hat at the first entry has variance sigma^2, about twice what the decoder is given."""
    generator = torch.Generator().manual_seed(1)
    pixels = ((torch.randn(16, 1, 16, 16, generator=generator) * STD + 1) * LEVELS + 0.5).clamp(0, 255).byte()
    exact = float(-discretised_gaussian(pixels, torch.zeros(1, dtype=torch.float64), STD).mean()) / math.log(2)
    s = schedule("ddpm_linear")
    first, second = torch.tensor([0.001, 0.002], dtype=torch.float64)
    ratio = float(s.sigma(first) ** 2 / posterior(s, first, second)[2])
    loss = (ratio - 1 - math.log(ratio)) / 2 / math.log(2)
    assert 0.1 < loss < 0.2
    assert float(bound(pixels, 1000).total.mean()) == pytest.approx(exact + loss, abs=0.02)
    assert float(bound(pixels, 1000, draws=32).total.mean()) == pytest.approx(exact + loss, abs=0.03)
    assert float(bound(pixels, 10).steps.mean()) > float(bound(pixels, 1000).steps.mean()) + 0.1


@pytest.mark.parametrize("draws", [None, 5])
def test_the_bound_of_an_image_does_not_depend_on_its_batch(draws):
    s = schedule("ddpm_linear")
    whole = variational_bound(wiener(s), s, PIXELS, IMAGES, steps=20, seed=0, draws=draws).total
    part = variational_bound(wiener(s), s, PIXELS[[3]], [3], steps=20, seed=0, draws=draws).total
    torch.testing.assert_close(part, whole[[3]])


@pytest.mark.parametrize("std", [STD, pytest.param(0.1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["ddpm_linear", pytest.param("cosine", marks=pytest.mark.slow)])
def test_a_few_random_terms_have_the_whole_sum_as_their_mean(name, std):
    """Of a right and of a wrong model; the terms of the second are nothing like those the chances are made for."""
    s = finite(name)
    pixels = PIXELS.repeat(100, 1, 1, 1)
    whole, few = (
        variational_bound(wiener(s, std), s, pixels, list(range(600)), steps=200, seed=0, draws=draws).steps
        for draws in (None, 4)
    )
    mean, error = mean_and_error(few - whole)
    assert 0 < error < 0.02 * whole.mean()
    assert abs(mean) < 3 * error


def test_terms_are_chosen_as_often_as_they_are_divided_by():
    """Two draws for each image, one from each half of the chances: together they follow them."""
    s = schedule("ddpm_linear")
    ts = torch.linspace(s.t_min, s.t_max, 12, dtype=torch.float64)
    entries, divisors = chosen_terms(s, ts, kl_terms(s, ts)[0], list(range(4000)), seed=0, draws=2)
    shares = torch.bincount(entries.flatten(), minlength=11) / 4000
    torch.testing.assert_close(shares.double(), divisors, rtol=0, atol=0.03)
    assert float(divisors.sum()) == pytest.approx(2)
    assert (entries[:, 0] <= entries[:, 1]).all()


def test_one_step_is_no_chain():
    with pytest.raises(UsageError, match="steps=1"):
        bound(PIXELS, 1)


# --- a network ----------------------------------------------------------------------------------------------------


def test_a_trained_network_has_bits_and_a_bound(tiny_model):
    """Float32 weights that ask for no gradient, labels, eight steps of training: finite, and no better than the digits
    allow, of which half of the pixels are black."""
    denoiser = restore(load(tiny_model)).denoiser
    data = digits(split="test")
    label = data.labels[:6]
    denoise = guided(denoiser, label, Guidance(scale=1), clip=False)
    found = bits_per_dim(denoise, denoiser.schedule, data.pixels[:6], IMAGES, seed=0, rtol=1e-3, atol=1e-3)
    assert found.each.isfinite().all() and found.each.shape == (6,)
    assert 0 < found.each.mean() < 20

    def clipped(x, t):
        return denoiser(x, t, label).clamp(-1, 1)

    total = variational_bound(clipped, denoiser.schedule, data.pixels[:6], IMAGES, steps=20, seed=0).total
    assert total.isfinite().all() and total.mean() > 0
