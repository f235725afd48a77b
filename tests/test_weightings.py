"""Loss weights against the forms that papers publish for each target."""

import pytest
import torch
from cases import schedule

from diffgen.denoiser import Denoiser
from diffgen.losses import denoising_loss
from diffgen.parameterizations import PARAMETERIZATIONS
from diffgen.registry import bind
from diffgen.weightings import WEIGHTINGS

F64 = torch.float64


def weight(name, target, schedule_name="vp_linear", **options):
    """The weight that a row gives, and the SNR, over the schedule's range."""
    s = schedule(schedule_name)
    t = torch.linspace(s.t_min, s.t_max, 200, dtype=F64)
    d = Denoiser(None, s, bind(PARAMETERIZATIONS, {"name": target}), sigma_data=0.5, scale_input=True)
    alpha, sigma = s.alpha(t), s.sigma(t)
    row = bind(WEIGHTINGS, {"name": name, **options})
    return row(alpha, sigma, d.c_out(t)), (alpha / sigma) ** 2


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_has_the_published_form_of_each_target(gamma):
    for target, form in {
        "eps": lambda snr: snr.clamp(max=gamma) / snr,
        "x0": lambda snr: snr.clamp(max=gamma),
        "v": lambda snr: snr.clamp(max=gamma) / (snr + 1),
    }.items():
        w, snr = weight("min_snr", target, gamma=gamma)
        assert torch.allclose(w, form(snr), rtol=1e-8), target


def test_min_snr_clamps_the_clean_side():
    w, snr = weight("min_snr", "eps", gamma=5.0)
    assert (w[snr < 5] > 1 - 1e-9).all()  # noisy images keep the plain eps loss
    assert (w[snr > 5] < 1).all() and float(w[0]) < 1e-2  # nearly clean ones count less


def test_snr_is_the_eps_error_whatever_is_predicted():
    s = schedule("vp_linear")
    t = torch.tensor([0.1, 0.5, 0.9], dtype=F64)
    rng = torch.Generator().manual_seed(0)
    x0, z, x0_hat = torch.randn(3, 3, 1, 4, 4, dtype=F64, generator=rng)
    alpha, sigma = (c[:, None, None, None] for c in (s.alpha(t), s.sigma(t)))
    eps_hat = (alpha * x0 + sigma * z - alpha * x0_hat) / sigma
    wanted = (eps_hat - z).square().mean((1, 2, 3))
    for target in sorted(PARAMETERIZATIONS):
        assert torch.allclose(loss_of(s, target, "snr", x0, z, x0_hat, t), wanted, rtol=1e-8), target


def loss_of(s, target, weighting, x0, z, x0_hat, t, **options):
    """The training loss of a network whose denoised image is x0_hat."""
    pair = bind(PARAMETERIZATIONS, {"name": target})
    probe = Denoiser(None, s, pair, sigma_data=0.5, scale_input=True)
    alpha, sigma, a, b = (c[:, None, None, None] for c in probe.coefficients(t))
    z_hat = (alpha * x0 + sigma * z - alpha * x0_hat) / sigma
    d = Denoiser(lambda *_: a * x0_hat + b * z_hat, s, pair, sigma_data=0.5, scale_input=True)
    row = bind(WEIGHTINGS, {"name": weighting, **options})
    return denoising_loss(d, row, x0, torch.full((len(t),), -1), t, z)


def test_edm_with_unit_weight_is_the_loss_of_karras():
    s = schedule("ve")
    sigma = torch.tensor([0.01, 0.5, 20.0], dtype=F64)
    rng = torch.Generator().manual_seed(0)
    x0, z, x0_hat = torch.randn(3, 3, 1, 4, 4, dtype=F64, generator=rng)
    lambda_ = (sigma**2 + 0.5**2) / (sigma * 0.5) ** 2  # their table 1
    wanted = lambda_ * (x0_hat - x0).square().mean((1, 2, 3))
    assert torch.allclose(loss_of(s, "edm", "unit", x0, z, x0_hat, sigma), wanted, rtol=1e-8)


def test_flow_with_unit_weight_is_the_velocity_loss():
    s = schedule("rectified_flow")
    t = torch.tensor([0.1, 0.5, 0.9], dtype=F64)
    rng = torch.Generator().manual_seed(0)
    x0, z, velocity = torch.randn(3, 3, 1, 4, 4, dtype=F64, generator=rng)
    d = Denoiser(
        lambda *_: velocity, s, bind(PARAMETERIZATIONS, {"name": "flow"}), sigma_data=0.5, scale_input=False
    )
    loss = denoising_loss(d, WEIGHTINGS["unit"], x0, torch.full((3,), -1), t, z)
    assert torch.allclose(loss, (velocity - (z - x0)).square().mean((1, 2, 3)), rtol=1e-10)
