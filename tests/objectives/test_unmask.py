"""The bound of masked diffusion: a bound, tight for a perfect network, and the same by every schedule."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from cases import ENDS_IN_NOISE
from enumeration import JOINT, WHOLE, L, V, perfect
from rows import schedule
from torch import Tensor

from diffgen.core.errors import NonFiniteError, UsageError
from diffgen.diffusion.denoiser import NO_LABEL
from diffgen.diffusion.masking import HIDDEN, Predictor
from diffgen.diffusion.schedules import Schedule
from diffgen.diffusion.times import logit_normal, uniform
from diffgen.diffusion.weightings import snr, unit
from diffgen.objectives import Batch, Unmask

ENTROPY = float(-(JOINT * JOINT.log2()).sum())


def expected_loss(predictor: Predictor, t: Tensor) -> Tensor:
    """Bits a sequence of each of WHOLE at each time, [27, T], over all that can be hidden."""
    alpha = predictor.schedule.alpha(t)
    total = torch.zeros(len(WHOLE), len(t), dtype=torch.float64)
    for hidden in product([False, True], repeat=L):
        k = sum(hidden)
        z = torch.tensor(hidden).double().expand(len(WHOLE) * len(t), L)  # 0: seen, 1: hidden
        x0 = WHOLE.repeat_interleave(len(t), 0)
        label = torch.full((len(x0),), NO_LABEL)
        loss = Unmask(levels=256).loss(predictor, unit, Batch(x0, label, t.repeat(len(WHOLE)), z))
        total += loss.reshape(len(WHOLE), len(t)) * L * alpha ** (L - k) * (1 - alpha) ** k
    return total


def bound(schedule: Schedule, network: object) -> Tensor:
    """Bits of each of WHOLE: the loss over all times, by Gauss and Legendre in a clock that is slow at both ends."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    u, w = torch.from_numpy(nodes + 1) / 2, torch.from_numpy(weights) / 2
    t, slope = u**2 * (3 - 2 * u), 6 * u * (1 - u)
    return expected_loss(Predictor(network, schedule, V), t) @ (w * slope)  # type: ignore[arg-type]


def known(x: Tensor, condition: Tensor, label: Tensor) -> Tensor:
    return perfect(torch.where(x == V, HIDDEN, x), condition)


def poor(x: Tensor, condition: Tensor, label: Tensor) -> Tensor:
    return known(x, condition, label) * 0.3


@pytest.mark.parametrize("name", ENDS_IN_NOISE)
def test_a_perfect_network_meets_the_likelihood_by_every_schedule(name: str) -> None:
    torch.testing.assert_close(bound(schedule(name), known), -JOINT.log2(), rtol=2e-3, atol=2e-3)


def test_the_bound_of_any_network_does_not_depend_on_the_schedule_and_is_one() -> None:
    found = [bound(schedule(name), poor) for name in ENDS_IN_NOISE]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=2e-3, atol=2e-3)
    assert float(found[0] @ JOINT) > ENTROPY + 0.1


def test_the_entropy_of_a_markov_chain_is_found_by_the_loss_of_a_perfect_network() -> None:
    """A circle of 5 tokens of which each is the one before with chance 0.8: given all others, by Bayes' rule."""
    stay, n = 0.8, 4000
    rng = torch.Generator().manual_seed(0)
    x = torch.zeros(n, 6, dtype=torch.int64)
    x[:, 0] = torch.randint(2, (n,), generator=rng)
    for i in range(1, 6):
        moves = torch.rand(n, generator=rng) >= stay
        x[:, i] = torch.where(moves, 1 - x[:, i - 1], x[:, i - 1])
    whole = torch.tensor(list(product(range(2), repeat=6)))
    chance = 0.5 * torch.where(whole[:, 1:] == whole[:, :-1], stay, 1 - stay).prod(1).double()

    def network(x: Tensor, condition: Tensor, label: Tensor) -> Tensor:
        agree = ((x[:, None] == 2) | (x[:, None] == whole)).all(-1) * chance
        one = agree @ whole.double() / agree.sum(1, keepdim=True)
        return torch.stack([1 - one, one], -1).clamp(min=1e-12).log()

    t = (torch.randperm(n, generator=rng) + torch.rand(n, generator=rng, dtype=torch.float64)) / n
    z = torch.rand(n, 6, generator=rng)
    batch = Batch(x, torch.full((n,), NO_LABEL), t.clamp(min=1e-3), z)
    bits = 6 * Unmask(levels=256).loss(Predictor(network, schedule("rectified_flow"), 2), unit, batch)
    entropy = 1 - 5 * (stay * math.log2(stay) + (1 - stay) * math.log2(1 - stay))
    assert abs(float(bits.mean()) - entropy) < 4 * float(bits.std()) / math.sqrt(n)
    assert float(bits.std()) / math.sqrt(n) < 0.1, "so that the test can fail"


def test_a_published_loss_on_fixed_logits() -> None:
    """MDLM (Sahoo et al. 2024, eq. 11) with alpha = 1 - t: the cross-entropy of hidden tokens over t."""
    logits = torch.randn(2, 4, V, generator=torch.Generator().manual_seed(0))
    x0, t = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]]), torch.tensor([0.25, 0.5], dtype=torch.float64)
    hidden = torch.tensor([[True, False, False, True], [False, True, True, True]])
    z = torch.where(hidden, 0.99, 0.01)
    predictor = Predictor(lambda x, condition, label: logits, schedule("rectified_flow"), V)
    found = Unmask(levels=256).loss(predictor, unit, Batch(x0, torch.full((2,), NO_LABEL), t, z))
    for i in range(2):
        nats = torch.nn.functional.cross_entropy(logits[i][hidden[i]], x0[i][hidden[i]], reduction="sum")
        assert float(found[i]) == pytest.approx(float(nats / t[i]) / math.log(2) / 4, rel=1e-5)


def test_what_does_not_go_with_the_bound_is_refused() -> None:
    Unmask(levels=256).check(unit, uniform)
    with pytest.raises(UsageError, match="weights of its own|its own weightings: weighting=unit"):
        Unmask(levels=256).check(snr, uniform)
    with pytest.raises(UsageError, match="time=uniform"):
        Unmask(levels=256).check(unit, logit_normal)
    with pytest.raises(UsageError, match=r"levels=1 must be in \[2, 256\]"):
        Unmask(levels=1)


def test_a_token_that_stayed_hidden_is_told() -> None:
    assert torch.equal(Unmask(levels=256).finished(WHOLE), WHOLE)
    with pytest.raises(NonFiniteError):
        Unmask(levels=256).finished(torch.tensor([[0, HIDDEN]]))


@pytest.mark.parametrize("t_min", [1e-3, 0.3])
def test_the_mean_over_the_times_of_training_is_the_bound(t_min: float) -> None:
    """Wherever networks that are told a time would stop: t is drawn evenly on what the schedule says it may be."""
    s, objective = schedule("rectified_flow", t_min=t_min), Unmask(levels=256)
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    t = objective.times(uniform(u, s), s)
    assert float(t.min()) < 1e-3 and float(t.max()) == pytest.approx(1, abs=1e-3)
    found = expected_loss(Predictor(poor, s, V), t).mean(1)
    torch.testing.assert_close(found, bound(s, poor), rtol=5e-3, atol=5e-3)


def test_a_draw_of_samplers_is_finer_than_single_precision() -> None:
    rng = torch.Generator().manual_seed(0)
    u = Unmask(levels=256).noise(torch.empty(1000, dtype=Unmask.noise_type), rng)
    assert (u * 2**24 % 1 != 0).any() and u.min() >= 0 and u.max() < 1
