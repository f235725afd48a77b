"""Layers that networks share: convolutions and linear layers with their weights, norms, attention, embeddings."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffgen.nets.base import DataShape

NEAR_ZERO = 1e-5  # gain of layers that end a residual branch: zero but for symmetry (Karras et al. 2022, table 7)


def init_xavier(layer: nn.Conv2d | nn.Conv3d | nn.Linear, gain: float = 1.0) -> None:
    """Xavier-uniform weights times `gain`, zero bias."""
    nn.init.xavier_uniform_(layer.weight)
    with torch.no_grad():
        layer.weight.mul_(gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def conv(c_in: int, c_out: int, kernel: int = 3, *, stride: int = 1, gain: float = 1.0) -> nn.Conv2d:
    """A convolution that keeps the size (rounded up, halved with stride 2)."""
    layer = nn.Conv2d(c_in, c_out, kernel, stride=stride, padding=kernel // 2)
    init_xavier(layer, gain)
    return layer


def linear(c_in: int, c_out: int) -> nn.Linear:
    """A linear layer."""
    layer = nn.Linear(c_in, c_out)
    init_xavier(layer)
    return layer


def zero_weights(c_in: int, c_out: int) -> nn.Linear:
    """A linear layer without bias that starts at zero."""
    layer = nn.Linear(c_in, c_out, bias=False)
    nn.init.zeros_(layer.weight)
    return layer


def norm(channels: int) -> nn.GroupNorm:
    """Group norm with up to 32 groups of at least 4 channels."""
    groups = min(32, max(channels // 4, 1))
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels, eps=1e-6)


class SinusoidalEmbedding(nn.Module):
    """cos and sin of the noise condition at geometric frequencies from 1 to 1e-4 (Vaswani et al. 2017).

    `shift` is 1 where the last frequency is 1e-4 itself, as in the code of DDPM, and 0 where it would be the next.
    """

    def __init__(self, channels: int, shift: float = 0.0) -> None:
        super().__init__()
        self.channels, self.shift = channels, shift

    def forward(self, condition: Tensor) -> Tensor:
        """[B] -> [B, channels]."""
        half = self.channels // 2
        frequencies = torch.arange(half, device=condition.device, dtype=torch.float32) / (half - self.shift)
        angles = condition[:, None] * torch.exp(-math.log(10_000) * frequencies)  # [B, channels / 2]
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class Embedding(nn.Module):
    """Noise level, label and augmentation, joined to one vector (Karras et al. 2022, app. F.1).

    And how far a step goes, where a network is told: cos and sin of that less what they are at 0, so a step that goes
    nowhere adds nothing, through weights that start at zero.
    """

    def __init__(self, channels: int, width: int, shape: DataShape) -> None:
        super().__init__()
        self.num_classes = shape.num_classes
        self.sinusoidal = SinusoidalEmbedding(channels)
        self.label = linear(shape.num_classes, channels) if shape.num_classes else None
        self.augment = nn.Linear(shape.augment_labels, channels, bias=False) if shape.augment_labels else None
        self.span = zero_weights(channels, channels) if shape.spans else None
        self.layer0 = linear(channels, width)
        self.layer1 = linear(width, width)

    def forward(
        self, condition: Tensor, label: Tensor, augment: Tensor | None = None, span: Tensor | None = None
    ) -> Tensor:
        """([B], int64 [B], negative for none, [B, augment_labels] or None for untouched, [B] or None) -> [B, width]."""
        h = self.sinusoidal(condition)
        if self.label is not None:
            one_hot = label[:, None] == torch.arange(self.num_classes, device=label.device)  # none of them for -1
            h = h + self.label(one_hot.to(h) * math.sqrt(self.num_classes))
        if self.augment is not None and augment is not None:
            h = h + self.augment(augment)
        if self.span is not None and span is not None:
            h = h + self.span(self.sinusoidal(span) - self.sinusoidal(torch.zeros_like(span)))
        return F.silu(self.layer1(F.silu(self.layer0(h))))


def carry_classes(own: Tensor, theirs: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """The label weights of an `Embedding` with some classes of another's, which then add the same to the embedding.

    Args:
        own: [channels, classes].
        theirs: [channels, their classes].
        pairs: Numbers of the same class here and there.

    Returns:
        [channels, classes]; one-hot labels grow with the number of classes, so the columns shrink with it.
    """
    carried = own.clone()
    for here, there in pairs:
        carried[:, here] = theirs[:, there] * math.sqrt(theirs.shape[1] / own.shape[1])
    return carried


def carry_channels(own: Tensor, theirs: Tensor) -> Tensor:
    """The weights of a layer that takes channels in, with another's for the first of them: the others add nothing.

    Args:
        own: [out, channels, ...].
        theirs: [out, fewer channels, ...].

    Returns:
        Like `own`.
    """
    carried = torch.zeros_like(own)
    carried[:, : theirs.shape[1]] = theirs
    return carried


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, for [..., N, d] each (Vaswani et al. 2017, eq. 1)."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:  # the fused backward pass is many times slower there
        return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v)
