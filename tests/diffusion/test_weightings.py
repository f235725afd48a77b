"""Loss weights against the forms that papers publish for each target."""

import hydra
import pytest
import torch
from cases import denoising_loss, schedule
from omegaconf import OmegaConf

from diffgen.build import make_weighting
from diffgen.cli.configs import config_dir
from diffgen.core.errors import UsageError
from diffgen.core.registry import bind
from diffgen.diffusion.denoiser import Denoiser
from diffgen.diffusion.parameterizations import PARAMETERIZATIONS
from diffgen.diffusion.weightings import WEIGHTINGS
from diffgen.storage.checkpoint import find_newest, load_state
from diffgen.training import trainer

F64 = torch.float64


def weight(name, target, schedule_name="vp_linear", **options):
    """The weight that a row gives, and the SNR, over the schedule's range."""
    s = schedule(schedule_name)
    t = torch.linspace(s.t_min, s.t_max, 200, dtype=F64)
    d = Denoiser(None, s, bind(PARAMETERIZATIONS, {"name": target}), sigma_data=0.5, scale_input=True)
    alpha, sigma = s.alpha(t), s.sigma(t)
    row = bind(WEIGHTINGS, {"name": name, **options})
    return row(alpha, sigma, d.coefficients(t).c_out), (alpha / sigma) ** 2


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


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_soft_min_snr_is_the_published_weight_on_the_target_of_karras(sigma_data):
    """(sigma sigma_data)^2 / (sigma^2 + sigma_data^2)^2, where gamma = 1 / sigma_data^2."""
    s = schedule("ve")
    sigma = torch.linspace(s.t_min, s.t_max, 200, dtype=F64)
    pair = bind(PARAMETERIZATIONS, {"name": "edm"})
    c_out = Denoiser(None, s, pair, sigma_data=sigma_data, scale_input=True).coefficients(sigma).c_out
    row = bind(WEIGHTINGS, {"name": "soft_min_snr", "gamma": 1 / sigma_data**2})
    wanted = (sigma * sigma_data) ** 2 / (sigma**2 + sigma_data**2) ** 2
    assert torch.allclose(row(torch.ones_like(sigma), sigma, c_out), wanted, rtol=1e-10)


def test_soft_min_snr_is_below_the_minimum_and_tends_to_it():
    w, snr = weight("soft_min_snr", "x0", gamma=4.0)
    assert (w < snr.clamp(max=4)).all() and (w > snr.clamp(max=4) / 2.01).all()
    assert torch.allclose(w[[0, -1]], snr[[0, -1]].clamp(max=4), rtol=1e-2)


def test_soft_min_snr_is_finite_in_pure_noise():
    row = bind(WEIGHTINGS, {"name": "soft_min_snr", "gamma": 4.0})
    assert row(torch.zeros(1), torch.ones(1), torch.ones(1)).tolist() == [0.0]


