"""Bits per dimension of pictures by a model of their latents: a bound, with the density along its ODE for a prior.

    -log p(x) <= -E_q[log p(x | z) - log q(z | x) + log p(z)]                       (Kingma & Welling 2014, eq. 2)

p(z) is the density of x0 = (z - mean) / std along the probability-flow ODE, and 1/std for each latent (Vahdat et al.
2021, sec. 3.1, train by such a bound). It is of any q, so also of a model that was trained on means of q.
"""

import math

from torch import Tensor

from diffgen.core.randomness import image_noise
from diffgen.data.latents import Latents
from diffgen.diffusion.codec import log_mass
from diffgen.diffusion.likelihood import hutchinson_trace, log_likelihood
from diffgen.diffusion.samplers import Denoise
from diffgen.diffusion.schedules import Schedule
from diffgen.evaluation.bits_per_dim import Bits, Counted, levels, per_image, probes
from diffgen.evaluation.elbo import drawn
from diffgen.evaluation.reconstruction import Coder

MEASURE = "bits/dim, bound through latents"
"""What such figures are called."""


def untold(kind: Latents) -> str:
    """Why there is no such bound of a model that was trained in these latents, in a sentence; empty if there is one."""
    told = "metrics=bits needs a density of pictures given latents, and"
    if kind.likelihood is None or not hasattr(kind.network, "log_scale"):
        return f"{told} the autoencoder of ckpt was trained by another loss, which has none"
    if getattr(kind.network, "quantiser", None) is not None:
        return "metrics=bits needs a density of latents, and those of ckpt are codes: a density says nothing of them"
    return ""


def bits_per_dim(
    kind: Latents,
    denoise: Denoise,
    schedule: Schedule,
    pixels: Tensor,
    images: list[int],
    *,
    seed: int,
    rtol: float,
    atol: float,
) -> Bits:
    """An upper bound on the bits per dimension of pictures, with one draw of z each.

    Args:
        kind: Its autoencoder has Gaussian latents and a likelihood; see `untold`.
        denoise: (x [B, c, h, w], t []) -> x0_hat, differentiable, unclipped.
        schedule: Its clock.
        pixels: uint8 [B, C, H, W].
        images: Their numbers, which seed the noise.
        seed: Of the draws and of the probes.
        rtol: Relative tolerance of the solver.
        atol: Absolute tolerance.
    """
    counted = Counted(denoise)
    assert kind.network is not None and kind.likelihood is not None
    coder, x = Coder(kind.network, kind.decode).to(pixels.device), levels(pixels)
    posterior = coder.encode(pixels)
    shape = tuple(posterior.mean.shape[1:])
    z, surprise = drawn(posterior, image_noise(shape, images, seed, 0).to(x))
    entropy = surprise - standard_normal(z)  # - log q(z | x)
    mean = kind.network.decode(z.float()).to(x)
    fit = per_image(log_mass(x, mean, kind.network.log_scale.to(x), kind.likelihood))  # type: ignore[attr-defined]
    trace = hutchinson_trace(probes(shape, images, seed))
    prior = log_likelihood(counted, schedule, kind.scaled(z), rtol=rtol, atol=atol, trace=trace) - log_volume(kind, z)
    nats = -(prior + (fit + entropy).cpu().double())
    return Bits(nats / (pixels[0].numel() * math.log(2)), counted.calls)


def standard_normal(z: Tensor) -> Tensor:
    """log N(z; 0, 1) of latents [B, c, h, w], [B]."""
    return per_image(-0.5 * (z.square() + math.log(2 * math.pi)))


def log_volume(kind: Latents, z: Tensor) -> float:
    """log of how much z takes up for what x0 = (z - mean) / std does: of all latents together the sum of log std."""
    return sum(map(math.log, kind.std)) * math.prod(z.shape[2:])
