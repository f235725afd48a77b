"""A schedule of your own: sigma = t^3.

diffgen-train plugins=[docs/examples/schedule.py] schedule=cubic schedule.t_min=0.04 run_dir=outputs/cubic
diffgen-sample plugins=[docs/examples/schedule.py] ckpt=outputs/cubic n=16
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffgen.diffusion.schedules import SCHEDULES, Continuous


@SCHEDULES.register("cubic")
@dataclass(frozen=True, kw_only=True)
class Cubic(Continuous):
    """alpha = 1 - t^3, sigma = t^3."""

    t_min: float = 0.05
    t_max: float = 1.0

    def alpha(self, t: Tensor) -> Tensor:
        """Gain of the signal."""
        return 1 - t**3

    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise."""
        return t**3

    def time_at(self, nsr: Tensor) -> Tensor:
        """The inverse of sigma / alpha."""
        return torch.where(nsr.isinf(), 1.0, nsr / (1 + nsr)) ** (1 / 3)
