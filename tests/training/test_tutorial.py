import re
import sys

import pytest
import torch
from cases import trained
from rows import row, schedule
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from diffgen.cli import train as train_command
from diffgen.core.errors import UsageError
from diffgen.data.kinds import Vectors
from diffgen.data.mixture import mixture
from diffgen.diffusion.denoiser import Denoiser
from diffgen.diffusion.guidance import Guidance
from diffgen.diffusion.parameterizations import PARAMETERIZATIONS
from diffgen.sampling.drawing import Sampling

FLOW = schedule("rectified_flow")


def data(n=64, dim=10, components=4, std=0.5, seed=0):
    return mixture(n=n, dim=dim, components=components, std=std, seed=seed)


def exact_sampling(vectors):
    """Sampling with the exact posterior mean in place of a network."""

    def network(x, noise_cond, label):
        t = noise_cond.double()[0] / 1000
        return vectors.posterior_mean(x, FLOW.alpha(t), FLOW.sigma(t)).float()

    denoiser = Denoiser(network, FLOW, PARAMETERIZATIONS["x0"], sigma_data=1.0, scale_input=False)
    ancestral = row("sampler", "ancestral", steps=100, clip=False)
    whole = trained(denoiser, vectors.shape.size, Vectors())
    return Sampling.from_config(whole, ancestral, guidance=Guidance(scale=1.0), seed=0, device=torch.device("cpu"))


# --- the data and the exact answer ----------------------------------------------------------------


def test_vectors_have_the_moments_of_the_mixture():
    vectors, n = data(n=100_000), 100_000
    centred = vectors.means - vectors.means.mean(0)
    covariance = 0.25 * torch.eye(10, dtype=torch.float64) + centred.T @ centred / 4
    values = vectors.values.double()
    torch.testing.assert_close(
        values.mean(0), vectors.means.mean(0), atol=5 * (covariance.max() / n).sqrt().item(), rtol=0
    )
    torch.testing.assert_close(torch.cov(values.T), covariance, atol=5 * covariance.max().item() / n**0.5, rtol=0)
    assert torch.equal(vectors.values, data(n=100_000).values)
    assert not torch.equal(vectors.means, data(seed=1).means)


def test_posterior_mean_of_one_gaussian_is_the_regression_line():
    vectors = data(components=1, std=0.7)
    x, alpha, sigma = torch.randn(5, 10, dtype=torch.float64), torch.tensor(0.6), torch.tensor(0.8)
    gain = 0.6 * 0.49 / (0.36 * 0.49 + 0.64)
    torch.testing.assert_close(
        vectors.posterior_mean(x, alpha, sigma), vectors.means + gain * (x - 0.6 * vectors.means)
    )


@pytest.mark.parametrize("t", [0.02, 0.3, 0.6, 0.95])
def test_posterior_mean_agrees_with_the_score(t):
    """Tweedie: alpha E[x0|x] = x + sigma^2 grad log p(x), with the density from torch.distributions."""
    vectors = data()
    alpha, sigma = torch.tensor(1 - t, dtype=torch.float64), torch.tensor(t, dtype=torch.float64)
    x0 = vectors.fresh(50, 0).double()
    x = (alpha * x0 + sigma * torch.randn(50, 10, dtype=torch.float64)).requires_grad_()
    components = Normal(alpha * vectors.means, ((alpha * 0.5) ** 2 + sigma**2).sqrt())
    density = MixtureSameFamily(Categorical(torch.ones(4, dtype=torch.float64)), Independent(components, 1))
    (score,) = torch.autograd.grad(density.log_prob(x).sum(), x)
    torch.testing.assert_close(vectors.posterior_mean(x, alpha, sigma), (x + sigma**2 * score) / alpha)


def test_posterior_mean_at_both_ends():
    vectors, one, zero = data(), torch.tensor(1.0), torch.tensor(0.0)
    x = vectors.values.double()
    torch.testing.assert_close(vectors.posterior_mean(x, one, torch.tensor(1e-6)), x, atol=1e-9, rtol=0)
    torch.testing.assert_close(vectors.posterior_mean(x, zero, one), vectors.means.mean(0).expand_as(x))


