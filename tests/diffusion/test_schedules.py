"""Noise schedules against their papers' formulas and against direct Gaussian algebra."""

import math

import numpy as np
import pytest
import torch
from cases import SCHEDULE_NAMES, schedule
from scipy.integrate import quad

from diffgen.core.errors import UsageError
from diffgen.diffusion.samplers import time_grid
from diffgen.diffusion.schedules import Continuous
from diffgen.diffusion.transitions import posterior, snr, transition

F64 = torch.float64


def times(s, n=257):
    return torch.linspace(s.t_min, s.t_max, n, dtype=F64)


def grid(s, **changes):
    return time_grid(
        s, **{"steps": 8, "spacing": "auto", "rho": 7.0, "sigma_max": 80.0, "sigmas": None, "skip_to": None} | changes
    )


# --- the formulas of the papers -----------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1000, 4000, 20])
def test_ddpm_linear_is_the_cumulative_product_of_its_betas(steps):
    s = schedule("ddpm_linear", steps=steps, beta_end=0.02 if steps > 20 else 0.015)
    beta = np.linspace(1e-4, 0.02 if steps > 20 else 0.015, steps) * 1000 / steps
    alpha_bar = np.cumprod(1 - beta)
    t = torch.arange(1, steps + 1, dtype=F64) / steps
    assert np.allclose(s.alpha(t) ** 2, alpha_bar, rtol=1e-10, atol=0)
    assert np.allclose(s.sigma(t) ** 2, 1 - alpha_bar, rtol=1e-10, atol=0)


def test_ddpm_linear_ends_where_the_paper_ends():
    s = schedule("ddpm_linear")
    assert float(s.alpha(torch.tensor(1.0, dtype=F64)) ** 2) == pytest.approx(4.0358e-5, rel=1e-4)


def test_vp_linear_is_the_integral_of_beta():
    s = schedule("vp_linear")
    for t in (1e-4, 0.1, 0.5, 1.0):
        integral, _ = quad(lambda u: 0.1 + u * (20 - 0.1), 0, t)
        assert float(s.alpha(torch.tensor(t, dtype=F64))) == pytest.approx(math.exp(-integral / 2), rel=1e-12)
        assert float(s.sigma(torch.tensor(t, dtype=F64))) == pytest.approx(math.sqrt(-math.expm1(-integral)), rel=1e-12)


def test_the_table_and_the_continuous_process_are_two_schedules():
    t = torch.linspace(0.1, 1, 50, dtype=F64)
    ratio = (schedule("ddpm_linear").alpha(t) / schedule("vp_linear").alpha(t)) ** 2
    assert 0.05 < float((ratio - 1).abs().max()) < 0.09


def test_cosine_is_equation_17():
    s, t = schedule("cosine"), torch.linspace(0, 1, 101, dtype=F64)
    f = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    assert torch.allclose(s.alpha(t) ** 2, f / f[0], rtol=1e-10, atol=1e-30)
    assert torch.allclose(s.sigma(t) ** 2, 1 - f / f[0], rtol=1e-10, atol=1e-14)


def test_ve_and_rectified_flow_are_their_paths():
    t = torch.tensor([0.01, 0.5, 1.0], dtype=F64)
    assert torch.equal(schedule("ve").alpha(t), torch.ones(3, dtype=F64))
    assert torch.equal(schedule("ve").sigma(t), t)
    assert torch.equal(schedule("rectified_flow").alpha(t), 1 - t)
    assert torch.equal(schedule("rectified_flow").sigma(t), t)


