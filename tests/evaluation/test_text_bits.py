"""The bound of masked sequences against enumeration, a Markov chain, and the bound in continuous time."""

import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from diffgen.diffusion.masking import HIDDEN
from diffgen.evaluation.bits_per_dim import mean_and_error
from diffgen.evaluation.text_bits import Predict, bound, mask

V, LENGTH = 3, 3
EVERY = torch.tensor(list(itertools.product(range(V), repeat=LENGTH)))
"""All sequences, in the order of a joint distribution [V ** LENGTH]."""

JOINT = torch.rand(len(EVERY), generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 2
JOINT /= JOINT.sum()
NONE = torch.full((len(EVERY),), -1)


def perfect(joint: Tensor, vocabulary: int = V) -> Predict:
    """log p of each token, given the known ones, under a joint distribution of all sequences."""
    every = torch.tensor(list(itertools.product(range(vocabulary), repeat=round(math.log(len(joint), vocabulary)))))

    def predict(x: Tensor, label: Tensor) -> Tensor:
        fits = ((x[:, None] == every) | (x[:, None] == HIDDEN)).all(-1) * joint  # [B, sequences]
        one_hot = torch.nn.functional.one_hot(every, vocabulary).double()
        p = torch.einsum("bs,slv->blv", fits, one_hot)
        return (p / p.sum(-1, keepdim=True)).log()

    return predict


def imperfect(x: Tensor, label: Tensor) -> Tensor:
    """A function of the known tokens that is no conditional of any joint distribution."""
    seen = torch.where(x == HIDDEN, 0.7, x.double() + 1)
    logits = torch.sin(seen[:, :, None] * torch.arange(1, V + 1) + seen.sum(1)[:, None, None])
    return logits.log_softmax(-1)


def estimated(predict: Predict, x: Tensor, numbers: Sequence[int], *, seed: int = 0, draws: int = 3) -> Tensor:
    """The bound as `bound` estimates it, of sequences without labels."""
    labels = torch.full((len(x),), -1)
    return bound(predict, x, labels, numbers, seed=seed, draws=draws)


def all_masks(size: int) -> Tensor:
    """Every way to mask at least one token, bool [2^size - 1, size]."""
    return torch.tensor(list(itertools.product([False, True], repeat=size)))[1:]


def exact_bound(predict: Predict, x: Tensor, weight: Callable[[int], float]) -> Tensor:
    """Sum over all masks of weight(tokens masked) * sum over these of -log2 p, [B]."""
    total = torch.zeros(len(x), dtype=torch.float64)
    for masked in all_masks(x.shape[1]):
        log_p = predict(x.masked_fill(masked, HIDDEN), torch.full((len(x),), -1))
        bits = -log_p.gather(-1, x[..., None]).squeeze(-1) / math.log(2)
        total += weight(int(masked.sum())) * (bits * masked).sum(1)
    return total


def even(k: int) -> float:
    """Chance of each mask of k tokens where k is even on 1 .. N, times N/k."""
    return 1 / (k * math.comb(LENGTH, k))


def test_of_a_perfect_denoiser_the_bound_is_the_likelihood() -> None:
    exact = exact_bound(perfect(JOINT), EVERY, even)
    torch.testing.assert_close(exact, -JOINT.log2())
    entropy = float(-(JOINT * JOINT.log2()).sum())
    assert float((JOINT * exact).sum()) == pytest.approx(entropy)


def test_of_another_it_is_a_bound() -> None:
    """Of every order in which the tokens may be made the chain rule gives a distribution, and theirs is the mixture."""
    exact = exact_bound(imperfect, EVERY, even)
    p = torch.zeros(len(EVERY), dtype=torch.float64)
    for order in itertools.permutations(range(LENGTH)):
        x, log_p = torch.full_like(EVERY, HIDDEN), torch.zeros(len(EVERY), dtype=torch.float64)
        for i in order:
            log_p += imperfect(x, NONE)[:, i].gather(-1, EVERY[:, i : i + 1])[:, 0]
            x[:, i] = EVERY[:, i]
        p += log_p.exp() / math.factorial(LENGTH)
    assert float(p.sum()) == pytest.approx(1)
    assert (exact >= -p.log2() - 1e-9).all()
    assert (exact > -p.log2() + 1e-4).any()


SCHEDULES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "linear": (lambda t: 1 - t, lambda t: torch.full_like(t, -1.0)),
    "cosine": (
        lambda t: 1 - torch.cos(math.pi / 2 * (1 - t)),
        lambda t: -math.pi / 2 * torch.sin(math.pi / 2 * (1 - t)),
    ),
    "cubic": (lambda t: 1 - t**3, lambda t: -3 * t**2),
}
"""alpha(t), which falls from 1 to 0, and its derivative."""


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("predict", [perfect(JOINT), imperfect])
def test_it_is_the_bound_in_continuous_time(name: str, predict: Predict) -> None:
    """E_t[-alpha' / (1 - alpha) sum over masked -log p], each token masked with the chance 1 - alpha."""
    t = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    alpha, slope = (function(t) for function in SCHEDULES[name])

    def weight(k: int) -> float:
        return float((-slope / (1 - alpha) * (1 - alpha) ** k * alpha ** (LENGTH - k)).mean())

    torch.testing.assert_close(
        exact_bound(predict, EVERY, weight), exact_bound(predict, EVERY, even), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("draws", [1, 3, 8])
def test_the_estimate_is_that_in_the_mean(draws: int) -> None:
    """300 numbers for each sequence, as if it stood 300 times in the data."""
    x = EVERY.repeat(300, 1)
    found = estimated(imperfect, x, range(len(x)), draws=draws).view(300, len(EVERY))
    error = found.std(0) / math.sqrt(300)
    exact = exact_bound(imperfect, EVERY, even)
    assert ((found.mean(0) - exact).abs() < 4 * error + 1e-6).all()
    assert (error < 0.5).all()


def test_the_standard_error_is_what_it_says() -> None:
    """Over 60 seeds the mean of 27 sequences scatters no more than its standard error, and not much less."""
    x, exact = EVERY, float(exact_bound(imperfect, EVERY, even).mean())
    told = [mean_and_error(estimated(imperfect, x, range(27), seed=s, draws=2)) for s in range(60)]
    scatter = math.sqrt(sum((mean - exact) ** 2 for mean, _ in told) / 60)
    assert scatter < 1.1 * sum(error for _, error in told) / 60


def test_a_markov_chain_has_its_entropy() -> None:
    """Six states of a chain of two, all sequences weighed by their chance: entropy of the first, and five rates."""
    transitions, first = torch.tensor([[0.9, 0.1], [0.4, 0.6]]).double(), torch.tensor([0.8, 0.2]).double()
    every = torch.tensor(list(itertools.product(range(2), repeat=6)))
    joint = first[every[:, 0]] * transitions[every[:, :-1], every[:, 1:]].prod(1)
    rate = -(first[:, None] * transitions * transitions.log2()).sum()  # the first is stationary
    entropy = float(5 * rate - (first * first.log2()).sum())
    drawn = every[torch.multinomial(joint, 2000, replacement=True, generator=torch.Generator().manual_seed(0))]
    mean, error = mean_and_error(estimated(perfect(joint, 2), drawn, range(2000), draws=4))
    assert mean == pytest.approx(entropy, abs=4 * error)
    assert error < 0.1


def test_what_is_masked_depends_on_seed_number_and_draw_alone() -> None:
    x = torch.randint(V, (10, 4, 5))

    def predict(x: Tensor, label: Tensor) -> Tensor:
        return torch.sin(x[..., None] * torch.arange(1.0, V + 1)).log_softmax(-1)

    whole = estimated(predict, x, range(10))
    parts = [estimated(predict, x[i:j], range(i, j)) for i, j in ((0, 3), (3, 10))]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, estimated(predict, x, range(10), seed=6))
    assert not torch.equal(whole, estimated(predict, x, range(1, 11)))


