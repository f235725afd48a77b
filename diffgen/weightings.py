"""Weights on the squared error of the network's output F.

An error e in F is an error c_out e in x0_hat, so a weight w(SNR) that a paper puts on |x0_hat - x0|^2 is
w(SNR) c_out^2 here, for every parameterization at once: `min_snr` becomes min(SNR, gamma)/SNR for eps and
min(SNR, gamma)/(SNR + 1) for v, as Hang et al. list them.
"""

import torch
from torch import Tensor

from diffgen.errors import require
from diffgen.registry import Table

WEIGHTINGS = Table("weighting")


@WEIGHTINGS.register("unit")
def unit(alpha: Tensor, sigma: Tensor, c_out: Tensor) -> Tensor:
    """One: DDPM's simple loss for eps, the velocity loss for flow, Karras et al.'s lambda for edm."""
    return torch.ones_like(sigma)


@WEIGHTINGS.register("snr")
def snr(alpha: Tensor, sigma: Tensor, c_out: Tensor) -> Tensor:
    """SNR on the x0 error, that is, the plain eps error whatever the network predicts."""
    return (c_out * alpha / sigma) ** 2


@WEIGHTINGS.register("min_snr")
def min_snr(alpha: Tensor, sigma: Tensor, c_out: Tensor, *, gamma: float) -> Tensor:
    """min(SNR, gamma) on the x0 error (Hang et al. 2023, eq. 8)."""
    require(gamma > 0, f"weighting.gamma={gamma} must be positive")
    return ((alpha / sigma) ** 2).clamp(max=gamma) * c_out**2
