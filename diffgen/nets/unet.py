"""One U-Net for all sizes: DDPM's (Ho et al. 2020, app. B) and DDPM++ as EDM trains it (Karras et al. 2022, table 7).

They differ in four settings: how the resolution changes (`resample`), whether residual sums are rescaled
(`skip_scale`), where the decoder attends (`decoder_attention`), and the widths. Everything else is shared:
group norm, SiLU, nearest/average resampling, single time-and-label embedding added inside each block, and near-zero
initialisation of every layer that ends a residual branch.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffgen.core.errors import require
from diffgen.nets.base import MODELS, DataShape
from diffgen.nets.layers import NEAR_ZERO, Embedding, attend, conv, linear, norm
from diffgen.nets.temporal import as_clips, as_frames, between_frames


class ResBlock(nn.Module):
    """Residual block with time embedding, optional resampling and optional attention."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        *,
        width: int,
        dropout: float,
        skip_scale: float,
        heads: int = 0,
        resample: Literal["none", "down", "up"] = "none",
        time: Callable[[int, int], nn.Module] | None = None,
    ) -> None:
        """Args: channels in and out, width of the embedding, and the number of attention heads (0: no attention).

        `time` makes the layers between the frames of clips; pictures have none.
        """
        super().__init__()
        self.resample, self.dropout, self.skip_scale = resample, dropout, skip_scale
        self.norm0, self.conv0 = norm(c_in), conv(c_in, c_out)
        self.embed = linear(width, c_out)
        self.norm1, self.conv1 = norm(c_out), conv(c_out, c_out, gain=NEAR_ZERO)
        project = c_in != c_out or resample != "none"
        self.skip = conv(c_in, c_out, 1) if project else nn.Identity()
        self.attention = Attention(c_out, heads, skip_scale) if heads else nn.Identity()
        self.time = time(heads, c_out) if time else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor, size: torch.Size | None = None) -> Tensor:
        """x [B, c_in, H, W], embedding [B, width]; `size` is the (H, W) to reach when resampling up."""
        h = self.conv0(self._resize(F.silu(self.norm0(x)), size))
        h = h + self.embed(embedding)[:, :, None, None]
        h = self.conv1(F.dropout(F.silu(self.norm1(h)), self.dropout, self.training))
        x = (self.skip(self._resize(x, size)) + h) * self.skip_scale
        return self.time(self.attention(x))

    def _resize(self, x: Tensor, size: torch.Size | None) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2, ceil_mode=True)
        return F.interpolate(x, size=size, mode="nearest") if self.resample == "up" else x


class Attention(nn.Module):
    """Residual self-attention over pixels."""

    def __init__(self, channels: int, heads: int, skip_scale: float) -> None:
        super().__init__()
        require(channels % heads == 0, f"heads={heads} must divide the {channels} channels at each attention")
        self.heads, self.skip_scale = heads, skip_scale
        self.norm = norm(channels)
        self.qkv = conv(channels, 3 * channels, 1, gain=math.sqrt(0.2))
        self.proj = conv(channels, channels, 1, gain=NEAR_ZERO)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same."""
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w)
        q, k, v = qkv.transpose(-1, -2).contiguous().unbind(1)  # [B, heads, H W, C / heads] each
        attended = attend(q, k, v).transpose(-1, -2).reshape(b, c, h, w)
        return (x + self.proj(attended)) * self.skip_scale


class Downsample(nn.Module):
    """Halve the resolution by a strided convolution."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = conv(c_in, c_out, stride=2)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, ceil(H / 2), ceil(W / 2)]."""
        return self.conv(x)