def test_known_tokens_cost_nothing_and_masked_ones_are_hidden() -> None:
    seen: list[Tensor] = []

    def predict(x: Tensor, label: Tensor) -> Tensor:
        seen.append(x)
        return torch.full((*x.shape, V), -math.log(2.0)).where(x[..., None] == HIDDEN, -math.inf)

    x = torch.randint(V, (6, 16))
    bits = estimated(predict, x, range(6))
    torch.testing.assert_close(bits, torch.full((6,), 16.0, dtype=torch.float64))
    for given in seen:
        assert torch.equal(given[given != HIDDEN], x[given != HIDDEN])
        assert ((given == HIDDEN).sum(1) >= 1).all()


def test_numbers_of_masked_tokens_are_spread_evenly() -> None:
    counts = torch.tensor([[int(mask(16, i, draw, 8, seed=3).sum()) for draw in range(8)] for i in range(512)])
    assert ((counts - 1) // 2 == torch.arange(8)).all()  # one from each eighth, by draw
    assert ((torch.bincount(counts.ravel(), minlength=17)[1:] - 256).abs() <= 45).all()  # 4 standard deviations
    places = torch.stack([mask(4, i, 1, 4, seed=3) for i in range(2000)]).double().mean(0)
    torch.testing.assert_close(places, torch.full((4,), 0.5, dtype=torch.float64), atol=0.05, rtol=0)


@pytest.mark.parametrize("stride", [1, 2, 610, 987, 1597])
def test_sequences_at_any_distance_have_masks_of_their_own(stride: int) -> None:
    """Those that are judged are spread evenly over a split, and their standard error takes them for independent."""
    counts = torch.tensor([float(mask(800, i * stride, 3, 8, seed=0).sum()) for i in range(400)])
    assert counts.std() == pytest.approx(100 / math.sqrt(12), rel=0.1)
    neighbours = torch.corrcoef(torch.stack([counts[1:], counts[:-1]]))[0, 1]
    assert abs(float(neighbours)) < 0.2, "4 standard errors"
