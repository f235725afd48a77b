"""Metrics on small arrays whose values follow by hand, and the way each moves under damage."""

import math

import pytest
import torch
from features import features

from diffgen.core.errors import UsageError
from diffgen.evaluation import metrics
from diffgen.evaluation.metrics import (
    density_coverage,
    inception_score,
    kernel_distance,
    memorisation_ratio,
    nearest_neighbours,
    precision_recall,
    squared_mmd,
)


def test_squared_mmd_by_hand():
    """d = 1, x = {0, 1}, y = {2, 3}: k(0,1) = 1, k(2,3) = 343, mean k(x,y) = (1 + 1 + 27 + 64)/4."""
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [3.0]])
    assert squared_mmd(x, y) == pytest.approx(1 + 343 - 2 * 93 / 4)


def test_kernel_distance_is_unbiased():
    """Equal distributions: the mean is 0 to within its error, where the biased estimate would be far off."""
    real, fake = features(4000, 8, seed=0), features(4000, 8, seed=1)
    mean, error = kernel_distance(real, fake, subsets=40, size=100, seed=0)
    assert abs(mean) < 4 * error
    assert error > 0


def test_the_error_of_the_kernel_distance_is_its_spread_over_new_images():
    """Twenty pairs of sets: their distances spread as much as each one says."""
    pairs = [(features(300, 4, seed=i), features(300, 4, seed=100 + i, shift=0.5)) for i in range(20)]
    found = torch.tensor([kernel_distance(*pair, subsets=20, size=100, seed=0) for pair in pairs])
    assert float(found[:, 0].std()) == pytest.approx(float(found[:, 1].mean()), rel=0.4)


def test_kernel_distance_follows_its_seed():
    real, fake = features(200, 4, seed=0), features(200, 4, seed=1)
    first = kernel_distance(real, fake, subsets=5, size=50, seed=3)
    assert first == kernel_distance(real, fake, subsets=5, size=50, seed=3)
    assert first != kernel_distance(real, fake, subsets=5, size=50, seed=4)


@pytest.mark.parametrize(("subsets", "size", "word"), [(1, 10, "subsets=1"), (5, 21, "size=21"), (5, 1, "size=1")])
def test_kernel_distance_refuses_what_does_not_fit(subsets, size, word):
    with pytest.raises(UsageError, match=word):
        kernel_distance(torch.zeros(20, 3), torch.zeros(30, 3), subsets=subsets, size=size, seed=0)


def test_inception_score_of_sure_and_even_predictions_is_the_number_of_classes():
    logits = 200.0 * torch.eye(4).repeat(25, 1)
    assert inception_score(logits, splits=1, seed=0) == (pytest.approx(4.0), 0.0)


def test_inception_score_of_a_classifier_that_knows_nothing_is_one():
    mean, std = inception_score(torch.ones(40, 5), splits=10, seed=0)
    assert (mean, std) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-12))


def test_inception_score_does_not_mind_images_sorted_by_class():
    """Nor cycled ones: parts are drawn at random."""
    sure = 200.0 * torch.eye(10)
    for logits in (sure.repeat(100, 1), sure.repeat_interleave(100, 0)):
        assert inception_score(logits, splits=10, seed=0)[0] > 9.4


def test_precision_and_recall_by_hand():
    """Real at 0, 1, 3: balls of radius 1, 1, 2. Fakes at 0.5, 4.9, 9: radii 4.4, 4.1, 4.1."""
    real, fake = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.5], [4.9], [9.0]])
    found = precision_recall(real, fake, k=1)
    assert found.precision == pytest.approx(2 / 3)  # 9 is in no ball
    assert found.recall == 1.0  # the ball around 0.5 reaches to 4.9
    far = precision_recall(real, fake + 100, k=1)
    assert far == (0.0, 0.0)


def test_density_and_coverage_by_hand():
    """Balls as above: 0.5 lies in the balls of 0 and 1, 4.9 in that of 3, 9 in none."""
    real, fake = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.5], [4.9], [9.0]])
    assert density_coverage(real, fake, k=1) == (pytest.approx(1.0), pytest.approx(1.0))
    assert density_coverage(real, fake[1:], k=1) == (pytest.approx(0.5), pytest.approx(1 / 3))


def test_identical_sets_are_perfect():
    x = features(300, 16, seed=0)
    assert precision_recall(x, x, k=3) == (1.0, 1.0)
    assert density_coverage(x, x, k=5) == (1.0, 1.0)


def test_blocks_do_not_change_the_result(monkeypatch):
    real, fake = features(200, 8, seed=0), features(150, 8, seed=1, shift=0.1)
    whole = (*precision_recall(real, fake, k=3), *density_coverage(real, fake, k=5))
    monkeypatch.setattr(metrics, "BLOCK", 7 * 200)
    assert (*precision_recall(real, fake, k=3), *density_coverage(real, fake, k=5)) == whole


