"""Denoising: regress F = a x0 + b z from x_t = alpha x0 + sigma z. The only place where noise meets data."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from diffgen.core.randomness import normal
from diffgen.core.registry import Table
from diffgen.diffusion.denoiser import Denoiser, like
from diffgen.diffusion.samplers import SAMPLERS
from diffgen.diffusion.weightings import Weighting
from diffgen.objectives.base import OBJECTIVES, Batch


@OBJECTIVES.register("denoise")
@dataclass(frozen=True, kw_only=True)
class Denoise:
    """The weighted squared error of F, for Gaussian noise (Ho et al. 2020, eq. 14; Karras et al. 2022, eq. 8)."""

    samplers: ClassVar[Table] = SAMPLERS

    def noise(self, out: Tensor, generator: torch.Generator) -> Tensor:
        """Standard normal."""
        return normal(out, generator)

    def loss(self, denoiser: Denoiser, weighting: Weighting, batch: Batch) -> Tensor:
        """Weighted error of the network's output F against a x0 + b z.

        Args:
            denoiser: The network in its frame.
            weighting: A module's weight w is learned, so it pays -log w: this is the likelihood of an error with
                variance 1/w, and the best w is 1 / (mean error) (Kendall et al. 2018).
            batch: With standard normal z.

        Returns:
            The loss of each example, [B]. Where papers sum over pixels (EDM) this is smaller by C H W; Adam does not
            see it.
        """
        x0, z, at = batch.x0, batch.z, denoiser.coefficients(batch.t)
        x = like(at.alpha, x0) * x0 + like(at.sigma, x0) * z
        target = like(at.a, x0) * x0 + like(at.b, x0) * z
        error = self.error(denoiser.predict(x, batch.t, batch.label, batch.augment) - target)
        weight = weighting(at.alpha, at.sigma, at.c_out)
        return weight * error - weight.log() if isinstance(weighting, nn.Module) else weight * error

    def error(self, difference: Tensor) -> Tensor:
        """Size of an error in F, [B, ...] -> [B]: the mean square over its values."""
        return difference.square().flatten(1).mean(1)
