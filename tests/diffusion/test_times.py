"""Densities of t: their quantiles, and strata that cover them evenly."""

import math

import pytest
import torch
from cases import SCHEDULE_NAMES, config, schedule
from scipy.stats import norm

from diffgen.core.errors import UsageError
from diffgen.core.randomness import generator, uniforms
from diffgen.core.registry import bind
from diffgen.diffusion.times import TIMES

F64 = torch.float64


def density(name, **changes):
    return bind(TIMES, {**config("time", name), **changes})


QUANTILES = torch.tensor([0.05, 0.3, 0.5, 0.9], dtype=F64)


def test_uniform_covers_the_trained_interval():
    s = schedule("ve")
    ends = density("uniform")(torch.tensor([0.0, 0.5, 1.0], dtype=F64), s)
    assert ends.tolist() == pytest.approx([0.002, (0.002 + 80) / 2, 80])


def test_logit_normal_quantiles():
    t = density("logit_normal", mean=-0.6, std=1.6)(QUANTILES, schedule("rectified_flow"))
    wanted = [1 / (1 + math.exp(0.6 - 1.6 * norm.ppf(q))) for q in QUANTILES.tolist()]
    assert t.tolist() == pytest.approx(wanted, rel=1e-9)


def test_logit_normal_fills_the_trained_interval():
    t = density("logit_normal")(torch.tensor([0.5, 1 - 1e-9], dtype=F64), schedule("rectified_flow", t_max=0.8))
    assert t.tolist() == pytest.approx([0.4, 0.8], rel=0.01)


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
def test_edm_lognormal_quantiles_hold_on_every_clock(name):
    s = schedule(name)
    t = density("edm_lognormal")(QUANTILES, s)
    wanted = [math.exp(-1.2 + 1.2 * norm.ppf(q)) for q in QUANTILES.tolist()]
    assert (s.sigma(t) / s.alpha(t)).tolist() == pytest.approx(wanted, rel=1e-7)


def test_one_time_from_each_stratum_of_the_batch():
    n = 64
    u = uniforms(n, generator("cpu", 0, "test"), stratified=True)
    assert (u.sort().values * n).floor().tolist() == list(range(n))
    assert u.tolist() != u.sort().values.tolist()


def test_strata_estimate_a_mean_far_better_than_independent_draws():
    s, n = schedule("rectified_flow"), 64
    time = density("logit_normal")

    def spread(stratified):
        means = [
            time(uniforms(n, generator("cpu", seed, "test"), stratified=stratified), s).mean() for seed in range(200)
        ]
        return float(torch.stack(means).std())

    assert spread(False) == pytest.approx(0.2083 / math.sqrt(n), rel=0.2)  # std of the logit-normal density is 0.2083
    assert spread(True) < spread(False) / 10


def test_strata_visit_the_entries_of_a_table_equally():
    s = schedule("ddpm_linear", steps=16, beta_end=0.012)
    u = uniforms(64, generator("cpu", 0, "test"), stratified=True)
    entries = torch.round(s.snap(density("uniform")(u, s)) * 16).long()
    assert entries.bincount().tolist() == [0] + [4] * 16


def test_widths_must_be_positive():
    s = schedule("ve")
    with pytest.raises(UsageError, match=r"time\.std"):
        density("logit_normal", std=0.0)(QUANTILES, s)
    with pytest.raises(UsageError, match=r"time\.P_std"):
        density("edm_lognormal", P_std=-1.0)(QUANTILES, s)