@pytest.mark.parametrize("bad", [{"n": 0}, {"dim": 0}, {"components": 0}, {"std": 0.0}, {"seed": -1}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(UsageError, match=next(iter(bad))):
        mixture(**{"n": 8, "dim": 10, "components": 4, "std": 0.5, "seed": 0, **bad})


# --- the report -----------------------------------------------------------------------------------


def test_exact_network_has_the_exact_error():
    for t, network, exact, mean in data().reconstruction(exact_sampling(data())):
        assert network == pytest.approx(exact, rel=1e-5)
        assert 0 < exact < mean and 0 < t < 1


def test_errors_of_one_gaussian_are_its_conditional_variance():
    vectors = data(components=1, std=0.7)
    rows = vectors.reconstruction(exact_sampling(vectors))
    assert [row[0] for row in rows] == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    for t, _, exact, mean in rows:
        closed_form = (0.7 * t) ** 2 / ((1 - t) ** 2 * 0.49 + t**2)
        assert exact == pytest.approx(closed_form, rel=5 * (2 / 40_960) ** 0.5)
        assert mean == pytest.approx(0.49, rel=5 * (2 / 40_960) ** 0.5)


def test_no_other_estimate_beats_the_posterior_mean():
    vectors = data()
    x0, z = vectors.pairs(4096)
    alpha = sigma = torch.tensor(0.5, dtype=torch.float64)
    exact = vectors.posterior_mean(alpha * x0 + sigma * z, alpha, sigma)
    error = (exact - x0).square().mean()
    nearest = vectors.means[torch.cdist(exact, vectors.means).argmin(1)]
    for other in (0.97 * exact, exact + 0.05, nearest, alpha * x0 + sigma * z):
        assert (other - x0).square().mean() > error


def test_report_with_the_exact_network(tmp_path):
    vectors = data()
    text = vectors.preview(exact_sampling(vectors), [-1] * 500, None, tmp_path / "7.png")
    assert (tmp_path / "7.txt").read_text() == text + "\n"
    assert len(re.findall(r" 1\.000$", text, re.MULTILINE)) == 5
    assert (tmp_path / "7-reconstruction.png").exists() and (tmp_path / "7.png").exists()
    assert float(re.search(r"([\d.]+) times", text)[1]) < 1.3  # ancestral sampling with the exact denoiser gives data


# --- the run --------------------------------------------------------------------------------------


def run(monkeypatch, capsys, *overrides):
    monkeypatch.setattr(sys, "argv", ["diffgen-train", "experiment=tutorial", *overrides])
    assert train_command.main() == 0
    out = capsys.readouterr().out
    losses = {float(e): float(loss) for e, loss in re.findall(r"epoch ([\d.]+) .*?loss ([\d.]+)", out)}
    rows = [
        tuple(map(float, row))
        for row in re.findall(r"^ +(0\.\d+) +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)$", out, re.MULTILINE)
    ]
    return losses, rows, out


def test_tutorial_in_short(monkeypatch, capsys, tmp_path):
    """Eight epochs: a line for each, a falling loss, and a reconstruction that is close to the exact one."""
    short = ["train.images=65_536", "preview.n=100", "sampler.steps=10", f"run_dir={tmp_path}"]
    losses, rows, out = run(monkeypatch, capsys, *short)
    assert list(losses) == list(range(1, 9))
    assert losses[8] < 0.75 * losses[1]
    assert "rectified_flow + x0 + unit + uniform, sampled by ancestral" in out and "8,192 vectors 10," in out
    assert [row[0] for row in rows] == [0.1, 0.3, 0.5, 0.7, 0.9]
    for _, network, exact, mean, ratio in rows:
        assert 1 <= ratio < 1.7 and network < 1.05 * mean and network / exact == pytest.approx(ratio, rel=0.01)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_tutorial_in_full(monkeypatch, capsys, tmp_path):
    losses, rows, out = run(monkeypatch, capsys, f"run_dir={tmp_path}")
    assert list(losses) == list(range(1, 101))
    assert len(rows) == 5 and all(1 <= row[4] < 1.1 for row in rows)
    assert float(re.search(r"([\d.]+) times", out)[1]) < 1.5