def test_sigmoid_is_the_difference_of_sigmoids():
    for start, end, tau in ((-3.0, 3.0, 1.0), (0.0, 3.0, 0.7)):
        s, t = schedule("sigmoid", start=start, end=end, tau=tau), torch.linspace(0, 1, 101, dtype=F64)
        value = torch.sigmoid((start + t * (end - start)) / tau)
        alpha_bar = (value[-1] - value) / (value[-1] - value[0])
        assert torch.allclose(s.alpha(t) ** 2, alpha_bar, rtol=1e-10, atol=1e-14)
        assert torch.allclose(s.sigma(t) ** 2, 1 - alpha_bar, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("steps", [1000, 50])
def test_zero_terminal_snr_is_algorithm_1_of_lin(steps):
    plain = schedule("ddpm_linear", steps=steps, beta_end=0.015)
    s = schedule("ddpm_linear", steps=steps, beta_end=0.015, zero_terminal_snr=True)
    t = torch.arange(1, steps + 1, dtype=F64) / steps
    root = plain.alpha(t)
    wanted = (root - root[-1]) * root[0] / (root[0] - root[-1])
    assert torch.allclose(s.alpha(t), wanted, rtol=1e-12, atol=1e-15)
    assert float(s.alpha(t[-1])) < 1e-17 and float(s.sigma(t[-1])) == 1


@pytest.mark.parametrize("name", ["cosine", "rectified_flow"])
def test_shift_multiplies_the_noise(name):
    plain, shifted = schedule(name), schedule(name, shift=4.0)
    t = times(plain)[:-1]
    lowered = snr(plain, t).log() + 2 * math.log(1 / 4)  # Hoogeboom et al. 2023: log SNR + 2 ln(d_ref / d)
    assert torch.allclose(snr(shifted, t).log(), lowered, rtol=1e-9, atol=1e-9)
    assert float(shifted.alpha(torch.tensor(1.0))) == 0 and float(shifted.sigma(torch.tensor(1.0))) == 1


def test_shifted_flow_is_the_clock_of_sd3_on_the_straight_path():
    plain, shifted, t = (
        schedule("rectified_flow"),
        schedule("rectified_flow", shift=3.0),
        times(schedule("rectified_flow")),
    )
    moved = 3 * t / (1 + 2 * t)  # Esser et al. 2024, eq. 23
    assert torch.allclose(shifted.sigma(t), moved) and torch.allclose(shifted.alpha(t), 1 - moved)
    assert torch.allclose(shifted.noise_cond(t), plain.noise_cond(moved))


# --- properties of the shipped schedules; tests/contracts.py has those of every one -----------------------------


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("cosine", {"shift": 4.0}),
        ("rectified_flow", {"shift": 3.0}),
        ("sigmoid", {"start": 0.0, "tau": 0.7}),
        ("ddpm_linear", {"steps": 50, "beta_end": 0.015}),
    ],
)
def test_time_at_inverts_with_other_settings(name, changes):
    s = schedule(name, **changes)
    t = times(s)
    assert torch.allclose(s.time_at(s.sigma(t) / s.alpha(t)), t, rtol=1e-9)


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
def test_single_precision_keeps_six_digits_near_data(name):
    s = schedule(name)
    t = torch.linspace(s.t_min, 20 * s.t_min, 50, dtype=F64)
    assert torch.allclose(s.sigma(t.float()).double(), s.sigma(t.float().double()), rtol=5e-6, atol=0)


@pytest.mark.parametrize("name", ["ddpm_linear", "vp_linear", "cosine", "sigmoid"])
def test_variance_is_preserved(name):
    s = schedule(name)
    assert torch.allclose(s.alpha(times(s)) ** 2 + s.sigma(times(s)) ** 2, torch.ones(257, dtype=F64), rtol=1e-12)


def test_time_at_answers_infinity_with_the_end():
    for name in ("vp_linear", "cosine", "sigmoid", "rectified_flow", "ddpm_linear"):
        assert float(schedule(name).time_at(torch.tensor(math.inf, dtype=F64))) == pytest.approx(1.0)


# --- the Gaussian facts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
def test_transition_carries_the_marginal_at_s_to_the_marginal_at_t(name):
    s = schedule(name)
    early, late = times(s, 40)[:-1], times(s, 40)[1:]
    gain, variance = transition(s, early, late)
    assert (variance > 0).all()
    assert torch.allclose(gain * s.alpha(early), s.alpha(late), rtol=1e-12)
    assert torch.allclose((gain * s.sigma(early)) ** 2 + variance, s.sigma(late) ** 2, rtol=1e-12)


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
def test_posterior_is_the_conditional_of_the_joint_gaussian(name):
    s = schedule(name)
    for i, j in ((0, 20), (5, 6), (10, 39)):
        early, late = times(s, 40)[i], times(s, 40)[j]
        gain, added = transition(s, early, late)
        # given x0, (x_s, x_t) is Gaussian with these moments; condition x_s on x_t by Schur's complement
        var_s = s.sigma(early) ** 2
        covariance = gain * var_s
        var_t = gain**2 * var_s + added
        slope = covariance / var_t
        c_x, c_0, variance = posterior(s, early, late)
        assert torch.allclose(c_x, slope, rtol=1e-10)
        assert torch.allclose(c_0, s.alpha(early) - slope * s.alpha(late), rtol=1e-9, atol=1e-12)
        assert torch.allclose(variance, var_s - slope * covariance, rtol=1e-8, atol=1e-14)


def test_posterior_is_ddpm_equation_7():
    s = schedule("ddpm_linear")
    beta = np.linspace(1e-4, 0.02, 1000)
    bar = np.cumprod(1 - beta)
    t = torch.arange(2, 1001, dtype=F64) / 1000
    c_x, c_0, variance = posterior(s, t - 1e-3, t)
    now, before = slice(1, None), slice(None, -1)
    assert np.allclose(c_x, np.sqrt(1 - beta[now]) * (1 - bar[before]) / (1 - bar[now]), rtol=1e-9)
    assert np.allclose(c_0, np.sqrt(bar[before]) * beta[now] / (1 - bar[now]), rtol=1e-6)
    assert np.allclose(variance, beta[now] * (1 - bar[before]) / (1 - bar[now]), rtol=1e-6)


