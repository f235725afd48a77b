"""Weights on the squared error of the network's output F.

An error e in F is an error c_out e in x0_hat, so a weight w(SNR) that a paper puts on |x0_hat - x0|^2 is
w(SNR) c_out^2 here, for every parameterization at once: `min_snr` becomes min(SNR, gamma)/SNR for eps and
min(SNR, gamma)/(SNR + 1) for v, as Hang et al. list them.

A row is a function (alpha, sigma, c_out) -> weight, [B] each, or a module with that `forward`, whose parameters are
trained along with the network (`losses.denoising_loss` makes sense of that).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from diffgen.core.errors import require
from diffgen.core.registry import Table

WEIGHTINGS = Table("weighting")

Weighting = Callable[[Tensor, Tensor, Tensor], Tensor]


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


@WEIGHTINGS.register("soft_min_snr")
def soft_min_snr(alpha: Tensor, sigma: Tensor, c_out: Tensor, *, gamma: float) -> Tensor:
    """gamma SNR / (gamma + SNR) on the x0 error: min_snr without the kink (Crowson et al. 2024, eq. 4)."""
    require(gamma > 0, f"weighting.gamma={gamma} must be positive")
    return c_out**2 / ((sigma / alpha) ** 2 + 1 / gamma)


@WEIGHTINGS.register("velocity")
def velocity(alpha: Tensor, sigma: Tensor, c_out: Tensor, *, floor: float) -> Tensor:
    """1 / max(sigma, floor)^2 on the x0 error: on the straight path the error of z - x0 (JiT, Li & He 2025)."""
    require(floor > 0, f"weighting.floor={floor} must be positive")
    return (c_out / sigma.clamp(min=floor)) ** 2


@WEIGHTINGS.register("uncertainty")
class Uncertainty(nn.Module):
    """The learned weight exp(-u) of EDM2 (Karras et al. 2024), u linear in Fourier features of the noise level.

    u starts at 0 and tends to the log of the mean error at each noise level, so that all levels count equally.
    """

    frequency: Tensor
    phase: Tensor

    def __init__(self, *, features: int) -> None:
        super().__init__()
        require(1 <= features <= 4096, f"features={features} must be in [1, 4096]")
        self.register_buffer("frequency", torch.randn(features))
        self.register_buffer("phase", torch.rand(features))
        self.linear = nn.Linear(features, 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, alpha: Tensor, sigma: Tensor, c_out: Tensor) -> Tensor:
        """exp(-u); the noise level is c_noise = ln(sigma/alpha) / 4, kept finite where alpha = 0."""
        c_noise = torch.log(sigma / alpha).clamp(-12, 12)[:, None] / 4
        angle = 2 * math.pi * (c_noise * self.frequency + self.phase)
        features = math.sqrt(2) * torch.cos(angle).to(self.linear.weight)
        u = (features * self.linear.weight).sum(1)  # not a matrix product, which autocast would do in half precision
        return torch.exp(-u)
