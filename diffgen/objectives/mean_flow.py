"""Mean flows: the mean velocity over any stretch of the straight path, so that one step may be the whole way."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffgen.core.errors import UsageError, first_line, out_of_memory, require
from diffgen.core.randomness import same_draws
from diffgen.core.registry import Table
from diffgen.diffusion.denoiser import Denoiser, like
from diffgen.diffusion.knowing import told
from diffgen.diffusion.samplers import SAMPLERS
from diffgen.diffusion.samplers.mean_flow import JUMPERS
from diffgen.diffusion.weightings import Weighting, unit
from diffgen.objectives.base import OBJECTIVES, Batch
from diffgen.objectives.denoise import Denoise

STEP = 0.005
"""Of a central difference in t, in float32: its errors of rounding and of the step are then about alike."""

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x [B, *size], t [B]) -> a velocity like x."""
import os
E = os.environ.get

@OBJECTIVES.register("mean_flow")
@dataclass(frozen=True, kw_only=True)
class MeanFlow(Denoise):
    apart: float
    power: float
    floor: float
    derivative: Literal["auto", "forward", "difference"]
    spans: ClassVar[bool] = True

    @property
    def samplers(self) -> Table:
        return SAMPLERS.joined(JUMPERS)

    def loss(self, denoiser: Denoiser, weighting: Weighting, batch: Batch) -> Tensor:
        x0, z, at = batch.x0, batch.z, denoiser.coefficients(batch.t)
        x = like(at.alpha, x0) * x0 + like(at.sigma, x0) * z
        velocity = like(at.a, x0) * x0 + like(at.b, x0) * z
        share = batch.coin.double() / self.apart
        moves = share < 1
        q = float(E("RPOW", "1"))
        r = torch.where(moves, batch.t * share.to(batch.t) ** q, batch.t)
        u = denoiser.predict(x, batch.t, batch.label, batch.augment, None, r)
        slope = torch.zeros_like(u)
        with torch.no_grad():
            plain = denoiser.as_it_stands()
            lab, t, xx = batch.label[moves], batch.t[moves], x[moves]
            rr = r[moves]
            v = velocity[moves] if E("TANGENT", "v") == "v" else plain.predict(xx, t, lab)
            f = lambda x, t: plain.predict(x, t, lab, None, None, rr)
            if E("DER", "jvp") == "jvp":
                with sdpa_kernel(SDPBackend.MATH):
                    _, d = torch.func.jvp(f, (xx, t), (v, torch.ones_like(t)))
            else:
                h = float(E("STEP", "0.005"))
                d = (f(xx + h * v, t + h) - f(xx - h * v, t - h)) / (2 * h)
            slope[moves] = like(t - rr, xx) * d
        error = self.error(u + slope - velocity)
        e, p = error + self.floor, self.power
        return e.log() if p == 1 else e ** (1 - p) / (1 - p)