def test_posterior_ignores_pure_noise():
    s = schedule("rectified_flow")
    c_x, c_0, variance = posterior(s, torch.tensor(0.7, dtype=F64), torch.tensor(1.0, dtype=F64))
    assert float(c_x) == 0
    assert float(c_0) == pytest.approx(0.3)
    assert float(variance) == pytest.approx(0.49)


# --- what training may draw ---------------------------------------------------------------------------------


def test_snap_maps_uniform_times_to_uniform_entries():
    s = schedule("ddpm_linear", steps=10, beta_end=0.009)
    u = (torch.arange(1000, dtype=F64) + 0.5) / 1000
    entries = torch.round(s.snap(s.t_min + (s.t_max - s.t_min) * u) * 10).long()
    assert entries.bincount().tolist() == [0] + [100] * 10
    assert torch.allclose(s.noise_cond(entries / 10), (entries - 1) * 100.0)


@pytest.mark.parametrize("name", [name for name in SCHEDULE_NAMES if isinstance(schedule(name), Continuous)])
def test_snap_leaves_continuous_times_alone(name):
    s = schedule(name)
    assert torch.equal(s.snap(times(s)), times(s))


# --- time grids ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
@pytest.mark.parametrize("spacing", ["auto", "uniform", "quadratic", "karras", "logsnr"])
@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_grids_fall_from_t_max_to_data(name, spacing, steps):
    s = schedule(name)
    ts = grid(s, spacing=spacing, steps=steps)
    assert ts.shape == (steps + 1,) and ts.dtype == F64
    assert ts[0] == s.t_max and ts[-1] == 0
    assert (ts.diff() < 0).all()
    assert (ts[:-1] >= s.t_min * (1 - 1e-12)).all()


def test_karras_grid_is_equation_5():
    i = np.arange(18)
    sigmas = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert np.allclose(grid(schedule("ve"), steps=18), [*sigmas, 0], rtol=1e-12)


def test_logsnr_grid_has_equal_steps_in_log_sigma_over_alpha():
    s = schedule("vp_linear")
    ts = grid(s, spacing="logsnr", steps=20, sigma_max=1e3)[:-1]
    steps = (s.sigma(ts) / s.alpha(ts)).log().diff()
    assert torch.allclose(steps, steps[:1].expand(19), rtol=1e-8)


def test_uniform_grid_of_the_table_hits_its_entries():
    ts = grid(schedule("ddpm_linear"), steps=50)
    assert torch.allclose(ts * 1000, torch.arange(1000, -1, -20, dtype=F64))


def test_quadratic_grid_is_uniform_in_the_root():
    ts = grid(schedule("vp_linear"), spacing="quadratic", steps=10)
    assert torch.allclose(ts.sqrt(), torch.linspace(1, 0, 11, dtype=F64))


def test_an_explicit_list_is_taken_as_it_is():
    gits = (80.0, 10.9836, 3.8811, 1.584, 0.5666, 0.1698, 0.002)
    assert torch.allclose(grid(schedule("ve"), sigmas=gits), torch.tensor([*gits, 0], dtype=F64), rtol=1e-12)
    flow = schedule("rectified_flow")
    ts = grid(flow, sigmas=(math.inf, 3.0, 1.0))
    assert ts.tolist() == pytest.approx([1, 0.75, 0.5, 0])


@pytest.mark.parametrize("sigmas", [(), (1.0, 2.0), (3.0, 3.0), (1.0, 0.0), (90.0, 1.0), (1.0, 0.001), (math.nan,)])
def test_an_explicit_list_must_fall_within_the_trained_range(sigmas):
    with pytest.raises(UsageError, match=r"sigmas=\[.*(must fall|must lie in \[0\.002, 80\])"):
        grid(schedule("ve"), sigmas=sigmas)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"steps": 0}, "steps"),
        ({"rho": 0.0}, "rho"),
        ({"sigma_max": -1.0}, "sigma_max"),
        ({"spacing": "log"}, "spacing"),
    ],
)
def test_grids_refuse(changes, word):
    with pytest.raises(UsageError, match=word):
        grid(schedule("ve"), **changes)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ddpm_linear", {"steps": 0}),
        ("ddpm_linear", {"beta_start": 0.03}),
        ("vp_linear", {"beta_min": 30.0}),
        ("cosine", {"s": 1.0}),
        ("ve", {"sigma_min": 100.0}),
        ("cosine", {"shift": 0.0}),
        ("sigmoid", {"tau": 0.0}),
        ("sigmoid", {"start": 3.0}),
        ("rectified_flow", {"shift": -1.0}),
        ("rectified_flow", {"t_max": 1.5}),
        ("rectified_flow", {"t_min": 0.0}),
    ],
)
def test_schedules_refuse_numbers_out_of_range(name, changes):
    with pytest.raises(UsageError, match=f"schedule.*{next(iter(changes))}"):
        schedule(name, **changes)
