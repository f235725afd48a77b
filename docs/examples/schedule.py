"""A schedule of your own: sigma = t^3, alpha = 1 - t^3.

diffgen-train plugins=[docs/examples/schedule.py] schedule=cubic
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffgen.diffusion.schedules import SCHEDULES, Continuous


@SCHEDULES.register("cubic")
@dataclass(frozen=True, kw_only=True)
class Cubic(Continuous):
    """sigma = t^3."""

    t_min: float = 0.05
    t_max: float = 1.0

    def alpha(self, t: Tensor) -> Tensor:
        """Share of the data at t [B]."""
        return 1 - t**3

    def sigma(self, t: Tensor) -> Tensor:
        """Share of the noise at t [B]."""
        return t**3

    def time_at(self, nsr: Tensor) -> Tensor:
        """The inverse of sigma / alpha."""
        return torch.where(nsr.isinf(), 1.0, nsr / (1 + nsr)) ** (1 / 3)