@pytest.mark.parametrize("target", ["x0", "v", "flow", "edm"])  # eps is singular at t = 1
def test_velocity_is_the_error_of_the_velocity_whatever_is_predicted(target):
    """With sigma at least `floor`, as where JiT divides by max(1 - t, 0.05) with its clock turned round."""
    s = schedule("rectified_flow")
    t = torch.tensor([0.01, 0.05, 0.3, 0.7, 0.99], dtype=F64)
    x0, z, x0_hat = torch.randn(3, 5, 1, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    at = t[:, None, None, None]
    v, v_hat = ((((1 - at) * x0 + at * z) - end) / at.clamp(min=0.05) for end in (x0, x0_hat))
    wanted = (v_hat - v).square().mean((1, 2, 3))
    assert torch.allclose(loss_of(s, target, "velocity", x0, z, x0_hat, t, floor=0.05), wanted, rtol=1e-8)


def test_velocity_is_unit_weight_for_flow_down_to_its_floor():
    s = schedule("rectified_flow")
    t = torch.linspace(s.t_min, s.t_max, 200, dtype=F64)
    w, _ = weight("velocity", "flow", "rectified_flow", floor=0.05)
    assert torch.allclose(w[t > 0.05], torch.ones(1, dtype=F64))
    assert torch.allclose(w[t < 0.05], (t[t < 0.05] / 0.05) ** 2) and (t < 0.05).any()


def test_a_floor_of_velocity_must_be_positive():
    with pytest.raises(UsageError, match=r"weighting.floor=0.0 must be positive"):
        weight("velocity", "x0", floor=0.0)


# --- the learned weight -------------------------------------------------------------------------------------


def uncertainty(seed=0):
    torch.manual_seed(seed)
    return make_weighting({"weighting": {"name": "uncertainty", "features": 128}})


def test_the_learned_weight_starts_as_unit_weight():
    row, t = uncertainty(), torch.linspace(0.01, 1, 20, dtype=F64)
    assert torch.equal(row(1 - t, t, torch.ones(20)), torch.ones(20))  # also at t = 1, where alpha = 0


def test_the_learned_weight_finds_the_inverse_of_the_error():
    """Where the error is 4 below sigma = 1 and 0.25 above, the best weights are 0.25 and 4."""
    row = uncertainty()
    sigma = torch.exp(torch.linspace(-3, 3, 64, dtype=F64))
    error = torch.where(sigma < 1, 4.0, 0.25).float()
    descent = torch.optim.Adam(row.parameters(), lr=1e-2)
    for _ in range(400):
        w = row(torch.ones_like(sigma), sigma, torch.ones(64))
        descent.zero_grad()
        (w * error - w.log()).mean().backward()
        descent.step()
    w = row(torch.ones_like(sigma), sigma, torch.ones(64))
    away = sigma.log().abs() > 1
    assert torch.allclose(w[away], 1 / error[away], rtol=0.25)
    assert float((w * error).detach().mean()) == pytest.approx(1, rel=0.05)  # every level contributes about 1


def test_only_a_learned_weight_pays_for_being_small():
    s, t = schedule("rectified_flow"), torch.tensor([0.3, 0.6], dtype=F64)
    x0, z = torch.randn(2, 2, 1, 4, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    pair = bind(PARAMETERIZATIONS, {"name": "flow"})
    d = Denoiser(lambda x, *_: x, s, pair, sigma_data=0.5, scale_input=False)
    label, row = torch.full((2,), -1), uncertainty()
    plain = denoising_loss(d, WEIGHTINGS["unit"], x0, label, t, z)
    assert torch.allclose(denoising_loss(d, row, x0, label, t, z), plain)
    torch.nn.init.constant_(row.linear.weight, 0.01)
    w = row(1 - t, t, torch.ones(2))
    assert not torch.allclose(w, torch.ones(2))
    assert torch.allclose(denoising_loss(d, row, x0, label, t, z), w * plain - w.log())


def train(run_dir, images, *overrides):
    """Train a tiny network; returns the counters and tensors of its last checkpoint."""
    tiny = ["dataset=digits", "model.channels=8", "model.channel_mult=[1]", "model.attention_resolutions=[]"]
    small = [
        "train.batch_size=16",
        "train.checkpoint_every=64",
        "preview.n=1",
        "sampler.steps=2",
        "train.threads=1",
    ]
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = hydra.compose(
            "train", [*tiny, *small, f"train.images={images}", "lr_schedule.decay=constant", *overrides]
        )
    plain = OmegaConf.to_container(config, resolve=True)
    trainer.train({**plain, "run_dir": str(run_dir)}, OmegaConf.to_yaml(config), "unused")
    return load_state(find_newest(run_dir))


def test_the_learned_weight_is_trained_and_survives_an_interruption(tmp_path):
    choice = "weighting=uncertainty"
    _, whole = train(tmp_path / "whole", 128, choice)
    train(tmp_path / "parts", 64, choice)
    _, parts = train(tmp_path / "parts", 128, choice)
    assert float(whole["weighting.linear.weight"].abs().max()) > 0
    assert "optimizer.weighting.linear.weight/exp_avg" in whole
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_run_may_go_on_with_another_weighting(tmp_path):
    _, plain = train(tmp_path, 64)
    assert not [name for name in plain if "weighting" in name]
    _, learned = train(tmp_path, 128, "weighting=uncertainty")
    assert float(learned["weighting.linear.weight"].abs().max()) > 0
    _, plain = train(tmp_path, 192, "weighting=min_snr")
    assert not [name for name in plain if "weighting" in name]


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
    alpha, sigma, a, b, _ = (c[:, None, None, None] for c in probe.coefficients(t))
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
    d = Denoiser(lambda *_: velocity, s, bind(PARAMETERIZATIONS, {"name": "flow"}), sigma_data=0.5, scale_input=False)
    loss = denoising_loss(d, WEIGHTINGS["unit"], x0, torch.full((3,), -1), t, z)
    assert torch.allclose(loss, (velocity - (z - x0)).square().mean((1, 2, 3)), rtol=1e-10)
