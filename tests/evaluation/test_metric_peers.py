"""The metrics against the published implementations, on fixed feature arrays, to 1e-4 relative."""

import numpy as np
import pytest
import torch
from features import features

from diffgen.core.randomness import generator
from diffgen.evaluation.metrics import density_coverage, inception_score, kernel_distance, precision_recall, squared_mmd
from diffgen.evaluation.statistics import Moments, frechet_distance

REAL = features(700, 48, seed=0)
FAKES = {
    "near": features(500, 48, seed=1, shift=0.02),
    "far": features(500, 48, seed=2, shift=0.3, scale=1.5),
    "narrow": features(500, 48, seed=3, scale=0.7),
}
LOGITS = 3 * torch.randn(500, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

close = pytest.approx


def frechet(fake: torch.Tensor) -> float:
    return frechet_distance(Moments.of(REAL).gaussian(), Moments.of(fake).gaussian())


@pytest.mark.parametrize("name", FAKES)
class TestTorchFidelity:
    def test_frechet_distance(self, name):
        fid = pytest.importorskip("torch_fidelity.metric_fid")
        a, b = (fid.fid_features_to_statistics(x) for x in (REAL, FAKES[name]))
        theirs = fid.fid_statistics_to_metric(a, b, verbose=False)[fid.KEY_METRIC_FID]
        assert frechet(FAKES[name]) == close(theirs, rel=1e-6)

    def test_kernel_distance(self, name):
        """Subsets of all images: there is only one, so the draws do not matter."""
        kid = pytest.importorskip("torch_fidelity.metric_kid")
        real, fake = REAL[:500], FAKES[name]
        theirs = kid.kid_features_to_metric(real, fake, kid_subsets=2, kid_subset_size=500, verbose=False)
        mean, error = kernel_distance(real, fake, subsets=2, size=500, seed=0)
        assert mean == close(theirs[kid.KEY_METRIC_KID_MEAN], rel=1e-6)
        assert error == float("inf"), "all images in every subset: the spread over subsets says nothing"

    def test_precision_and_recall(self, name):
        prc = pytest.importorskip("torch_fidelity.metric_prc")
        options = {"prc_neighborhood": 3, "prc_batch_size": 1000, "save_cpu_ram": False, "verbose": False}
        theirs = prc.prc_features_to_metric(FAKES[name], REAL, **options)
        expected = (theirs[prc.KEY_METRIC_PRECISION], theirs[prc.KEY_METRIC_RECALL])
        assert precision_recall(REAL, FAKES[name], k=3) == close(expected, rel=1e-6)


@pytest.mark.parametrize("name", FAKES)
@pytest.mark.parametrize("k", [3, 5])
def test_neighbourhoods_agree_with_the_code_of_naeem_et_al(name, k, capsys):
    prdc = pytest.importorskip("prdc")
    theirs = prdc.compute_prdc(REAL.numpy(), FAKES[name].numpy(), nearest_k=k)
    pr, dc = precision_recall(REAL, FAKES[name], k=k), density_coverage(REAL, FAKES[name], k=k)
    assert {**pr._asdict(), **dc._asdict()} == close({key: float(value) for key, value in theirs.items()}, rel=1e-6)
    assert pr.precision > 0 and 0 < dc.coverage < 1, "arrays on which the comparison says something"


@pytest.mark.parametrize("name", FAKES)
def test_frechet_and_kernel_distance_agree_with_torchmetrics(name):
    fid = pytest.importorskip("torchmetrics.image.fid")
    kid = pytest.importorskip("torchmetrics.image.kid")
    a, b = Moments.of(REAL).gaussian(), Moments.of(FAKES[name]).gaussian()
    assert frechet(FAKES[name]) == close(float(fid._compute_fid(a.mean, a.cov, b.mean, b.cov)), rel=1e-6)
    assert squared_mmd(REAL[:500], FAKES[name]) == close(float(kid.poly_mmd(REAL[:500], FAKES[name])), rel=1e-6)


@pytest.mark.parametrize("splits", [1, 10])
def test_inception_score(splits):
    """In the order that our seed shuffles to."""
    isc = pytest.importorskip("torch_fidelity.metric_isc")
    order = torch.randperm(len(LOGITS), generator=generator("cpu", 0, "splits"))
    theirs = isc.isc_features_to_metric(LOGITS[order], splits=splits, shuffle=False)
    mean, std = inception_score(LOGITS, splits=splits, seed=0)
    assert mean == close(theirs[isc.KEY_METRIC_ISC_MEAN], rel=1e-6)
    assert std == close(theirs[isc.KEY_METRIC_ISC_STD], rel=1e-6, abs=1e-9)
    assert np.isfinite(mean)
