"""Metrics of clips: pure functions on stored clips, uint8 [n, T, C, H, W]."""

import torch
from torch import Tensor


def changes(clips: Tensor) -> Tensor:
    """What changes from one frame to the next, as pictures: absolute differences, uint8 [n, T - 1, C, H, W]."""
    before, after = clips[:, :-1], clips[:, 1:]
    return torch.maximum(before, after) - torch.minimum(before, after)


def motion(clips: Tensor) -> Tensor:
    """How much changes from one frame to the next: the mean absolute difference in grey levels, float [n, T - 1]."""
    return changes(clips).float().mean((2, 3, 4))


def wasserstein(a: Tensor, b: Tensor) -> float:
    """Wasserstein-1 distance of two samples of real numbers, [n] and [m], in their own unit.

    It is the area between their distribution functions (Vallender 1974).
    """
    both = torch.cat([a, b]).double().sort().values
    below = [torch.searchsorted(each.double().sort().values, both[:-1], right=True) / len(each) for each in (a, b)]
    return float(((below[0] - below[1]).abs() * both.diff()).sum())


def constancy(clips: Tensor) -> Tensor:
    """How alike what is seen on each frame is to that on the first one, wherever it is: float [n] in [0, 1].

    The mean over the later frames of their largest normalised cross-correlation with the first, over all shifts by
    whole pixels; 1 where a clip shows one thing that only moves, on black.
    """
    frames = clips.float().mean(2)
    height, width = frames.shape[-2:]
    spectra = torch.fft.rfft2(frames, s=(2 * height, 2 * width))  # twice as large, so that nothing wraps around
    crossed = torch.fft.irfft2(spectra[:, 1:] * spectra[:, :1].conj(), s=(2 * height, 2 * width)).amax((-2, -1))
    size = frames.flatten(2).norm(dim=2)
    return (crossed / (size[:, 1:] * size[:, :1]).clamp(min=1e-9)).clamp(0, 1).mean(1)


def shuffled(clips: Tensor, seed: int) -> Tensor:
    """The same clips, the frames of each in random order: what any metric of motion must tell from the clips."""
    rng = torch.Generator().manual_seed(seed)
    order = torch.rand(clips.shape[:2], generator=rng).argsort(1).to(clips.device)
    return clips.gather(1, order[:, :, None, None, None].expand_as(clips))
