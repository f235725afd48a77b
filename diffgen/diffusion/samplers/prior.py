"""Samplers of autoencoders: from p(z) to pictures in one step."""

from torch import Tensor

from diffgen.core.registry import Table
from diffgen.diffusion.samplers.steps import Denoise, Noise
from diffgen.diffusion.schedules import Schedule

PRIORS = Table("sampler")
"""Rows are called as those of `SAMPLERS`; what they call decodes latents."""


@PRIORS.register("prior")
def prior(denoise: Denoise, schedule: Schedule, x: Tensor, ts: Tensor, noise: Noise) -> Tensor:
    """Decode latents x [B, c, h, w] that were drawn from p(z)."""
    return denoise(x, ts[0])
