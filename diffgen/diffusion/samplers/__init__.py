"""Samplers: from noise to data, each a pure function; `steps` says what they have in common."""

from diffgen.diffusion.samplers import adams, exponential, single_step
from diffgen.diffusion.samplers.adaptive import encode
from diffgen.diffusion.samplers.grid import time_grid
from diffgen.diffusion.samplers.steps import SAMPLERS, Denoise, Noise

__all__ = ["SAMPLERS", "Denoise", "Noise", "adams", "encode", "exponential", "single_step", "time_grid"]
