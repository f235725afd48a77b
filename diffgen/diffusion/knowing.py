"""A network that is told of a part of x0: which frames of a clip are known, and what they show.

It sees them beside x_t, in channels of their own, as in MCVD (Voleti et al. 2022); which frames are known is drawn anew
for each clip, as there and in RaMViD (Hoppe et al. 2022). So one network makes clips, continues them and fills them in.
Beside each frame it sees the two nearest ones that are known: from one to the other it sees what moves, and how fast.
"""

import torch
from torch import Tensor

NEAREST = 2
"""Known frames that a network sees beside each frame."""


def channels(c: int) -> int:
    """In how many channels `told` tells of frames of c channels."""
    return NEAREST * (c + 1)


def told(x0: Tensor, known: Tensor) -> Tensor:
    """What a network is told of clips.

    Args:
        x0: [B, C, T, H, W].
        known: Which frames are known, bool [B, 1, T, 1, 1], or [1, 1, T, 1, 1] for all clips.

    Returns:
        [B, 2 (C + 1), T, H, W]: beside each frame, known or not, the nearest known one and then the second nearest, of
        two as near the earlier one first. Behind the channels of each is one that tells where it is: 1 / (1 + d) for d
        frames ago, negative for d frames ahead, so 1 beside a known frame itself. All are 0 where there is none.
    """
    known = known[:, 0, :, 0, 0].expand(len(x0), -1)
    time = torch.arange(x0.shape[2], device=x0.device)
    far = torch.where(known[:, None], (time[:, None] - time).abs(), len(time))  # [B, T, T]
    parts = []
    for nearest in far.argsort(dim=2, stable=True)[:, :, :NEAREST].unbind(2):  # [B, T]
        there = known.gather(1, nearest)[:, None, :, None, None]
        d = time - nearest
        place = torch.where(d < 0, -1, 1) / (1 + d.abs())
        shown = x0.gather(2, nearest[:, None, :, None, None].expand_as(x0))
        parts += [shown * there, (place[:, None, :, None, None] * there).to(x0).expand_as(x0[:, :1])]
    return torch.cat(parts, 1)


def known_frames(n: int, frames: int, p: float, rng: torch.Generator) -> Tensor:
    """Which frames are known in training: those of a clip with probability p, else none.

    Their number is uniform in [1, frames - 1]; with equal chances they are the first ones, or any.

    Returns:
        bool [n, frames], on the generator's device.
    """
    u, v, w = torch.rand(3, n, 1, generator=rng, device=rng.device)
    order = torch.rand(n, frames, generator=rng, device=rng.device).argsort(1)
    order = torch.where(v < 0.5, torch.arange(frames, device=rng.device), order)
    count = 1 + (w * (frames - 1)).long()
    return (u < p) & (order < count)