class Upsample(nn.Module):
    """Nearest-neighbour enlargement and a convolution."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = conv(c_in, c_out)

    def forward(self, x: Tensor, embedding: Tensor, size: torch.Size) -> Tensor:
        """[B, C, h, w] -> [B, C, *size]."""
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


@MODELS.register("unet")
class UNet(nn.Module):
    """U-Net of residual blocks with attention at chosen resolutions."""

    def __init__(
        self,
        shape: DataShape,
        *,
        channels: int,
        channel_mult: tuple[int, ...],
        blocks: int,
        attention_resolutions: tuple[int, ...],
        heads: int,
        dropout: float,
        resample: Literal["conv", "block"],
        skip_scale: float,
        decoder_attention: Literal["all", "last"],
        patch: int,
        time_layers: tuple[Literal["conv", "attention", "full_attention"], ...],
    ) -> None:
        """Build the network for a data shape; any height and width that `patch` divides.

        Args:
            shape: Channels, frames of clips, height, width and number of classes of the data.
            channels: Width of the first level.
            channel_mult: Width of each level in units of `channels`; each level halves the resolution.
            blocks: Residual blocks a level in the encoder; the decoder has one more.
            attention_resolutions: Heights of feature maps at which blocks attend; the middle always does.
            heads: Attention heads.
            dropout: Probability inside residual blocks.
            resample: `conv`, strided and after-nearest convolutions (DDPM); `block`, residual blocks (DDPM++).
            skip_scale: Factor on residual sums, 1 (DDPM) or sqrt(1/2) (DDPM++).
            decoder_attention: Whether every decoder block of a chosen resolution attends, or the last only.
            patch: Space-to-depth factor of the stem; 2 quarters the cost of small images.
            time_layers: What lets the frames of clips know of each other after each block, in this order; pictures
                have none of it.
        """
        super().__init__()
        self._check(shape, channels, channel_mult, blocks, heads, dropout, patch)
        self.patch = patch
        self.frames = shape.size[1] if len(shape.size) == 4 else 0
        told = "time_layers=[] would leave the frames of clips alone: [conv, attention], [conv] or [attention]"
        require(bool(time_layers) or not self.frames, told)
        width, widths = 4 * channels, [channels * mult for mult in channel_mult]
        heights = [math.ceil(shape.height / patch / 2**level) for level in range(len(widths))]
        time = partial(between_frames, time_layers, self.frames) if self.frames else None
        block = partial(ResBlock, width=width, dropout=dropout, skip_scale=skip_scale, time=time)
        down = Downsample if resample == "conv" else partial(block, resample="down")
        up = Upsample if resample == "conv" else partial(block, resample="up")

        self.embedding = Embedding(channels, width, shape)
        self.stem = conv((shape.channels + shape.given) * patch**2, channels)
        c, skips = channels, [channels]
        self.encoder = nn.ModuleList()
        for level, c_out in enumerate(widths):
            if level > 0:
                self.encoder.append(down(c, c))
                skips.append(c)
            for _ in range(blocks):
                attends = heights[level] in attention_resolutions
                self.encoder.append(block(c, c_out, heads=heads * attends))
                skips.append(c := c_out)

        self.middle = nn.ModuleList([block(c, c, heads=heads), block(c, c)])

        self.decoder = nn.ModuleList()
        for level, c_out in reversed(list(enumerate(widths))):
            for number in range(blocks + 1):
                attends = heights[level] in attention_resolutions
                attends = attends and (decoder_attention == "all" or number == blocks)
                self.decoder.append(block(c + skips.pop(), c_out, heads=heads * attends))
                c = c_out
            if level > 0:
                self.decoder.append(up(c, c))
        self.norm = norm(c)
        self.head = conv(c, shape.channels * patch**2, gain=NEAR_ZERO)

    @staticmethod
    def _check(
        shape: DataShape,
        channels: int,
        channel_mult: tuple[int, ...],
        blocks: int,
        heads: int,
        dropout: float,
        patch: int,
    ) -> None:
        require(
            len(shape.size) in (3, 4),
            f"name=unet takes pictures [C, H, W] and clips, and the data is {shape}: choose model=mlp or dit_tiny",
        )
        require(
            4 <= channels <= 4096 and channels % 4 == 0,
            f"channels={channels} must be a multiple of 4 in [4, 4096]",
        )
        require(
            1 <= len(channel_mult) <= 8 and all(1 <= m <= 64 for m in channel_mult),
            f"channel_mult={list(channel_mult)} must be 1 to 8 whole numbers in [1, 64]",
        )
        require(1 <= blocks <= 64, f"blocks={blocks} must be in [1, 64]")
        levels = len(channel_mult)
        require(blocks * levels <= 128, f"blocks={blocks} on {levels} levels are more than 128 in all")
        require(1 <= heads <= 64, f"heads={heads} must be in [1, 64]")
        require(0 <= dropout < 1, f"dropout={dropout} must be in [0, 1)")
        require(
            1 <= patch <= 64 and shape.height % patch == 0 and shape.width % patch == 0,
            f"patch={patch} must divide the image size {shape.height}x{shape.width}",
        )

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        label: Tensor,
        augment: Tensor | None = None,
        estimate: None = None,
        span: Tensor | None = None,
    ) -> Tensor:
        """F(x).

        Args:
            x: [B, C, H, W], or [B, C, T, H, W].
            condition: The schedule's noise_cond, [B].
            label: int64 [B], negative for none.
            augment: What was done to the training images, [B, augment_labels]; None for untouched ones.
            estimate: None: this network sees none.
            span: How far the step goes, [B], where the network is built for it; None: nowhere.

        Returns:
            Like x, without the channels that tell what is known.
        """
        embedding = self.embedding(condition, label, augment, span)
        if not self.frames:
            return self._pictures(x, embedding)
        frames = self._pictures(as_frames(x), embedding.repeat_interleave(self.frames, 0))
        return as_clips(frames, self.frames)

    def _pictures(self, x: Tensor, embedding: Tensor) -> Tensor:
        """[B, C, H, W], embedding [B, width] -> [B, C, H, W]."""
        h = self.stem(F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x)
        skips = [h]
        for layer in self.encoder:
            h = layer(h, embedding)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, embedding)
        for layer in self.decoder:
            if _upsamples(layer):
                h = layer(h, embedding, skips[-1].shape[-2:])
            else:
                h = layer(torch.cat([h, skips.pop()], dim=1), embedding)
        h = self.head(F.silu(self.norm(h)))
        return F.pixel_shuffle(h, self.patch) if self.patch > 1 else h


def _upsamples(layer: nn.Module) -> bool:
    return isinstance(layer, Upsample) or (isinstance(layer, ResBlock) and layer.resample == "up")
