"""The bound on the likelihood that autoencoders learn, and what does not go with it."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rows import row, schedule
from torch import Tensor

from diffgen.core.errors import NonFiniteError, UsageError
from diffgen.core.registry import build
from diffgen.data.clips import Clips
from diffgen.data.kinds import Levels, Pixels, Vectors
from diffgen.data.latents import Latents
from diffgen.diffusion.codec import Codec
from diffgen.diffusion.times import logit_normal, uniform
from diffgen.diffusion.weightings import snr, unit
from diffgen.nets import MODELS, DataShape
from diffgen.nets.autoencoder import Autoencoder
from diffgen.objectives import OBJECTIVES, Batch
from diffgen.objectives.autoencode import Autoencode

Compose = Callable[..., dict[str, Any]]


def network(levels: list[int] | None = None) -> Autoencoder:
    small = {"channels": 8, "latent_channels": 2, "levels": levels}
    torch.manual_seed(0)
    made: Autoencoder = build(MODELS, row("model", "vae_tiny", **small), DataShape((1, 8, 8)))
    with torch.no_grad():
        made.encoder[-1].bias.add_(0.3)  # type: ignore[operator]
    return made


def batch(network: Autoencoder) -> Batch:
    rng = torch.Generator().manual_seed(0)
    x0 = torch.randint(256, (3, 1, 8, 8), generator=rng) / 127.5 - 1
    z = torch.randn(3, *network.latent_size, generator=rng)
    return Batch(x0, torch.full((3,), -1), torch.full((3,), 0.5), z)


def of_level(likelihood: str, pixel: int, mean: Tensor, width: Tensor) -> Tensor:
    """The probability of a level, by the distribution function at its edges."""

    def cdf(edge: float) -> Tensor:
        at = (edge / 127.5 - 1 - mean) / width
        return at.sigmoid() if likelihood == "logistic" else torch.special.ndtr(at)

    low = cdf(pixel - 0.5) if pixel > 0 else torch.zeros(()).double()
    return (cdf(pixel + 0.5) if pixel < 255 else torch.ones(()).double()) - low


@pytest.mark.parametrize("levels", [None, [5, 4]])
@pytest.mark.parametrize("likelihood", ["logistic", "gaussian"])
@pytest.mark.parametrize("kl", [1.0, 0.1])
def test_the_loss_is_the_bound_in_bits_per_dimension(levels: list[int] | None, likelihood: Any, kl: float) -> None:
    """Pixel by pixel and latent by latent, from the definition; with kl=1 it is -E_q[log p(x | z) p(z) / q(z | x)]."""
    made = network(levels)
    with torch.no_grad():
        made.log_scale.fill_(math.log(0.6))  # wide, so that differences of the distribution function keep their digits
        seen = batch(made)
        found = Autoencode(kl=kl, likelihood=likelihood).loss(Codec(made, schedule("rectified_flow")), None, seen)
        posterior = made.encode(seen.x0)
        z = posterior.mean
        if levels is None:
            assert posterior.log_var is not None
            q = torch.distributions.Normal(posterior.mean.double(), (posterior.log_var.double() / 2).exp())
            z = (posterior.mean + q.stddev * seen.z).float()
            rate = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).flatten(1).sum(1)
        else:
            rate = torch.full((3,), 4 * math.log(20), dtype=torch.float64)
        decoded = made.decode(z)
    for i in range(3):
        pixels = ((seen.x0[i] + 1) * 127.5).round().long().flatten().tolist()
        means = decoded[i].flatten().double()
        chances = [
            of_level(likelihood, pixel, mean, torch.tensor(0.6)) for pixel, mean in zip(pixels, means, strict=True)
        ]
        bits = (-sum(math.log2(float(chance)) for chance in chances) + kl * float(rate[i]) / math.log(2)) / 64
        assert float(found[i]) == pytest.approx(bits, rel=1e-4)


def test_the_loss_is_a_bound_on_the_likelihood() -> None:
    """Of a model of one pixel and one latent, whose evidence is found by summing over the prior."""

    def decoder(z: Tensor) -> Tensor:
        return 0.5 * z

    mean, log_var, log_scale = 0.4, math.log(0.3), torch.full((1, 1, 1), math.log(0.1), dtype=torch.float64)
    z = torch.linspace(-8, 8, 20001, dtype=torch.float64)
    x0 = torch.full((1, 1, 1, 1), 153 / 127.5 - 1, dtype=torch.float64)
    prior = torch.distributions.Normal(torch.tensor(0.0).double(), torch.tensor(1.0).double())
    chance = of_level("logistic", 153, decoder(z), log_scale.exp().squeeze())
    evidence = -math.log2(float((prior.log_prob(z).exp() * chance).sum() * (z[1] - z[0])))
    noise = torch.special.ndtri((torch.arange(4000, dtype=torch.float64) + 0.5) / 4000).reshape(-1, 1, 1, 1)
    rate = torch.full_like(noise, 0.5 * (mean**2 + math.exp(log_var) - 1 - log_var))

    def model(x: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        return decoder(mean + math.exp(log_var / 2) * noise), log_scale, rate

    frame: Any = SimpleNamespace(model=model, perceptual=None)
    seen = Batch(x0.expand_as(noise), torch.full((4000,), -1), torch.zeros(4000), noise)
    bound = float(Autoencode(kl=1.0, likelihood="logistic").loss(frame, None, seen).mean())
    assert evidence < bound < evidence + 1
    less = float(Autoencode(kl=0.0, likelihood="logistic").loss(frame, None, seen).mean())
    assert less < evidence, "without the rate it is none"


def test_what_it_is_told_of_a_path_is_refused() -> None:
    made = Autoencode(kl=1.0, likelihood="logistic")
    made.check(unit, uniform)
    with pytest.raises(UsageError, match="no noise levels to weight or to draw: weighting=unit"):
        made.check(snr, uniform)
    with pytest.raises(UsageError, match="no noise levels to weight or to draw: time=uniform"):
        made.check(unit, logit_normal)
    with pytest.raises(UsageError, match=r"kl=-1 must be in \[0, 1000\]"):
        Autoencode(kl=-1.0, likelihood="logistic")
    with pytest.raises(UsageError, match="likelihood='cauchy' is unknown"):
        build(OBJECTIVES, row("objective", "autoencode", likelihood="cauchy"))


def test_pictures_alone_are_encoded() -> None:
    made = Autoencode(kl=1.0, likelihood="logistic")
    assert made.suited(Pixels(background="black")) == Pixels(background="black")
    assert made.suited(Levels(levels=17)) == Pixels(), "as the numbers that they stand for"
    latents = Latents(size=(1, 8, 8), autoencoder={}, hash="", likelihood=None, mean=(0.0,), std=(1.0,))
    for kind in (Vectors(), latents):
        with pytest.raises(UsageError, match="objective=autoencode is for pictures, and the data is"):
            made.suited(kind)
    assert not Clips.judged, "films are no pictures"


def test_what_is_not_finite_is_told() -> None:
    made = Autoencode(kl=1.0, likelihood="logistic")
    assert made.finished(torch.ones(1, dtype=torch.float64)).dtype == torch.float32
    with pytest.raises(NonFiniteError):
        made.finished(torch.tensor([float("nan")]))


# --- before anything is written -------------------------------------------------------------------------------------

REFUSED = {
    "weighting=snr": "objective=autoencode has no noise levels to weight or to draw: weighting=unit",
    "time=logit_normal": "objective=autoencode has no noise levels to weight or to draw: time=uniform",
    "schedule=cosine": "schedule=cosine is of Gaussian noise, and objective=autoencode has none of it: leave it to method=vae",
    "parameterization=flow": "parameterization=flow is of Gaussian noise, and objective=autoencode has none of it",
    "model=unet_tiny": "objective=autoencode learns an autoencoder, and model.name=unet is none: model=vae_tiny",
    "model=dit_tiny": "objective=autoencode learns an autoencoder, and model.name=dit is none: model=vae_tiny",
    "sampler=heun": "sampler.name='heun' is unknown; choose one of [prior]; this model is an autoencoder",
    "objective.kl=-1": "objective.kl=-1 must be in [0, 1000]",
    "objective.likelihood=laplace": "objective.likelihood='laplace' is unknown; choose one of [gaussian, logistic]",
    "model.patch=3": "makes a latent of 3x3 pixels, and these pictures are 8x8",
    "dataset=points": "objective=autoencode is for pictures, and the data is vectors",
    "dataset=numbers": "objective=autoencode is for pictures, and the data is sequences",
    "dataset=moving_digits": "objective=autoencode is for pictures, and the data is clips",
    "train.augment=0.1": "train.augment",
}


@pytest.mark.parametrize("setting", REFUSED)
def test_what_does_not_go_with_it_is_told_before_training(command: Callable[..., Any], setting: str) -> None:
    from pathlib import Path

    done = command(
        "train", *([] if "dataset=" in setting else ["dataset=digits"]), "method=vae", setting, "run_dir=run"
    )
    assert done.code == 2 and REFUSED[setting] in done.err, done.err
    assert len(done.err.strip().splitlines()) == 1 and not Path("run").exists()
