"""What an autoencoder gives back of pictures, and how much of its latents it uses: plain functions of tensors."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffgen.core.devices import float_type
from diffgen.data.images import to_float, to_uint8
from diffgen.data.latents import AutoencoderNetwork, Latents
from diffgen.diffusion.codec import Codec
from diffgen.nets.autoencoder import Posterior, Quantiser

WINDOW = 11
"""Side of the Gaussian window of SSIM, of width 1.5 (Wang et al. 2004, sec. III C)."""

ACTIVE = 0.01
"""Variance over pictures of a latent's mean above which it is in use (Burda et al. 2016, sec. 2)."""

NO_SSIM = "SSIM is left out: pip install torchmetrics"


class Coder(NamedTuple):
    """An autoencoder as users meet it: pictures uint8 [B, C, H, W] to a posterior, and latents to such pictures."""

    network: AutoencoderNetwork
    decode: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, frame: Any, kind: Any) -> "Coder | None":
        """That of a model's frame or of its kind; None where there is none."""
        if isinstance(frame, Codec):
            return cls(frame.network, lambda z: to_uint8(frame.decode(z)))
        if isinstance(kind, Latents) and kind.network is not None:
            return cls(kind.network, lambda z: kind.decode(kind.scaled(z)))
        return None

    @property
    def quantiser(self) -> Quantiser | None:
        """Of latents that have levels."""
        found: Quantiser | None = getattr(self.network, "quantiser", None)
        return found

    def encode(self, pixels: Tensor) -> Posterior:
        """q(z | x) of pictures, [B, c, h, w]; they are on the network's device."""
        return self.network.encode(to_float(pixels))

    @torch.inference_mode()
    def through(self, pixels: Tensor) -> Tensor:
        """Pictures encoded (the mean of q) and decoded, uint8 like them."""
        return self.decode(self.encode(pixels).mean)

    def to(self, device: torch.device) -> "Coder":
        """The same with its network on a device."""
        self.network.to(device)  # type: ignore[attr-defined]
        return self


def psnr(pixels: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Peak signal-to-noise ratio of each pair of pictures uint8 [B, C, H, W], in dB.

    10 log10(255^2 / mse). A pair that is the same throughout would have infinitely many: it counts as if one value were
    one level off, the least error that such a pair can have.

    Returns:
        The ratios, float64 [B] on the CPU, and which pairs are the same, bool [B].
    """
    square = (pixels.cpu().double() - others.cpu().double()).square().flatten(1)
    mse = square.mean(1)
    return 10 * torch.log10(255**2 / mse.clamp(min=1 / square.shape[1])), mse == 0


def ssim(pixels: Tensor, others: Tensor) -> Tensor:
    """Structural similarity of each pair of pictures uint8 [B, C, H, W], float64 [B] (Wang et al. 2004, eq. 13).

    The mean over windows that lie inside the picture, as in the paper's code and in scikit-image; torchmetrics' own
    mean counts windows beyond the border, too, of a picture that is mirrored there.

    Raises:
        ImportError: torchmetrics is not installed.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    wide = float_type(pixels.device)
    _, found = structural_similarity_index_measure(
        others.to(wide), pixels.to(wide), sigma=1.5, reduction="none", data_range=255.0, return_full_image=True
    )
    inside = slice(WINDOW // 2, -(WINDOW // 2))
    return found[..., inside, inside].flatten(1).mean(1).cpu().double()


def without_ssim(size: tuple[int, ...]) -> str:
    """Why pictures of a size [C, H, W] have no SSIM here, in a sentence; empty if they have one."""
    if min(size[1:]) < WINDOW:
        return f"SSIM is left out: its window is {WINDOW}x{WINDOW}, and these pictures are {size[1]}x{size[2]}"
    try:
        import torchmetrics.functional.image  # noqa: F401
    except ImportError:
        return NO_SSIM
    return ""


class Codes:
    """Which codes of a quantiser are used: vectors of levels at sites."""

    def __init__(self, quantiser: Quantiser) -> None:
        """None are, so far."""
        self.quantiser, self.sites = quantiser, 0
        self.known = torch.empty(0, len(quantiser.levels), dtype=torch.int64)

    def add(self, z: Tensor) -> None:
        """Look at quantised z [B, c, h, w]."""
        vectors = self.quantiser.numbers(z).permute(0, 2, 3, 1).flatten(0, 2).cpu()
        self.sites += len(vectors)
        self.known = torch.cat([self.known, vectors]).unique(dim=0)

    @property
    def used(self) -> float:
        """Distinct codes that were seen, over all that there are."""
        return len(self.known) / math.prod(self.quantiser.levels)


class Channels:
    """What each channel of Gaussian latents carries: its rate, and whether its mean depends on the picture at all."""

    def __init__(self) -> None:
        """Nothing was looked at, so far."""
        self.count, self.sums = 0, torch.zeros(())

    def add(self, posterior: Posterior, rate: Tensor) -> None:
        """Look at q(z | x) of some pictures and its rate in nats, [B, c, h, w] each."""
        mean, rate = posterior.mean.cpu().double(), rate.cpu().double()
        self.sums = self.sums + torch.stack([mean.sum(0), mean.square().sum(0), rate.sum(0)])
        self.count += len(mean)

    @property
    def rate(self) -> list[float]:
        """Nats of a picture in each channel, all sites together, (c,)."""
        return [float(each) for each in (self.sums[2] / self.count).sum((1, 2))]

    @property
    def active(self) -> int:
        """How many channels have a site where the variance of the mean over pictures is above `ACTIVE`."""
        mean, square = self.sums[0] / self.count, self.sums[1] / self.count
        return int(((square - mean.square()) > ACTIVE).flatten(1).any(1).sum())
