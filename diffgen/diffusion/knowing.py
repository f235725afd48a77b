"""A network that is told of a part of x0: which frames of a clip are known, and what they show.

It sees them beside x_t, in channels of their own, as in MCVD (Voleti et al. 2022); which frames are known is drawn anew
for each clip, as there and in RaMViD (Hoppe et al. 2022). So one network makes clips, continues them and fills them in.
"""

import torch
from torch import Tensor


def told(x0: Tensor, known: Tensor) -> Tensor:
    """What a network is told of examples.

    Args:
        x0: [B, C, *sides].
        known: Where it is known, bool [B, 1, *sides], or what is broadcast to that.

    Returns:
        [B, C + 1, *sides]: x0 where it is known and 0 elsewhere, and 1 where it is known.
    """
    known = known.to(x0).expand(len(x0), 1, *x0.shape[2:])
    return torch.cat([x0 * known, known], 1)


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