def test_nearest_neighbours_agree_with_all_distances():
    query, reference = features(30, 5, seed=0), features(50, 5, seed=1)
    distances, entries = nearest_neighbours(query, reference, k=4)
    exact = (query[:, None] - reference).square().sum(-1).sqrt()
    torch.testing.assert_close(distances, exact.sort(1).values[:, :4])
    torch.testing.assert_close(exact.gather(1, entries), distances)


def test_far_from_the_origin_distances_keep_their_digits():
    x = features(40, 5, seed=0)
    distances, _ = nearest_neighbours(x + 1e5, x + 1e5, k=2)
    torch.testing.assert_close(distances, nearest_neighbours(x, x, k=2)[0], rtol=1e-7, atol=1e-7)


def test_copies_are_told_from_new_images():
    train = features(400, 16, seed=0)
    new = memorisation_ratio(features(100, 16, seed=1), train)
    near = memorisation_ratio(train[:100] + 1e-3 * features(100, 16, seed=2), train)
    assert (new > 0.5).all()
    assert (near < metrics.COPY).all()
    assert (memorisation_ratio(train[:50], train) == 0).all()
    assert (memorisation_ratio(train[:50], torch.cat([train, train])) == 0).all()  # twice in the training set


@pytest.mark.parametrize("call", [precision_recall, density_coverage])
def test_neighbourhoods_that_do_not_fit_are_refused(call):
    with pytest.raises(UsageError, match=r"k=5 must be in \[1, 4\]"):
        call(torch.rand(5, 2), torch.rand(9, 2), k=5)
    with pytest.raises(UsageError, match="features must be"):
        call(torch.rand(9, 2), torch.rand(9, 3), k=3)


class TestEachMetricMovesTheRightWay:
    """On features of two classes, far apart; the damage is done to the features themselves."""

    n, d = 400, 12

    def sets(self) -> tuple[torch.Tensor, torch.Tensor]:
        def classes(seed: int) -> torch.Tensor:
            x = features(self.n, self.d, seed=seed)
            return x + 6.0 * (torch.arange(self.n) % 2)[:, None]

        return classes(0), classes(1)

    def all(self, real: torch.Tensor, fake: torch.Tensor) -> dict[str, float]:
        return {
            "kd": kernel_distance(real, fake, subsets=20, size=100, seed=0)[0],
            **precision_recall(real, fake, k=3)._asdict(),
            **density_coverage(real, fake, k=5)._asdict(),
        }

    def test_noise(self):
        real, fake = self.sets()
        good, bad = self.all(real, fake), self.all(real, fake + 4 * (features(self.n, self.d, seed=9) - 0.5))
        assert bad["kd"] > good["kd"]
        assert bad["precision"] < 0.5 * good["precision"]
        assert bad["density"] < 0.5 * good["density"]
        assert bad["coverage"] < 0.5 * good["coverage"]

    def test_a_dropped_class(self):
        real, fake = self.sets()
        good, bad = self.all(real, fake), self.all(real, fake[::2])
        assert bad["kd"] > good["kd"] + 1
        assert bad["recall"] < 0.6 * good["recall"]
        assert bad["coverage"] < 0.6 * good["coverage"]
        assert bad["precision"] > 0.9 * good["precision"]

    def test_duplicates(self):
        real, fake = self.sets()
        good, bad = self.all(real, fake), self.all(real, fake[:20].repeat(self.n // 20, 1))
        assert bad["recall"] == 0  # balls without a radius
        assert bad["coverage"] < 0.5 * good["coverage"]
        assert bad["precision"] == pytest.approx(good["precision"], abs=0.15)

    def test_a_blur_of_all_to_the_mean(self):
        """Less variety than the data, at high density: what guidance does to samples."""
        real, fake = self.sets()
        classes = 6.0 * (torch.arange(self.n) % 2)[:, None]
        centre = (fake - classes).mean(0) + classes
        good, bad = self.all(real, fake), self.all(real, centre + 0.5 * (fake - centre))
        assert bad["kd"] > good["kd"]
        assert bad["density"] > 1.5 * good["density"]
        assert bad["recall"] < 0.5 * good["recall"]


def test_inception_score_falls_with_a_dropped_class():
    logits = 8 * torch.eye(10).repeat(60, 1)
    kept = logits[torch.arange(600) % 10 != 3]
    full, less = (inception_score(x, splits=1, seed=0)[0] for x in (logits, kept))
    assert less == pytest.approx(full * 0.9, rel=0.02)
    assert math.isfinite(full)
