"""A convolutional autoencoder: pictures to a grid of latents, and back (Kingma & Welling 2014; Rombach et al. 2022).

The latents are Gaussian, of which the encoder gives mean and log variance, or one of a few levels each: finite scalar
quantisation (Mentzer et al. 2024).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffgen.core.errors import require
from diffgen.core.registry import Table
from diffgen.nets.base import MODELS, DataShape
from diffgen.nets.layers import NEAR_ZERO, attend, conv, norm

AUTOENCODERS = Table("autoencoder")
"""Rows are called as row(shape, **settings), and encode and decode pictures of that shape; a checkpoint that was
trained on latents names its own."""


class Posterior(NamedTuple):
    """q(z | x): independent Gaussians, [B, c, h, w] each; a quantised z has no variance, and `log_var` is None."""

    mean: Tensor
    log_var: Tensor | None

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std noise, the reparameterised draw (Kingma & Welling 2014, eq. 10)."""
        return self.mean if self.log_var is None else self.mean + (0.5 * self.log_var).exp() * noise


def kl_of_gaussian(posterior: Posterior) -> Tensor:
    """KL(N(mean, exp(log_var)) || N(0, 1)) of each value in nats (Kingma & Welling 2014, app. B)."""
    mean, log_var = posterior
    assert log_var is not None
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var)


class Coded(NamedTuple):
    """Pictures through an autoencoder: decoded [B, C, H, W], log width of p(x | z) [C, 1, 1], rate [B, c, h, w]."""

    decoded: Tensor
    log_scale: Tensor
    rate: Tensor


class Block(nn.Module):
    """Residual block of two convolutions."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.norm0, self.conv0 = norm(c_in), conv(c_in, c_out)
        self.norm1, self.conv1 = norm(c_out), conv(c_out, c_out, gain=NEAR_ZERO)
        self.skip = conv(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, c_in, H, W] -> [B, c_out, H, W]."""
        h = self.conv0(F.silu(self.norm0(x)))
        return self.skip(x) + self.conv1(F.silu(self.norm1(h)))


class Attend(nn.Module):
    """Residual self-attention over sites, with one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.qkv, self.proj = conv(channels, 3 * channels, 1), conv(channels, channels, 1, gain=NEAR_ZERO)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same."""
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).contiguous().chunk(3, dim=-1)  # [B, H W, C]
        return x + self.proj(attend(q[:, None], k[:, None], v[:, None])[:, 0].transpose(1, 2).reshape(x.shape))


