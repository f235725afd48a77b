"""Bounds on the likelihood of pictures under an autoencoder, in bits per dimension.

    log p(x) >= E_q[log p(x | z)] - KL(q(z | x) || p(z))                        (Kingma & Welling 2014, eq. 3)
    log p(x) >= E log 1/K sum_k p(x | z_k) p(z_k) / q(z_k | x),  z_k ~ q        (Burda et al. 2016, eq. 8)

p(x | z) is a distribution over the 256 levels of a pixel, so both are upper bounds on bits of the pixels themselves.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from diffgen.core.devices import float_type
from diffgen.core.randomness import image_noise
from diffgen.data.latents import AutoencoderNetwork
from diffgen.diffusion.codec import log_mass
from diffgen.evaluation.bits_per_dim import levels, per_image
from diffgen.nets.autoencoder import Posterior, kl_of_gaussian

SAMPLES = 64
"""K: draws of z for each picture, of which both bounds are."""


class Elbo(NamedTuple):
    """Terms of the bound in bits per dimension, float64 [B] each on the CPU.

    `iwae` is the importance-weighted bound; None where the code is a function of the picture.
    """

    rate: Tensor
    distortion: Tensor
    iwae: Tensor | None

    @property
    def total(self) -> Tensor:
        """Upper bound on the bits per dimension, [B]."""
        return self.rate + self.distortion


@torch.inference_mode()
def elbo(
    network: AutoencoderNetwork, log_scale: Tensor, likelihood: str, pixels: Tensor, images: list[int], *, seed: int
) -> Elbo:
    """Both bounds of some pictures, the KL in closed form and the rest over `SAMPLES` draws of z.

    Both are of the same draws, so that their difference scatters less than they do. A code has one z, no draw, and for
    its rate the log of the number of codes: what it takes to name one where all are equally likely.

    Args:
        network: Encodes and decodes; its `rate` gives the nats of each latent.
        log_scale: log of the width of p(x | z), broadcast to pictures.
        likelihood: p(x | z), a key of `codec.LIKELIHOODS`.
        pixels: uint8 [B, C, H, W], on the network's device.
        images: Their numbers: the noise of a picture is a function of (seed, its number).
        seed: Of the noise.
    """
    x, unit = levels(pixels), pixels[0].numel() * math.log(2)
    posterior = network.encode(x.float())
    rate = per_image(rates(network, posterior)).cpu().double() / unit
    fits, weights = [], []
    for draw in range(SAMPLES if posterior.log_var is not None else 1):
        noise = image_noise(tuple(posterior.mean.shape[1:]), images, seed, draw).to(x)
        z, surprise = drawn(posterior, noise)
        fits.append(per_image(log_mass(x, network.decode(z.float()).to(x), log_scale.to(x), likelihood)))
        weights.append(fits[-1] + surprise)
    distortion = -torch.stack(fits).mean(0).cpu().double() / unit
    if posterior.log_var is None:
        return Elbo(rate, distortion, None)
    nats = torch.stack(weights).logsumexp(0) - math.log(SAMPLES)
    return Elbo(rate, distortion, -nats.cpu().double() / unit)


def rates(network: AutoencoderNetwork, posterior: Posterior) -> Tensor:
    """KL(q(z | x) || p(z)) of each latent in nats, [B, c, h, w], as wide as the device has numbers; see `rate`."""
    if posterior.log_var is None:
        rate: Tensor = network.rate(posterior)  # type: ignore[attr-defined]
        return rate
    wide = float_type(posterior.mean.device)
    return kl_of_gaussian(Posterior(posterior.mean.to(wide), posterior.log_var.to(wide)))


def drawn(posterior: Posterior, noise: Tensor) -> tuple[Tensor, Tensor]:
    """z ~ q(z | x) by standard normal noise, both [B, c, h, w], and log p(z) - log q(z | x) of each, [B].

    Of a code z is the code, and the second 0.
    """
    z = Posterior(posterior.mean.to(noise), None if posterior.log_var is None else posterior.log_var.to(noise))
    sample = z.sample(noise)
    if z.log_var is None:
        return sample, sample.new_zeros(len(sample))
    return sample, per_image((noise.square() + z.log_var - sample.square()) / 2)
