"""Networks as tests want them."""

from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def excite(network: Network) -> Network:
    """Random weights everywhere, so that no branch is near zero and no gate is shut."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.3 if p.ndim > 1 else 1))
    return network
