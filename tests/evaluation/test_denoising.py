"""Denoising errors by noise level: their size for a known model, and what they say of memorisation."""

import pytest
import torch
from cases import SCHEDULE_NAMES, finite, schedule

from diffgen.core.errors import UsageError
from diffgen.evaluation.denoising import compare, denoising_errors, noise_levels

NSRS = [0.1, 0.5, 2.0]
STD = 0.5
X0 = STD * torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
IMAGES = list(range(20))


def wiener(s):
    def denoise(x, t):
        alpha, sigma = s.alpha(t), s.sigma(t)
        return alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * x

    return denoise


def errors(denoise, s, x0=X0, images=IMAGES, nsrs=NSRS, seed=0):
    return denoising_errors(denoise, s, x0, images, nsrs, sigma_data=STD, seed=seed)


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
def test_the_best_linear_denoiser_of_white_data_has_error_one_at_all_levels(name):
    s = finite(name)
    found = errors(wiener(s), s)
    assert found.shape == (20, 3) and found.dtype == torch.float64
    torch.testing.assert_close(found.mean(0), torch.ones(3, dtype=torch.float64), rtol=0.1, atol=0)


def test_all_schedules_measure_the_same():
    one, other = (errors(wiener(s), s) for s in (schedule("vp_linear"), schedule("rectified_flow")))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=0)


def test_noise_is_a_function_of_seed_and_image():
    s = schedule("cosine")
    torch.testing.assert_close(errors(wiener(s), s, X0[[5, 2]], [5, 2]), errors(wiener(s), s)[[5, 2]])
    assert not torch.equal(errors(wiener(s), s, seed=1), errors(wiener(s), s))


def test_a_model_that_knows_its_training_images_by_heart_shows_a_gap():
    s = schedule("cosine")
    train, test = X0[:10], X0[10:]

    def nearest(x, t):
        y = (x / s.alpha(t)).flatten(1)
        return train[torch.cdist(y, train.flatten(1)).argmin(1)]

    rows = compare(errors(nearest, s, train, IMAGES[:10]), errors(nearest, s, test, IMAGES[10:]), NSRS)
    assert [row.nsr for row in rows] == NSRS
    assert all(row.gap > 10 * row.error > 0 for row in rows[:2])
    honest = compare(errors(wiener(s), s, train, IMAGES[:10]), errors(wiener(s), s, test, IMAGES[10:]), NSRS)
    assert all(abs(row.gap) < 4 * row.error for row in honest)


def test_levels_are_even_in_their_logarithm():
    assert noise_levels(0.01, 100, 5) == pytest.approx([0.01, 0.1, 1, 10, 100])
    with pytest.raises(UsageError, match="0 < low < high"):
        noise_levels(2, 1, 5)


@pytest.mark.parametrize("nsr", [1e-9, 1e9])
@pytest.mark.parametrize("name", ["ddpm_linear", "ve", "vp_linear"])
def test_levels_that_the_model_was_not_trained_on_are_refused(name, nsr):
    s = schedule(name)
    with pytest.raises(UsageError, match="lies outside this schedule"):
        errors(wiener(s), s, nsrs=[nsr])
