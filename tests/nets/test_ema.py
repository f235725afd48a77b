"""The weight average against its closed forms."""

import pytest
import torch
from torch import nn

from diffgen.core.errors import UsageError
from diffgen.core.settings import section
from diffgen.nets.ema import EMA, HalfLife


class Scalar(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([value], dtype=torch.float64))


def average(values: list[float], batch: int, halflife: float, ramp: float, start: float = 0.0) -> float:
    """The average after steps of `batch` images whose weights are `values`."""
    model, averaged = Scalar(start), Scalar(start)
    ema = EMA(model, averaged, HalfLife(halflife, ramp))
    for step, value in enumerate(values):
        with torch.no_grad():
            model.w.fill_(value)
        ema.update((step + 1) * batch, batch)
    return averaged.w.item()


def test_decay_is_in_images() -> None:
    profile = HalfLife(1000, 1.0)
    assert profile.decay(images_seen=10**6, batch=1000) == pytest.approx(0.5)
    assert profile.decay(images_seen=10**6, batch=100) == pytest.approx(0.5**0.1)
    assert profile.decay(images_seen=10**6, batch=100) ** 10 == pytest.approx(
        profile.decay(images_seen=10**6, batch=1000)
    )


def test_ddpm_constant_is_a_halflife() -> None:
    """0.9999 a step of 128 images (Ho et al. 2020) is a half-life of 887,000 images."""
    assert HalfLife(887_000, 1.0).decay(10**8, 128) == pytest.approx(0.9999, abs=1e-6)


def test_ramp_shortens_the_halflife_early_on() -> None:
    profile = HalfLife(1000, 0.05)
    assert profile.decay(images_seen=2000, batch=100) == pytest.approx(0.5 ** (100 / 100))
    assert profile.decay(images_seen=20_000, batch=100) == pytest.approx(0.5 ** (100 / 1000))
    assert profile.decay(images_seen=10**9, batch=100) == pytest.approx(0.5 ** (100 / 1000))


def test_constant_weights_decay_towards_their_value() -> None:
    """start = 1, then zeros: what is left after n half-lives is 2^-n."""
    assert average([0.0] * 30, batch=100, halflife=1000, ramp=1.0, start=1.0) < 2.0**-3
    model, averaged = Scalar(0), Scalar(1)
    ema = EMA(model, averaged, HalfLife(1000, 1.0))
    for _ in range(30):
        ema.update(10**6, 100)
    assert averaged.w.item() == pytest.approx(2.0**-3)


def test_weights_of_the_past_are_the_closed_form() -> None:
    values = [1.0, -2.0, 0.5, 4.0]
    profile = HalfLife(50, 0.5)
    decays = [profile.decay((k + 1) * 10, 10) for k in range(4)]
    expected = sum(values[k] * (1 - decays[k]) * torch.tensor(decays[k + 1 :]).double().prod().item() for k in range(4))
    assert average(values, batch=10, halflife=50, ramp=0.5) == pytest.approx(expected)


def test_batch_size_does_not_matter_in_the_long_run() -> None:
    """The same trajectory in images, w = images, averaged with steps of 10 and of 40 images."""
    fine = average([10.0 * k for k in range(1, 4001)], batch=10, halflife=2000, ramp=1.0)
    coarse = average([40.0 * k for k in range(1, 1001)], batch=40, halflife=2000, ramp=1.0)
    assert fine == pytest.approx(coarse, rel=1e-3)


def test_the_model_is_untouched_and_the_average_needs_no_gradient() -> None:
    model, averaged = nn.Linear(3, 3), nn.Linear(3, 3)
    before, start = model.weight.clone(), averaged.weight.detach().clone()
    EMA(model, averaged, HalfLife(10, 1.0)).update(10, 10)
    assert torch.equal(model.weight, before)
    torch.testing.assert_close(averaged.weight.detach(), (start + before.detach()) / 2)  # a half-life has passed


@pytest.mark.parametrize(
    ("halflife", "ramp", "words"), [(0, 1, "halflife=0"), (-1, 1, "halflife=-1"), (1, 0, "ramp=0"), (1, 2, "ramp=2")]
)
def test_lengths_are_positive(halflife: float, ramp: float, words: str) -> None:
    with pytest.raises(UsageError, match=f"ema.{words}"):
        section({"ema": {"profile": "halflife", "halflife": halflife, "ramp": ramp, "sigma_rel": None}}, "ema")


def test_statistics_of_the_network_are_copied() -> None:
    """A batch norm's running mean is an average already."""
    model, averaged = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    ema = EMA(model, averaged, HalfLife(10, 1.0))
    model(torch.randn(50, 2) + 3)
    ema.update(10, 1)
    assert torch.equal(averaged.running_mean, model.running_mean)
    assert averaged.num_batches_tracked == 1
