"""Feature arrays that look like a network's: correlated, off centre, not negative, and of two different kinds."""

import torch
from torch import Tensor


def features(n: int, d: int, *, seed: int, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    """float64 [n, d]."""
    mixing = torch.randn(d, d, generator=torch.Generator().manual_seed(7), dtype=torch.float64) / d**0.5
    z = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (0.5 + shift + scale * z @ mixing).clamp(min=0)
