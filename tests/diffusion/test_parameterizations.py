"""Prediction targets: one formula recovers x0 from all of them, and edm is Karras et al.'s preconditioning."""

import pytest
import torch
from cases import ENDS_IN_NOISE, SCHEDULE_NAMES, finite, schedule, singular

from diffgen.core.errors import UsageError
from diffgen.core.registry import bind
from diffgen.diffusion.denoiser import Denoiser
from diffgen.diffusion.guidance import Guidance, guided
from diffgen.diffusion.parameterizations import PARAMETERIZATIONS

F64 = torch.float64
NAMES = sorted(PARAMETERIZATIONS)


def denoiser(model, schedule, name, **changes):
    options = {"sigma_data": 0.5, "scale_input": True} | changes
    return Denoiser(model, schedule, bind(PARAMETERIZATIONS, {"name": name}), **options)


def label(n):
    return torch.full((n,), -1)


@pytest.mark.parametrize("name", NAMES)
def test_c_out_is_the_slope_of_the_image_in_the_output(name):
    s = schedule("vp_linear")
    t, x = torch.tensor([0.01, 0.3, 0.9], dtype=F64), torch.ones(3, 1, 1, 1, dtype=F64)
    images = [denoiser(lambda *_, F=F: torch.full_like(x, F), s, name)(x, t, label(3)) for F in (0.0, 1.0)]
    c_out = denoiser(None, s, name).coefficients(t).c_out
    assert torch.allclose((images[1] - images[0]).flatten(), c_out, rtol=1e-10)


def test_edm_is_the_preconditioning_of_karras():
    s, sigma_data = schedule("ve"), 0.5
    sigma = torch.tensor([0.002, 0.1, 0.5, 3.0, 80.0], dtype=F64)
    total = sigma**2 + sigma_data**2
    c_skip, c_out, c_in = sigma_data**2 / total, sigma * sigma_data / total.sqrt(), 1 / total.sqrt()
    c_noise = sigma.log() / 4
    x, F = torch.randn(2, 5, 1, 2, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    seen = []

    def model(x_in, noise_cond, label):
        seen.append((x_in, noise_cond))
        return F

    def wide(c):
        return c[:, None, None, None]

    x0_hat = denoiser(model, s, "edm")(x, sigma, label(5))
    assert torch.allclose(x0_hat, wide(c_skip) * x + wide(c_out) * F, rtol=1e-10)
    assert torch.allclose(seen[0][0].double(), wide(c_in) * x, rtol=1e-6)
    assert torch.allclose(seen[0][1].double(), c_noise, rtol=1e-6)


@pytest.mark.parametrize("schedule_name", SCHEDULE_NAMES)
def test_edm_target_and_input_have_unit_variance(schedule_name):
    s = finite(schedule_name)
    t = torch.linspace(s.t_min, s.t_max, 50, dtype=F64)
    probe = denoiser(None, s, "edm")
    alpha, sigma, a, b, _ = probe.coefficients(t)
    assert torch.allclose((a * 0.5) ** 2 + b**2, torch.ones(50, dtype=F64), rtol=1e-10)
    # and it does not correlate with the input, so that the network's error is amplified least (their app. B.6)
    assert torch.allclose(a * alpha * 0.25 + b * sigma, torch.zeros(50, dtype=F64), atol=1e-12)


def test_published_targets():
    alpha, sigma = torch.tensor([0.8]), torch.tensor([0.6])
    pairs = {
        name: [float(c) for c in PARAMETERIZATIONS[name](alpha, sigma, 0.5)] for name in ("eps", "x0", "v", "flow")
    }
    assert pairs == {"eps": [0, 1], "x0": [1, 0], "v": pytest.approx([-0.6, 0.8]), "flow": [-1, 1]}


def test_v_is_the_conversion_of_salimans_and_ho():
    s = schedule("cosine")
    t = torch.tensor([0.2, 0.7], dtype=F64)
    x, v = torch.randn(2, 2, 1, 1, 1, dtype=F64, generator=torch.Generator().manual_seed(0))
    x0_hat = denoiser(lambda *_: v, s, "v")(x, t, label(2))
    assert torch.allclose(x0_hat.flatten(), s.alpha(t) * x.flatten() - s.sigma(t) * v.flatten(), rtol=1e-10)


@pytest.mark.parametrize("schedule_name", ENDS_IN_NOISE)
def test_eps_is_refused_where_alpha_reaches_zero(schedule_name):
    with pytest.raises(UsageError, match=r"singular at t_max=1.*choose parameterization=v or flow"):
        denoiser(None, schedule(schedule_name), "eps")
    denoiser(None, schedule(schedule_name, t_max=0.999), "eps")


def test_eps_is_refused_with_zero_terminal_snr():
    with pytest.raises(UsageError, match="singular"):
        denoiser(None, schedule("ddpm_linear", zero_terminal_snr=True), "eps")
    denoiser(None, schedule("ddpm_linear", zero_terminal_snr=True), "v")


@pytest.mark.parametrize(
    ("schedule_name", "name"), [(s, name) for s in ENDS_IN_NOISE for name in NAMES if not singular(name, schedule(s))]
)
def test_the_other_targets_reach_pure_noise(schedule_name, name):
    s = schedule(schedule_name)
    x = torch.ones(1, 1, 1, 1, dtype=F64)
    x0_hat = denoiser(lambda x, *_: x.double(), s, name)(x, torch.tensor([s.t_max], dtype=F64), label(1))
    assert x0_hat.isfinite().all()


def test_large_noise_needs_a_scaled_input():
    with pytest.raises(UsageError, match=r"sigma=80: set denoiser.scale_input=true"):
        denoiser(None, schedule("ve"), "edm", scale_input=False)


@pytest.mark.parametrize("sigma_data", [0.0, -1.0, 100.0])
def test_sigma_data_is_bounded(sigma_data):
    with pytest.raises(UsageError, match="sigma_data"):
        denoiser(None, schedule("ve"), "edm", sigma_data=sigma_data)


def test_guidance_of_one_is_no_guidance_bit_for_bit():
    def model(x, noise_cond, label):
        return x * (1 + label[:, None, None, None].float())

    d = denoiser(model, schedule("vp_linear"), "eps", scale_input=False)
    x, t = torch.randn(3, 1, 2, 2, dtype=F64), torch.tensor(0.5)
    labels = torch.tensor([0, 1, 2])
    plain = d(x, t, labels)
    assert torch.equal(guided(d, labels, Guidance(scale=1.0), clip=False)(x, t), plain)
    none = d(x, t.double().expand(3), label(3))
    result = guided(d, labels, Guidance(scale=2.5), clip=False)(x, t)
    assert torch.allclose(result, none + 2.5 * (plain - none), rtol=1e-6)
    assert float(guided(d, labels, Guidance(scale=2.5), clip=True)(100 * x, t).abs().max()) == 1
