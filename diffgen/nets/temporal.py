"""What lets the frames of a clip know of each other, in a network of pictures: layers along time, at each place.

The network's own layers see every frame as a picture, as in VDM (Ho et al. 2022): to them, clips [B, C, T, H, W] are
[B T, C, H, W]. Layers along time start at nearly zero, so a network of pictures can start one of clips.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffgen.nets.layers import NEAR_ZERO, SinusoidalEmbedding, attend, init_xavier, linear, norm

PLACES = 64
"""Numbers that tell which frame it is."""


def as_frames(clips: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B T, C, H, W]."""
    return clips.transpose(1, 2).flatten(0, 1)


def as_clips(frames: Tensor, t: int) -> Tensor:
    """The inverse, for clips of t frames."""
    return frames.unflatten(0, (-1, t)).transpose(1, 2)


class TimeConv(nn.Module):
    """A residual convolution over three frames."""

    def __init__(self, channels: int, frames: int) -> None:
        """Args: frames: of a clip."""
        super().__init__()
        self.frames = frames
        self.norm = norm(channels)
        self.conv = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))
        init_xavier(self.conv, NEAR_ZERO)

    def forward(self, x: Tensor) -> Tensor:
        """[B T, C, H, W] -> the same."""
        h = as_clips(F.silu(self.norm(x)), self.frames)
        return x + as_frames(self.conv(h))


class TimeAttention(nn.Module):
    """Residual self-attention of the frames, at each place."""

    def __init__(self, channels: int, heads: int, frames: int) -> None:
        """Args: frames: of a clip."""
        super().__init__()
        self.heads, self.frames = heads, frames
        self.norm = norm(channels)
        self.which = SinusoidalEmbedding(PLACES)
        self.place = linear(PLACES, channels)
        self.q, self.k, self.v, self.out = (linear(channels, channels) for _ in range(4))
        init_xavier(self.out, NEAR_ZERO)

    def forward(self, x: Tensor) -> Tensor:
        """[B T, C, H, W] -> the same."""
        b, c, height, width = x.shape
        h = self.norm(x).reshape(-1, self.frames, c, height * width).permute(0, 3, 1, 2)  # [B, H W, T, C]
        h = h + self.place(self.which(torch.arange(self.frames, device=x.device)).to(h))
        q, k, v = (layer(h).unflatten(-1, (self.heads, -1)).transpose(2, 3) for layer in (self.q, self.k, self.v))
        h = self.out(attend(q, k, v).transpose(2, 3).flatten(3))
        return x + h.permute(0, 2, 3, 1).reshape(b, c, height, width)


LAYERS = {"conv": lambda channels, heads, frames: TimeConv(channels, frames), "attention": TimeAttention}


def between_frames(names: Sequence[str], heads: int, frames: int, channels: int) -> nn.Module:
    """Layers of these names, one after the other.

    Args:
        names: `conv`, `attention`.
        heads: Of attention.
        frames: Of a clip.
        channels: Of a frame.
    """
    return nn.Sequential(*(LAYERS[name](channels, heads, frames) for name in names))
