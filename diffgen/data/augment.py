"""Non-leaky augmentation: distort the training images, and tell the network how (Karras et al. 2022, app. F.2).

Every image gets, each with probability p, a flip, an isotropic scaling, a rotation, an anisotropic scaling and a
translation, joined to one affine map and applied at once on the batch's device. The parameters of the map, all 0 for an
untouched image, are an input of the network. Samples are drawn with zeros, so the distortions do not leak into them.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LABELS = 9
"""Numbers that describe one image's augmentation."""

SCALE_STD = 0.2  # in octaves
TRANSLATE_STD = 0.125  # in image sizes


class Draws(NamedTuple):
    """What random numbers the augmentation of a batch needs, so that callers can draw them for a global batch."""

    gates: Tensor  # uniform [B, 6]: which distortions an image gets
    values: Tensor  # standard normal [B, 8]: how large they are


def draw(n: int, generator: torch.Generator) -> Draws:
    """Random numbers for n images, on the generator's device."""
    device = generator.device
    gates = torch.rand(n, 6, generator=generator, device=device)
    return Draws(gates, torch.randn(n, 8, generator=generator, device=device))


def augment(x: Tensor, draws: Draws, p: float) -> tuple[Tensor, Tensor]:
    """Distort images.

    Args:
        x: Images [B, C, H, W].
        draws: Random numbers for them.
        p: Probability of each distortion but the horizontal flip, which half of the images get; in [0, 1].

    Returns:
        The distorted images [B, C, H, W], untouched ones bit for bit, and their labels [B, LABELS].
    """
    gates, values = draws
    on = (gates < p).to(x)
    flip_x = (gates[:, 0] < 0.5).to(x)
    flip_y = on[:, 1] * (values[:, 1] < 0)
    scale = on[:, 2] * values[:, 2] * SCALE_STD
    angle = on[:, 3] * math.pi * torch.erf(values[:, 3] / math.sqrt(2))  # uniform in [-pi, pi]
    stretch = on[:, 4] * values[:, 4] * SCALE_STD
    axis = on[:, 4] * math.pi * torch.erf(values[:, 5] / math.sqrt(2))  # along which to stretch
    shift = on[:, 5, None] * TRANSLATE_STD * values[:, 6:]  # [B, 2]
    labels = torch.stack(
        [
            flip_x,
            flip_y,
            scale / SCALE_STD,
            angle.cos() - 1,
            angle.sin(),
            stretch / SCALE_STD * axis.cos(),
            stretch / SCALE_STD * axis.sin(),
            shift[:, 0] / TRANSLATE_STD,
            shift[:, 1] / TRANSLATE_STD,
        ],
        dim=1,
    )
    x = torch.where(flip_x.bool()[:, None, None, None], x.flip(-1), x)
    x = torch.where(flip_y.bool()[:, None, None, None], x.flip(-2), x)
    moved = (labels[:, 2:] != 0).any(1)[:, None, None, None]
    return torch.where(moved, warp(x, scale, angle, stretch, axis, shift), x), labels


def warp(x: Tensor, scale: Tensor, angle: Tensor, stretch: Tensor, axis: Tensor, shift: Tensor) -> Tensor:
    """Apply scaling by 2^scale, rotation, stretching by 2^stretch along `axis`, and shifting by image sizes.

    Args:
        x: Images [B, C, H, W].
        scale: Octaves [B].
        angle: Radians [B].
        stretch: Octaves [B].
        axis: Radians [B].
        shift: Horizontal and vertical, in image sizes [B, 2].
    """
    height, width = x.shape[-2:]
    zero = torch.zeros_like(stretch)
    stretching = torch.stack([torch.exp2(-stretch), zero, zero, torch.exp2(stretch)], 1).reshape(-1, 2, 2)
    turn = rotation(axis)
    inverse = rotation(-angle) @ turn @ stretching @ turn.mT * torch.exp2(-scale)[:, None, None]  # output -> input
    inverse[:, 0, 1] *= height / width  # grid units are half sizes, of each side
    inverse[:, 1, 0] *= width / height
    theta = torch.cat([inverse, -inverse @ (2 * shift)[:, :, None]], dim=2)  # [B, 2, 3]
    grid = F.affine_grid(theta.to(x), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bicubic", padding_mode="reflection", align_corners=False).clamp(-1, 1)


def rotation(angle: Tensor) -> Tensor:
    """Rotation matrices [B, 2, 2]."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin, sin, cos], 1).reshape(-1, 2, 2)
