"""Consistency: its loss against the paper's and against closed forms, and what must be one in both passes."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import SCHEDULE_NAMES, part, schedule
from torch import Tensor, nn

from diffgen.core.errors import UsageError
from diffgen.diffusion.denoiser import Denoiser, like
from diffgen.diffusion.guidance import Guidance
from diffgen.diffusion.parameterizations import PARAMETERIZATIONS
from diffgen.diffusion.weightings import WEIGHTINGS
from diffgen.objectives import OBJECTIVES, Batch

UNIT = WEIGHTINGS["unit"]
STD = 0.6
"""Of the Gaussian data whose best denoiser is known."""


def objective(**changes: float) -> Any:
    return part(OBJECTIVES, "consistency", **changes)


def framed(name: str, network: Any, parameterization: str = "edm") -> Denoiser:
    row = PARAMETERIZATIONS[parameterization]
    return Denoiser(network, schedule(name), row, sigma_data=0.5, scale_input=True)


class Exact(Denoiser):
    """E[x0 | x_t] of Gaussian data with mean 0; what it is asked for is kept."""

    def __call__(self, x: Tensor, t: Tensor, *args: Any, **more: Any) -> Tensor:
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        self.asked = getattr(self, "asked", [])
        self.asked.append(t)
        return like(alpha * STD**2 / (alpha**2 * STD**2 + sigma**2), x) * x


def exact(name: str) -> Exact:
    return Exact(lambda x, *_: x, schedule(name), PARAMETERIZATIONS["edm"], sigma_data=0.5, scale_input=True)


def batch(t: Tensor) -> Batch:
    rng = torch.Generator().manual_seed(0)
    x0, z = torch.randn(2, len(t), 1, 4, 4, generator=rng, dtype=torch.float64)
    return Batch(STD * x0, torch.arange(len(t)), t, z)


def at(name: str, *levels: float) -> Tensor:
    """Times of these sigma/alpha."""
    return schedule(name).time_at(torch.tensor(levels, dtype=torch.float64))


@pytest.mark.parametrize(("q", "k", "b"), [(256, 8, 1), (32, 2, 0.5)])
def test_it_is_the_loss_of_the_paper(q: float, k: float, b: float) -> None:
    """Geng et al. 2024 with the preconditioning of EDM, written down once more: alpha = 1 and t = sigma."""

    def network(x: Tensor, condition: Tensor, label: Tensor) -> Tensor:
        return torch.tanh(x * condition[:, None, None, None])

    def f(x: Tensor, t: Tensor) -> Tensor:
        t = t[:, None, None, None]
        c_skip, c_out = 0.25 / (t**2 + 0.25), 0.5 * t / (t**2 + 0.25).sqrt()
        seen = (x / (t**2 + 0.25).sqrt()).float()
        return c_skip * x + c_out * network(seen, t.flatten().log().float() / 4, t).double()

    batch_ = batch(torch.tensor([0.01, 0.3, 1.0, 7.0, 70.0]).double())
    t, x0, z = batch_.t, batch_.x0, batch_.z
    r = t * (1 - (1 + k / (1 + (b * t).exp())) / q)
    x_t, x_r = (x0 + each[:, None, None, None] * z for each in (t, r))
    wanted = (f(x_t, t) - f(x_r, r)).flatten(1).square().sum(1).sqrt() / (t - r)
    found = objective(q=q, k=k, b=b).loss(framed("ve", network), UNIT, batch_)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    doubled = objective(q=q, k=k, b=b).loss(framed("ve", network), lambda *_: torch.full_like(t, 2.0), batch_)
    torch.testing.assert_close(doubled, 2 * found)


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
def test_of_gaussian_data_it_is_known_on_every_clock(name: str) -> None:
    """With c(n) = s^2 / (s^2 + n^2) the best D is c(n) (x0 + n z), whatever alpha and sigma make up n."""
    levels = torch.tensor([0.05, 0.5, 2.0, 20.0]).double()
    b, c = batch(at(name, *levels)), lambda n: STD**2 / (STD**2 + n**2)
    n = levels
    r = n * (1 - (1 + 8 * torch.sigmoid(-n)) / 256)
    x0, z = b.x0.flatten(1), b.z.flatten(1)
    difference = (c(n) - c(r))[:, None] * x0 + (c(n) * n - c(r) * r)[:, None] * z
    found = objective().loss(exact(name), UNIT, b)
    torch.testing.assert_close(found, difference.norm(dim=1) / (n - r), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
def test_what_always_says_x0_has_no_loss_and_no_gradient(name: str) -> None:
    """Data of one point: and the gradient of the norm at 0 is a number."""
    point = nn.Parameter(torch.tensor(0.3))
    frame = framed(name, lambda x, *_: point.expand_as(x), "x0")
    s = schedule(name)
    b = batch(torch.tensor([s.t_min, (s.t_min + s.t_max) / 2, s.t_max]).double())
    b = b._replace(x0=torch.full_like(b.x0, 0.3))
    loss = objective().loss(frame, UNIT, b)
    assert loss.abs().max() < 1e-4 / (s.t_min if name == "ve" else 1e-3)
    loss.sum().backward()
    assert point.grad is not None and point.grad.isfinite()


def test_below_the_least_level_the_target_is_the_data() -> None:
    for name in SCHEDULE_NAMES:
        s, frame = schedule(name), exact(name)
        t = torch.tensor([s.t_min], dtype=torch.float64)
        n = s.sigma(t) / s.alpha(t)
        b = batch(t)
        found = objective().loss(frame, UNIT, b)
        d = Exact.__call__(frame, s.alpha(t) * b.x0 + s.sigma(t) * b.z, t)
        torch.testing.assert_close(found, (d - b.x0).flatten(1).norm(dim=1) / n, rtol=1e-6, atol=1e-9)
        assert all(bool((asked >= s.t_min).all()) for asked in frame.asked), "no network is called below t_min"


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
def test_pure_noise_agrees_with_the_largest_level(name: str) -> None:
    """At t_max alpha may be 0 and the level infinite: the loss is that of a step below `most`, and finite."""
    s, frame, most = schedule(name), exact(name), 40.0
    t = torch.tensor([s.t_max]).double()
    found = objective(most=most).loss(frame, UNIT, batch(t))
    below = most * (1 - (1 + 8 * torch.sigmoid(torch.tensor(-most).double())) / 256)
    asked = frame.asked[0]
    torch.testing.assert_close(s.sigma(asked) / s.alpha(asked), below[None], rtol=1e-4, atol=0)
    assert found.isfinite().all() and 0 < float(found) < 1


def test_no_gradient_goes_through_the_lower_level() -> None:
    """That of the upper estimate alone, against differences with the target held."""
    w = nn.Parameter(torch.tensor(0.4, dtype=torch.float64))
    frame = framed("ve", lambda x, c, label: (w * x).float(), "x0")
    b = batch(torch.tensor([0.5, 3.0]).double())
    objective().loss(frame, UNIT, b).sum().backward()
    own = float(w.grad or 0)
    n = b.t
    r = n * (1 - (1 + 8 * torch.sigmoid(-n)) / 256)
    c_t, c_r = ((each**2 + 0.25).rsqrt()[:, None, None, None] for each in (n, r))
    x_t, x_r = (b.x0 + each[:, None, None, None] * b.z for each in (n, r))
    with torch.no_grad():
        target = 0.4 * c_r * x_r
    free = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    ((free * c_t * x_t - target).flatten(1).norm(dim=1) / (n - r)).sum().backward()
    assert own == pytest.approx(float(free.grad or 0), rel=1e-3)


class Dropping(nn.Module):
    """Says a constant with dropout, so that two passes agree if they drop the same."""

    def forward(self, x: Tensor, condition: Tensor, label: Tensor) -> Tensor:
        return F.dropout(torch.ones_like(x), 0.5, self.training)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_both_passes_drop_the_same(device: str) -> None:
    frame = framed("ve", Dropping().train().to(device), "x0")
    b = batch(torch.linspace(0.1, 5, 64).double())
    b = Batch(*(None if each is None else each.to(device) for each in b))  # type: ignore[arg-type]
    torch.manual_seed(0)
    assert float(objective().loss(frame, UNIT, b).detach().abs().max()) == 0
    after = torch.rand(3, device=device)
    torch.manual_seed(0)
    F.dropout(torch.ones_like(b.x0, dtype=torch.float32), 0.5)
    assert torch.equal(after, torch.rand(3, device=device)), "and what is drawn next is as after one pass"


def test_the_network_is_told_of_labels_and_augmentation_in_both_passes() -> None:
    seen = []

    def network(x: Tensor, condition: Tensor, label: Tensor, augment: Tensor) -> Tensor:
        seen.append((label, augment, torch.is_grad_enabled()))
        return x

    b = batch(torch.tensor([0.5, 3.0]).double())._replace(augment=torch.ones(2, 9))
    objective().loss(framed("ve", network), UNIT, b)
    assert [grad for *_, grad in seen] == [False, True]
    assert all(label is b.label and augment is b.augment for label, augment, _ in seen)


def test_a_network_that_could_see_its_estimate_is_shown_none() -> None:
    """In training there is none, so a sampler gives none."""
    shown = []

    def network(x: Tensor, condition: Tensor, label: Tensor, *more: Tensor) -> Tensor:
        shown.append(more)
        return x

    row = PARAMETERIZATIONS["edm"]
    frame = Denoiser(network, schedule("ve"), row, sigma_data=0.5, scale_input=True, self_condition=True)
    row_ = objective()
    row_.loss(frame, UNIT, batch(torch.tensor([0.5]).double()))
    see = row_.guided(frame, torch.tensor([-1]), Guidance(scale=1.0), clip=False, doubles=True)
    for t in (80.0, 1.0):
        see(torch.zeros(1, 1, 4, 4), torch.tensor(t).double())
    assert shown == [()] * 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"q": 9}, r"objective.q=9 must be above 1 \+ objective.k = 9"),
        ({"k": -1}, "objective.k=-1 must not be negative"),
        ({"b": -1}, "objective.b=-1 must not be negative"),
        ({"most": 0}, "objective.most=0 must be positive"),
        ({"q": math.nan}, "objective.q=nan must be a finite number"),
    ],
)
def test_bad_numbers_are_refused(changes: dict[str, float], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        objective(**changes)


def test_known_frames_are_refused(fit: Callable[..., Path], tmp_path: Path) -> None:
    clips = ("dataset=moving_digits", "model=video_tiny", "model.channels=8", "objective=consistency")
    with pytest.raises(UsageError, match="objective=consistency has another `error` without its `error_of_unknown`"):
        fit(tmp_path / "run", *clips, "train.known_frames=0.5")
