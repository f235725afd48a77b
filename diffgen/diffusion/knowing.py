"""A network that is told of a part of x0: which frames of a clip are known, and what they show.

It sees them beside x_t, in channels of their own, as in MCVD (Voleti et al. 2022); which frames are known is drawn anew
for each clip, as there and in RaMViD (Hoppe et al. 2022). So one network makes clips, continues them and fills them in.
Beside a frame that is not known it sees the nearest one that is: what belongs there is then near by, and only moved.
"""

import torch
from torch import Tensor


def told(x0: Tensor, known: Tensor) -> Tensor:
    """What a network is told of clips.

    Args:
        x0: [B, C, T, H, W].
        known: Which frames are known, bool [B, 1, T, 1, 1], or [1, 1, T, 1, 1] for all clips.

    Returns:
        [B, C + 1, T, H, W]: at each frame the nearest known one, itself if it is known and the earlier of two as near,
        and 1 where it is known; 0 for clips of which nothing is.
    """
    mark = known.to(x0).expand(len(x0), 1, *x0.shape[2:])
    known = known[:, 0, :, 0, 0].expand(len(x0), -1)
    time = torch.arange(x0.shape[2], device=x0.device)
    far = (time[:, None] - time).abs()  # [T, T]
    nearest = torch.where(known[:, None], far, len(time)).argmin(2)  # [B, T]
    shown = x0.gather(2, nearest[:, None, :, None, None].expand_as(x0))
    return torch.cat([shown * known.any(1)[:, None, None, None, None], mark], 1)


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
