"""The U-Net of DDPM in the details of diffusers' UNet2DModel, whose weights it takes as they are.

It has the layers of `unet` with resample=conv, and their names. Published weights need what `unet` fixes: how many
groups a norm has and its epsilon, how wide a head is, where a strided convolution is padded, and the frequencies.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from diffgen.core.errors import require
from diffgen.nets.base import MODELS, DataShape
from diffgen.nets.layers import SinusoidalEmbedding
from diffgen.nets.unet import Attention, Downsample, UNet


class DownsamplePaddedAfter(Downsample):
    """Halve the resolution by a strided convolution that is padded below and on the right alone, as TensorFlow's is."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out)
        self.conv.padding = (0, 0)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H / 2, W / 2]."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


@MODELS.register("unet2d")
class UNet2D(UNet):
    """DDPM's U-Net with the details of diffusers' UNet2DModel as settings."""

    def __init__(
        self,
        shape: DataShape,
        *,
        channels: int,
        channel_mult: tuple[int, ...],
        blocks: int,
        attention_resolutions: tuple[int, ...],
        head_channels: int | None,
        dropout: float,
        groups: int,
        eps: float,
        padding: Literal["both", "after"],
        frequency_shift: float,
    ) -> None:
        """Build the network for a data shape whose sides can be halved on every level but the last.

        Args:
            shape: As for `unet`.
            channels: As for `unet`.
            channel_mult: As for `unet`.
            blocks: As for `unet`.
            attention_resolutions: As for `unet`.
            head_channels: Channels of an attention head; None for one head of all.
            dropout: As for `unet`.
            groups: Of every group norm.
            eps: Of every group norm.
            padding: Of a strided convolution: on `both` sides, or `after`, below and on the right.
            frequency_shift: s of the frequencies 1e-4^(i / (channels / 2 - s)) of the time embedding: 0, or 1 in DDPM.
        """
        require(
            len(shape.size) == 3 and not shape.given,
            f"name=unet2d takes pictures [C, H, W], and the data is {shape}: choose model=video_tiny",
        )
        require(not shape.spans, "name=unet2d is told of one time alone: choose model=unet_tiny, say")
        super().__init__(
            shape,
            channels=channels,
            channel_mult=channel_mult,
            blocks=blocks,
            attention_resolutions=attention_resolutions,
            heads=1,
            dropout=dropout,
            resample="conv",
            skip_scale=1.0,
            decoder_attention="all",
            patch=1,
            time_layers=(),
        )
        self._check_details(shape, len(channel_mult), groups, eps, frequency_shift)
        self.embedding.sinusoidal = SinusoidalEmbedding(channels, frequency_shift)
        for module in self.modules():
            if isinstance(module, nn.GroupNorm):
                _regroup(module, groups, eps)
            if isinstance(module, Attention) and head_channels is not None:
                module.heads = _heads(module, head_channels)
        for number, layer in enumerate(self.encoder):
            if padding == "after" and isinstance(layer, Downsample):
                self.encoder[number] = DownsamplePaddedAfter(layer.conv.in_channels, layer.conv.out_channels)

    @staticmethod
    def _check_details(shape: DataShape, levels: int, groups: int, eps: float, shift: float) -> None:
        parts = 2 ** (levels - 1)
        require(
            shape.height % parts == 0 and shape.width % parts == 0,
            f"name=unet2d halves pictures {levels - 1} times: {parts} must divide both sides of {shape}, or name=unet",
        )
        require(groups >= 1, f"groups={groups} must be at least 1")
        require(0 < eps < 1, f"eps={eps} must be in (0, 1)")
        require(0 <= shift <= 1, f"frequency_shift={shift} must be in [0, 1]")


def _regroup(layer: nn.GroupNorm, groups: int, eps: float) -> None:
    require(
        layer.num_channels % groups == 0, f"groups={groups} must divide the {layer.num_channels} channels of each norm"
    )
    layer.num_groups, layer.eps = groups, eps


def _heads(layer: Attention, width: int) -> int:
    channels = layer.norm.num_channels
    require(
        width >= 1 and channels % width == 0,
        f"head_channels={width} must divide the {channels} channels at each attention",
    )
    return channels // width
