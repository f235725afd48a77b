"""Autoencoders: levels against the paper's code, Gaussians against torch's, and shapes there and back."""

import itertools
import math

import pytest
import torch
from rows import row
from torch import Tensor

from diffgen.core.errors import UsageError
from diffgen.core.registry import build
from diffgen.nets import MODELS, DataShape
from diffgen.nets.autoencoder import Autoencoder, Posterior, Quantiser, kl_of_gaussian

LEVELS = range(3, 10)
NARROW = {"channels": 8, "channel_mult": [1], "blocks": 1, "patch": 2, "latent_channels": 2}


def network(shape: tuple[int, ...] = (1, 8, 8), **changes: object) -> Autoencoder:
    """A narrow one, whose branches that begin near 0 say something."""
    torch.manual_seed(0)
    made: Autoencoder = build(MODELS, row("model", "vae_tiny", **NARROW | changes), DataShape(shape))
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=rng))
    return made


def published(z: Tensor, levels: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Bounded and quantised z [..., c], line by line as in appendix A.1 of Mentzer et al. (2024)."""
    count, eps = torch.tensor(levels), 1e-3
    half_l = (count - 1) * (1 + eps) / 2
    offset = torch.where(count % 2 == 1, 0.0, 0.5)
    shift = torch.atanh(offset / half_l)
    bounded = torch.tanh(z + shift) * half_l - offset
    return bounded, bounded.round() / (count // 2)


def spread(count: int = 1, sites: int = 4001) -> Tensor:
    """Latents [1, count, 1, sites] from far below to far above all levels."""
    return torch.linspace(-12, 12, sites).expand(1, count, 1, sites)


# --- levels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (3,), (7, 5, 5, 5, 5), (8, 8, 8, 6, 5), (4, 9)])
def test_levels_are_those_of_the_paper(levels: tuple[int, ...]) -> None:
    z = 3 * torch.randn(2, len(levels), 5, 7, generator=torch.Generator().manual_seed(0))
    bounded, quantised = (each.movedim(-1, 1) for each in published(z.movedim(1, -1), levels))
    torch.testing.assert_close(Quantiser(levels).bounded(z), bounded)
    torch.testing.assert_close(Quantiser(levels)(z), quantised, rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", LEVELS)
def test_there_are_as_many_levels_as_were_asked_for(count: int) -> None:
    made, half = Quantiser((count,)), count // 2
    found = made(spread()).unique()
    expected = [(k - half) / half for k in range(count)]
    assert found.tolist() == pytest.approx(expected) and found.abs().max() <= 1
    assert made.numbers(made(spread())).unique().tolist() == list(range(count))
    assert float(made(torch.zeros(1, 1, 1, 1))) == 0, "a latent of 0 is the middle"


@pytest.mark.parametrize("count", LEVELS)
def test_the_gradient_is_that_of_the_bound(count: int) -> None:
    made = Quantiser((count,))
    through, bound = (spread(sites=101).clone().requires_grad_() for _ in range(2))
    made(through).sum().backward()
    (made.bounded(bound) / (count // 2)).sum().backward()
    assert through.grad is not None and bound.grad is not None
    torch.testing.assert_close(through.grad, bound.grad)
    assert through.grad.max() > 0.1, "the rounding's own is 0"


@pytest.mark.parametrize("count", LEVELS)
def test_noise_gives_each_level_equally_often(count: int) -> None:
    """Of the quantiles of a normal distribution: exactly, and the outermost numbers stay in range."""
    made, each = Quantiser((count,)), 50
    noise = torch.special.ndtri((torch.arange(count * each) + 0.5) / (count * each)).reshape(1, 1, 1, -1)
    codes = made.numbers(made.uniform(noise)).flatten()
    assert codes.bincount(minlength=count).tolist() == [each] * count
    ends = made.numbers(made.uniform(torch.tensor([-40.0, -9, 9, 40]).reshape(1, 1, 1, 4)))
    assert ends.flatten().tolist() == [0, 0, count - 1, count - 1]


def test_levels_of_noise_have_numbers_and_these_are_found_again() -> None:
    levels = tuple(LEVELS)
    made = Quantiser(levels)
    noise = torch.randn(4, len(levels), 3, 3, generator=torch.Generator().manual_seed(0))
    z = made.uniform(noise)
    back = made.normal(z)
    assert torch.equal(made.uniform(back), z)
    assert back.isfinite().all() and (back - noise).abs().max() < 3
    assert set(made(spread(len(levels)))[0, 3].flatten().tolist()) == set(z[:, 3].flatten().tolist())


# --- Gaussians ----------------------------------------------------------------------------------------------------


def test_a_draw_is_mean_and_deviation_and_learns_both() -> None:
    mean, log_var = (
        torch.tensor([[[[0.5]]]], requires_grad=True),
        torch.tensor([[[[math.log(4.0)]]]], requires_grad=True),
    )
    z = Posterior(mean, log_var).sample(torch.tensor([[[[-1.5]]]]))
    z.sum().backward()
    assert z.item() == pytest.approx(0.5 - 2 * 1.5)
    assert mean.grad is not None and float(mean.grad) == 1
    assert log_var.grad is not None and float(log_var.grad) == pytest.approx(0.5 * 2 * -1.5), (
        "d std / d log var = std / 2"
    )
    assert torch.equal(Posterior(mean, None).sample(torch.ones(1, 1, 1, 1)), mean), "a code is not drawn"


def test_the_divergence_is_that_of_torch() -> None:
    mean, log_var = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q = torch.distributions.Normal(mean, (0.5 * log_var).exp())
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(kl_of_gaussian(Posterior(mean, log_var)), expected)


def test_rates_are_divergences_or_the_log_of_the_codes() -> None:
    gaussian, quantised = network(), network(levels=[4, 3])
    x = torch.rand(2, 1, 8, 8) * 2 - 1
    posterior = gaussian.encode(x)
    assert torch.equal(gaussian.rate(posterior), kl_of_gaussian(posterior))
    rate = quantised.rate(quantised.encode(x))
    assert rate.shape == (2, 2, 4, 4)
    assert rate.flatten(1).sum(1).tolist() == pytest.approx([16 * math.log(12)] * 2, rel=1e-5)


def test_log_variances_stay_where_their_exponential_is_finite() -> None:
    made = network()
    with torch.no_grad():
        made.encoder[-1].bias.add_(torch.tensor([0.0, 0, -1e4, 1e4]))  # type: ignore[operator]
    posterior = made.encode(torch.zeros(1, 1, 8, 8))
    assert posterior.log_var is not None
    assert posterior.log_var[:, 0].unique().tolist() == [-30] and posterior.log_var[:, 1].unique().tolist() == [20]


# --- the network --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patch", "mult", "levels"),
    [*itertools.product([1, 2, 4], [[1], [1, 2], [2, 1, 1]], [None]), (1, [1, 1], [5, 5]), (2, [1], [8, 3])],
)
def test_pictures_become_latents_and_pictures_again(patch: int, mult: list[int], levels: list[int] | None) -> None:
    factor = patch * 2 ** (len(mult) - 1)
    made = network((3, 32, 16), patch=patch, channel_mult=mult, levels=levels, attention=True).eval()
    assert made.factor == factor and made.latent_size == (2, 32 // factor, 16 // factor)
    x = torch.rand(2, 3, 32, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        posterior = made.encode(x)
        assert posterior.mean.shape == (2, *made.latent_size)
        assert (posterior.log_var is None) == bool(levels)
        coded = made(x, torch.zeros(2, *made.latent_size))
        assert torch.equal(coded.decoded, made.decode(posterior.mean)) and coded.decoded.shape == x.shape
    assert coded.rate.shape == posterior.mean.shape and coded.log_scale.shape == (3, 1, 1)


def test_a_latent_sees_where_it_lies() -> None:
    """And is seen there: in the same row and column of patches, or beside it."""

    def place(blocks: Tensor) -> list[int]:
        return [*divmod(int(blocks.reshape(8, 4, 8, 4).sum((1, 3)).argmax()), 8)]

    torch.manual_seed(0)
    made: Autoencoder = build(MODELS, row("model", "vae_tiny", **NARROW | {"patch": 4}), DataShape((1, 32, 32)))
    x = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    z = made.encode(x).mean
    z[..., 2, 5].sum().backward()
    assert x.grad is not None
    assert place(x.grad.abs()) == pytest.approx([2, 5], abs=1)
    code = z.detach()
    changed = code.clone()
    changed[..., 2, 5] += 0.1
    assert place((made.decode(changed) - made.decode(code)).abs()) == pytest.approx([2, 5], abs=1)


@pytest.mark.parametrize("levels", [None, [5, 4]])
def test_gradients_reach_every_weight(levels: list[int] | None) -> None:
    from diffgen.diffusion.codec import log_mass

    made = network(levels=levels, attention=True, channel_mult=[1, 2])
    x = torch.randint(256, (2, 1, 8, 8), generator=torch.Generator().manual_seed(0)) / 127.5 - 1
    decoded, log_scale, rate = made(x, torch.randn(2, *made.latent_size))
    (rate.sum() - log_mass(x, decoded, log_scale, "logistic").sum()).backward()
    idle = [name for name, weight in made.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not idle, f"no gradient reaches {idle}"


REFUSED = {
    "makes a latent of 4x4 pixels, and these pictures are 10x8": ((1, 10, 8), {"patch": 4}),
    "makes a latent of 8x8 pixels, and these pictures are 8x12": ((1, 8, 12), {"patch": 2, "channel_mult": [1, 1, 1]}),
    "takes pictures \\[C, H, W\\], and the data is": ((8,), {}),
    "latent_channels=0 must be in": ((1, 8, 8), {"latent_channels": 0}),
    "latent_channels=65 must be in": ((1, 8, 8), {"latent_channels": 65}),
    "levels=\\[5, 1\\] must be null or one of \\[3, 1000\\] for each of the 2 channels": (
        (1, 8, 8),
        {"levels": [5, 1]},
    ),
    "levels=\\[5\\] must be null or one of": ((1, 8, 8), {"levels": [5]}),
    "levels=\\[5, 1001\\] must be null or one of": ((1, 8, 8), {"levels": [5, 1001]}),
    "channels=6 must be a multiple of 4": ((1, 8, 8), {"channels": 6}),
    "channel_mult=\\[\\] must be 1 to 8 whole numbers": ((1, 8, 8), {"channel_mult": []}),
    "channel_mult=\\[0\\] must be 1 to 8 whole numbers": ((1, 8, 8), {"channel_mult": [0]}),
    "blocks=0 must be in": ((1, 8, 8), {"blocks": 0}),
    "patch=0 must be in": ((1, 8, 8), {"patch": 0}),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_cannot_be_built_is_one_sentence(sentence: str) -> None:
    shape, changes = REFUSED[sentence]
    with pytest.raises(UsageError, match=sentence) as caught:
        network(shape, **changes)
    assert "\n" not in str(caught.value)


def test_no_levels_are_null() -> None:
    """An empty list is no quantiser of no channels."""
    assert network(levels=None).quantiser is None
    with pytest.raises(UsageError, match=r"levels=\[\] must be null or one of"):
        network(levels=[])
