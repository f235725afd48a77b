"""Streaming moments and the Frechet distance against closed forms."""

import pytest
import torch
from features import features

from diffgen.core.errors import UsageError
from diffgen.evaluation.statistics import Gaussian, Moments, frechet_distance


def gaussian(mean: list[float], cov: torch.Tensor) -> Gaussian:
    return Gaussian(torch.tensor(mean, dtype=torch.float64), cov.double())


def fit(x: torch.Tensor) -> Gaussian:
    return Moments.of(x).gaussian()


@pytest.mark.parametrize("sizes", [[500], [1] * 500, [499, 1], [100, 250, 150]])
def test_moments_do_not_depend_on_the_split(sizes):
    x = 1000 + features(500, 6, seed=0)  # a mean that naive sums of squares would drown in
    parts = [Moments.of(part) for part in x.split(sizes)]
    mean, cov = sum(parts[1:], parts[0]).gaussian()
    torch.testing.assert_close(mean, x.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(cov, x.T.cov(), rtol=1e-11, atol=1e-13)


def test_moments_join_in_any_order():
    a, b, c = (Moments.of(features(n, 5, seed=n)) for n in (3, 40, 200))
    torch.testing.assert_close((a + (b + c)).scatter, ((c + a) + b).scatter, rtol=1e-12, atol=1e-12)


def test_moments_are_float64_whatever_the_features_are():
    x = features(64, 4, seed=0)
    torch.testing.assert_close(fit(x.float()).cov, x.float().double().T.cov(), rtol=1e-13, atol=0)


def test_one_image_has_no_covariance():
    with pytest.raises(UsageError, match="at least 2 images"):
        Moments.of(torch.zeros(1, 3)).gaussian()


def test_frechet_distance_of_gaussians_that_commute():
    """|m|^2 + sum (s_i - t_i)^2 when both covariances are diagonal, in any common rotation."""
    s, t = torch.tensor([1.0, 2.0, 0.5, 0.0]), torch.tensor([0.3, 2.5, 0.0, 1.0])
    turn, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    a = gaussian([0, 0, 0, 0], turn @ (s**2).double().diag() @ turn.T)
    b = gaussian([1, -2, 0, 0.5], turn @ (t**2).double().diag() @ turn.T)
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + 0.25 + float((s - t).square().sum()), rel=1e-7)


def test_frechet_distance_of_a_shear():
    """A = I, B = K K^T: tr(B^(1/2)) is the sum of K's singular values (here sqrt(5): s1 + s2 for det 1, |K|^2 = 3)."""
    shear = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    expected = 2 + 3 - 2 * 5**0.5
    assert frechet_distance(gaussian([0, 0], torch.eye(2)), gaussian([0, 0], shear @ shear.T)) == pytest.approx(
        expected
    )


@pytest.mark.parametrize("n", [20, 200])
def test_identical_sets_are_at_distance_zero_even_with_fewer_images_than_features(n):
    a = fit(features(n, 64, seed=0))
    assert frechet_distance(a, a) < 1e-11 * float(a.cov.trace())


def test_rank_deficient_covariances_agree_with_the_limit_of_full_ones():
    a, b = (fit(features(20, 64, seed=s, shift=s)) for s in (0, 1))
    jitter = 1e-10 * torch.eye(64, dtype=torch.float64)
    full = frechet_distance(Gaussian(a.mean, a.cov + jitter), Gaussian(b.mean, b.cov + jitter))
    assert frechet_distance(a, b) == pytest.approx(full, rel=1e-4)


def test_frechet_distance_is_symmetric_and_grows_with_the_shift():
    a, b, c = (fit(features(300, 16, seed=1, shift=s)) for s in (0, 0.3, 0.9))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)
    assert frechet_distance(a, b) < frechet_distance(a, c)
