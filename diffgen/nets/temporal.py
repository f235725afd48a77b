"""What lets the frames of a clip know of each other, in a network of pictures: layers along time.

The network's own layers see every frame as a picture, as in VDM (Ho et al. 2022): to them, clips [B, C, T, H, W] are
[B T, C, H, W]. Layers along time start at nearly zero, so a network of pictures can start one of clips.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffgen.nets.layers import NEAR_ZERO, SinusoidalEmbedding, attend, conv, init_xavier, linear, norm

PLACES = 64
"""Numbers that tell which frame it is."""


def as_frames(clips: Tensor) -> Tensor:
    """[B, C, T, H, W] -> [B T, C, H, W]."""
    return clips.transpose(1, 2).flatten(0, 1)


def as_clips(frames: Tensor, t: int) -> Tensor:
    """The inverse, for clips of t frames."""
    return frames.unflatten(0, (-1, t)).transpose(1, 2)


class TimeConv(nn.Module):
    """A residual convolution over three frames, the one before, itself and the next, whose channels it joins."""

    def __init__(self, channels: int, frames: int) -> None:
        """Args: frames: of a clip."""
        super().__init__()
        self.frames = frames
        self.norm, self.conv = norm(channels), conv(3 * channels, channels, 1, gain=NEAR_ZERO)

    def forward(self, x: Tensor) -> Tensor:
        """[B T, C, H, W] -> the same."""
        h = F.silu(self.norm(x)).permute(0, 2, 3, 1).unflatten(0, (-1, self.frames))  # [B, T, H, W, C]
        nothing = torch.zeros_like(h[:, :1])
        before, after = torch.cat([nothing, h[:, :-1]], 1), torch.cat([h[:, 1:], nothing], 1)
        taps = self.conv.weight.flatten(1)  # a product of matrices: a CPU is slower at the convolution
        joined = F.linear(torch.cat([before, h, after], -1), taps, self.conv.bias).flatten(0, 1)
        return x + joined.permute(0, 3, 1, 2)


class TimeAttention(nn.Module):
    """Residual self-attention of the frames: at each place, or between all places on all frames."""

    def __init__(self, channels: int, heads: int, frames: int, *, full: bool = False) -> None:
        """Args: frames: of a clip; full: whether what moves is seen where it was, and not the same place alone."""
        super().__init__()
        self.heads, self.frames, self.full = heads, frames, full
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
        sites = h.flatten(1, 2) if self.full else h.flatten(0, 1)
        q, k, v = (layer(sites).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        h = self.out(attend(q, k, v).transpose(1, 2).flatten(2)).view_as(h)
        return x + h.permute(0, 2, 3, 1).reshape(b, c, height, width)


LAYERS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "conv": lambda channels, heads, frames: TimeConv(channels, frames),
    "attention": TimeAttention,
    "full_attention": partial(TimeAttention, full=True),
}


def between_frames(names: Sequence[str], frames: int, heads: int, channels: int) -> nn.Module:
    """Layers of these names, one after the other; attention only where there are heads.

    Args:
        names: `conv`, `attention`, `full_attention`.
        frames: Of a clip.
        heads: Of attention.
        channels: Of a frame.
    """
    return nn.Sequential(*(LAYERS[name](channels, heads, frames) for name in names if heads or name == "conv"))
