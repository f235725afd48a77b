"""An autoencoder as a latent-variable model: p(z) p(x | z), and q(z | x) (Kingma & Welling 2014).

    log p(x) >= E_q[log p(x | z)] - KL(q(z | x) || p(z))

p(z) is standard normal, or uniform over the codes of quantised latents; p(x | z) is a distribution over the 256 levels
of a pixel, so that the bound counts bits of the pixels themselves.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffgen.diffusion.denoiser import Network
from diffgen.diffusion.schedules import Schedule
from diffgen.nets.autoencoder import Posterior, Quantiser

LogCdf = Callable[[Tensor], Tensor]


def log_ndtr(x: Tensor) -> Tensor:
    """log of the normal distribution function; the gradient of torch's own is lost in single precision far below 0."""
    far = x < -1
    low, high = x.masked_fill(~far, -1), x.masked_fill(far, -1)
    tail = (torch.special.erfcx(-low * math.sqrt(0.5)) / 2).log() - low.square() / 2
    return torch.where(far, tail, torch.log1p(-torch.special.erfc(high * math.sqrt(0.5)) / 2))


LIKELIHOODS: dict[str, LogCdf] = {"logistic": F.logsigmoid, "gaussian": log_ndtr}
"""log of the distribution function of width 1, by name; both are symmetric."""

BIN = 2 / 255
"""Distance of two levels of a pixel in [-1, 1]."""

BEYOND = 1e3
"""Where a distribution function is 0 or 1, and its slope still is a number."""


def log_mass(x: Tensor, mean: Tensor, log_scale: Tensor, likelihood: str) -> Tensor:
    """log of the mass that a distribution around `mean` has in the bin of each pixel (Salimans et al. 2017, sec. 2.1).

    The outermost bins reach to infinity, so that the 256 masses sum to 1.

    Args:
        x: Pixels [B, C, H, W], of the 256 levels in [-1, 1].
        mean: Like x.
        log_scale: log of the width, broadcast to x.
        likelihood: A key of `LIKELIHOODS`.
    """
    log_cdf, width = LIKELIHOODS[likelihood], log_scale.exp()
    low = ((x - BIN / 2 - mean) / width).masked_fill(x < -1 + BIN / 2, -BEYOND)
    high = ((x + BIN / 2 - mean) / width).masked_fill(x > 1 - BIN / 2, BEYOND)
    mirrored = low + high > 0  # where both tails are near 1: the mirror image keeps the digits
    low, high = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    top = log_cdf(high)
    return top + torch.log(-torch.expm1((log_cdf(low) - top).clamp(max=-1e-7)))


def exactly(device: torch.device) -> torch.autocast:
    """Single precision, whatever the denoiser runs in: bfloat16 has hardly more steps than a pixel has levels."""
    return torch.autocast(device.type, enabled=False)


class Codec:
    """The frame of an autoencoder: latents z of pictures x0 [B, C, H, W] in [-1, 1], and back."""

    def __init__(self, model: Network, schedule: Schedule) -> None:
        """Put it together.

        Args:
            model: (x0, noise) -> `Coded`; an `Autoencoder`, or what calls one in a step.
            schedule: Whose clock samplers are shown; there is no path to walk.
        """
        self.model, self.schedule = model, schedule
        self.network: Any = model
        """What encodes and decodes, also where `model` is compiled."""
        self.perceptual: Callable[[Tensor, Tensor], Tensor] | None = None
        """In training, what is added to the loss: (decoded, x0), [B, C, H, W] each -> [B]."""

    @property
    def quantiser(self) -> Quantiser | None:
        """Of latents that have levels."""
        found: Quantiser | None = self.network.quantiser
        return found

    def encode(self, x0: Tensor) -> Posterior:
        """q(z | x0), [B, c, h, w] in float32."""
        with exactly(x0.device):
            posterior: Posterior = self.network.encode(x0.float())
        return posterior

    def decode(self, z: Tensor) -> Tensor:
        """The mean of p(x | z), [B, C, H, W] in z's dtype."""
        with exactly(z.device):
            decoded: Tensor = self.network.decode(z.float())
        return decoded.to(z)

    def of_noise(self, noise: Tensor) -> Tensor:
        """Latents from p(z), of standard normal numbers like them."""
        return noise if self.quantiser is None else self.quantiser.uniform(noise)

    def noise_of(self, z: Tensor) -> Tensor:
        """The inverse of `of_noise`; of a code the middle of the numbers that give it."""
        return z if self.quantiser is None else self.quantiser.normal(z)


def nats_to_bits_per_dim(nats: Tensor, x0: Tensor) -> Tensor:
    """Nats of examples [B] -> bits for each of their values."""
    return nats / (x0[0].numel() * math.log(2))