class Quantiser(nn.Module):
    """Finite scalar quantisation: each latent becomes one of a few levels in [-1, 1] (Mentzer et al. 2024, sec. 3).

    Attributes:
        levels: How many each channel has, (L_1, ..., L_c).
    """

    ROOM = 1e-3
    """Share by which the bound is wider than the outermost levels, so that tanh reaches them (lucidrains' code); the
    paper's own bound is as much narrower, and reaches them by rounding alone."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.levels = levels

    def count(self, z: Tensor) -> Tensor:
        """The number of levels of each channel, like z [B, c, h, w]: [c, 1, 1]."""
        return torch.stack([z.new_full((1, 1), count) for count in self.levels])  # written there: no step waits

    def bounded(self, z: Tensor) -> Tensor:
        """z squashed so that rounding gives L values: -L/2 .. L/2 - 1 of even L, -(L-1)/2 .. (L-1)/2 of odd ones."""
        levels = self.count(z)
        half = (levels - 1) * (1 + self.ROOM) / 2
        offset = 0.5 * (levels % 2 == 0).to(z)
        return (z + (offset / half).atanh()).tanh() * half - offset

    def forward(self, z: Tensor) -> Tensor:
        """[B, c, h, w] -> the same, rounded and divided by floor(L/2); the gradient passes the rounding unchanged."""
        bounded = self.bounded(z.float())
        rounded = bounded + (bounded.round() - bounded).detach()  # straight through (Bengio et al. 2013)
        return rounded / (self.count(bounded) // 2)

    def numbers(self, z: Tensor) -> Tensor:
        """Which level each value of quantised z [B, c, h, w] is, int64 in [0, L)."""
        half = self.count(z) // 2
        return (z * half + half).round().long()

    def uniform(self, noise: Tensor) -> Tensor:
        """Levels, each as likely as the others, of standard normal numbers [B, c, h, w]."""
        levels = self.count(noise)
        share = torch.special.ndtr(noise)  # uniform in (0, 1)
        return ((share * levels).floor().minimum(levels - 1) - levels // 2) / (levels // 2)

    def normal(self, z: Tensor) -> Tensor:
        """For each level the normal number in the middle of those of which `uniform` makes it."""
        return torch.special.ndtri((self.numbers(z) + 0.5) / self.count(z))


@AUTOENCODERS.register("autoencoder")
@MODELS.register("autoencoder")
class Autoencoder(nn.Module):
    """Encoder and decoder of residual blocks; each level but the first halves the resolution.

    Attributes:
        factor: How many pixels of a side are one latent.
        latent_size: (c, h, w).
        quantiser: Of a network whose latents have levels, or None.
        log_scale: log of the width of p(x | z) around the decoded picture, learned for each channel [C, 1, 1].
    """

    def __init__(
        self,
        shape: DataShape,
        *,
        latent_channels: int,
        levels: tuple[int, ...] | None,
        channels: int,
        channel_mult: tuple[int, ...],
        blocks: int,
        attention: bool,
        patch: int,
    ) -> None:
        """Build the network for pictures whose sides `factor` divides.

        Args:
            shape: Of the pictures.
            latent_channels: c.
            levels: Of each latent channel, of a quantised one; null: the latents are Gaussian.
            channels: Width of the first level.
            channel_mult: Width of each level in units of `channels`.
            blocks: Residual blocks a level; the decoder has one more.
            attention: Whether sites of the coarsest level attend to each other.
            patch: Space-to-depth factor of the stem.
        """
        super().__init__()
        self.factor = patch * 2 ** (len(channel_mult) - 1)
        self._check(shape, latent_channels, levels, channels, channel_mult, blocks, patch)
        self.patch, widths = patch, [channels * mult for mult in channel_mult]
        self.latent_size = (latent_channels, shape.height // self.factor, shape.width // self.factor)
        self.quantiser = Quantiser(levels) if levels else None
        self.log_scale = nn.Parameter(torch.full((shape.channels, 1, 1), math.log(0.1)))
        inside, deepest = shape.channels * patch**2, widths[-1]

        def middle() -> list[nn.Module]:
            return [Block(deepest, deepest), *([Attend(deepest)] if attention else []), Block(deepest, deepest)]

        down: list[nn.Module] = [conv(inside, widths[0])]
        for c_in, c_out in zip([widths[0], *widths], widths, strict=False):
            if len(down) > 1:
                down.append(conv(c_in, c_in, stride=2))
            down += [Block(c_in if number == 0 else c_out, c_out) for number in range(blocks)]
        down += [*middle(), norm(deepest), nn.SiLU()]
        out = latent_channels * (1 if levels else 2)
        self.encoder = nn.Sequential(*down, conv(deepest, out))

        up: list[nn.Module] = [conv(latent_channels, deepest), *middle()]
        for level, (c_in, c_out) in enumerate(zip([deepest, *widths[::-1]], widths[::-1], strict=False)):
            if level > 0:
                up += [nn.Upsample(scale_factor=2), conv(c_in, c_in)]
            up += [Block(c_in if number == 0 else c_out, c_out) for number in range(blocks + 1)]
        up += [norm(widths[0]), nn.SiLU()]
        self.decoder = nn.Sequential(*up, conv(widths[0], inside))

    def _check(
        self,
        shape: DataShape,
        latent_channels: int,
        levels: Sequence[int] | None,
        channels: int,
        channel_mult: Sequence[int],
        blocks: int,
        patch: int,
    ) -> None:
        require(len(shape.size) == 3, f"name=autoencoder takes pictures [C, H, W], and the data is {shape}")
        require(1 <= latent_channels <= 64, f"latent_channels={latent_channels} must be in [1, 64]")
        told = (
            f"levels={list(levels or ())} must be null or one of [3, 1000] for each of the {latent_channels} channels"
        )
        sane = levels is None or (len(levels) == latent_channels and all(3 <= count <= 1000 for count in levels))
        require(sane, told)
        require(
            4 <= channels <= 4096 and channels % 4 == 0, f"channels={channels} must be a multiple of 4 in [4, 4096]"
        )
        require(
            1 <= len(channel_mult) <= 8 and all(1 <= mult <= 64 for mult in channel_mult),
            f"channel_mult={list(channel_mult)} must be 1 to 8 whole numbers in [1, 64]",
        )
        require(1 <= blocks <= 16, f"blocks={blocks} must be in [1, 16]")
        require(1 <= patch <= 64, f"patch={patch} must be in [1, 64]")
        whole = shape.height % self.factor == 0 and shape.width % self.factor == 0
        told = f"name=autoencoder makes a latent of {self.factor}x{self.factor} pixels, and these pictures are "
        require(
            whole, f"{told}{shape.height}x{shape.width}: choose another size, or channel_mult and patch that divide it"
        )

    def encode(self, x: Tensor) -> Posterior:
        """Pictures [B, C, H, W] in [-1, 1] -> their latents [B, c, h, w]."""
        h = self.encoder(F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x)
        if self.quantiser:
            return Posterior(self.quantiser(h), None)
        mean, log_var = h.float().chunk(2, dim=1)
        return Posterior(mean, log_var.clamp(-30, 20))  # as in Rombach et al.'s code; exp stays finite

    def decode(self, z: Tensor) -> Tensor:
        """Latents [B, c, h, w] -> the mean of p(x | z), pictures [B, C, H, W], about in [-1, 1]."""
        h = self.decoder(z)
        return F.pixel_shuffle(h, self.patch) if self.patch > 1 else h

    def rate(self, posterior: Posterior) -> Tensor:
        """KL(q(z | x) || p(z)) of each latent in nats, [B, c, h, w]; of a code the log of how many there are."""
        if self.quantiser:
            return self.quantiser.count(posterior.mean).log().expand_as(posterior.mean)
        return kl_of_gaussian(posterior)

    def forward(self, x: Tensor, noise: Tensor) -> Coded:
        """What a step of training needs of pictures [B, C, H, W], with standard normal noise [B, c, h, w]."""
        posterior = self.encode(x)
        return Coded(self.decode(posterior.sample(noise)), self.log_scale, self.rate(posterior))
