"""What the network regresses: F = a x0 + b z, a pair (a, b) for each noise level.

One formula turns any F into the denoised image (`denoiser`): x0_hat = (b x - sigma F) / (b alpha - a sigma).
A pair is usable where that determinant is not 0; eps has determinant alpha and fails where alpha = 0.
"""

import torch
from torch import Tensor

from diffgen.core.registry import Table

PARAMETERIZATIONS = Table("parameterization")

Pair = tuple[Tensor, Tensor]


@PARAMETERIZATIONS.register("eps")
def eps(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Pair:
    """The noise, F = z (Ho et al. 2020, eq. 14)."""
    return torch.zeros_like(sigma), torch.ones_like(sigma)


@PARAMETERIZATIONS.register("x0")
def x0(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Pair:
    """The clean image, F = x0."""
    return torch.ones_like(sigma), torch.zeros_like(sigma)


@PARAMETERIZATIONS.register("v")
def v(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Pair:
    """F = alpha z - sigma x0 (Salimans & Ho 2022, app. D)."""
    return -sigma, alpha


@PARAMETERIZATIONS.register("flow")
def flow(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Pair:
    """The velocity of the straight path, F = z - x0 (Liu et al. 2023, eq. 1)."""
    return -torch.ones_like(sigma), torch.ones_like(sigma)


@PARAMETERIZATIONS.register("edm")
def edm(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Pair:
    """The unit-variance target of EDM (Karras et al. 2022, eq. 8), for any alpha.

    With m = sqrt(alpha^2 sigma_data^2 + sigma^2) the formula above yields their c_skip and c_out at alpha = 1.
    """
    m = torch.sqrt(alpha**2 * sigma_data**2 + sigma**2)
    return sigma / (m * sigma_data), -alpha * sigma_data / m
