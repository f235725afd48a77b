"""Mean flows: the mean velocity over any stretch of the straight path, so that one step may be the whole way."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffgen.core.errors import UsageError, first_line, out_of_memory, require
from diffgen.core.randomness import drawn_again
from diffgen.core.registry import Table
from diffgen.diffusion.denoiser import Denoiser, like
from diffgen.diffusion.samplers import SAMPLERS
from diffgen.diffusion.samplers.mean_flow import JUMPERS
from diffgen.diffusion.weightings import Weighting, unit
from diffgen.objectives.base import OBJECTIVES, Batch
from diffgen.objectives.denoise import Denoise, knowing

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x [B, *size], t [B]) -> a velocity like x."""


@OBJECTIVES.register("mean_flow")
@dataclass(frozen=True, kw_only=True)
class MeanFlow(Denoise):
    """The mean velocity u(x_t, r, t) over [r, t], which at r = t is the velocity (Geng et al. 2025, eq. 6).

    On the path x_t = (1 - t) x0 + t z the ODE leads by (t - r) u from x_r to x_t, so v = u + (t - r) du/dt along it.
    The right-hand side, with du/dt held fixed, is regressed on z - x0, a target without the network (improved mean
    flows, arXiv 2512.02012); u against z - x0 - (t - r) du/dt has the same gradient.

    Attributes:
        apart: Share of the examples with r < t, r uniform in [0, t]; the others learn the velocity.
        power: p of the weight 1 / (|error|^2 + floor)^p of an example (Geng et al. 2025, eq. 22), where |error|^2 is
            the mean over its values. It is the slope of the loss, which is a concave function of |error|^2.
        floor: c of that.
        step: Width, in t, of the central difference that stands for du/dt; 0 is the derivative itself, by forward-mode
            differentiation. Networks hear the time by sinusoids of 1000 t, of which a width of 0.05 evens out the
            fastest: their slope is large and says nothing.
    """

    apart: float
    power: float
    floor: float
    step: float
    spans: ClassVar[bool] = True
    makes: ClassVar[str] = "is a mean flow"

    def __post_init__(self) -> None:
        require(0 < self.apart <= 1, f"apart={self.apart:g} must be in (0, 1]: a share of the examples")
        require(0 <= self.power <= 2, f"power={self.power:g} must be in [0, 2]")
        require(0 < self.floor <= 100, f"floor={self.floor:g} must be in (0, 100]")
        told = f"step={self.step:g} must be in [1e-4, 0.5], which float32 can tell apart, or 0, the derivative itself"
        require(self.step == 0 or 1e-4 <= self.step <= 0.5, told)

    @property
    def samplers(self) -> Table:  # type: ignore[override]
        """All of Gaussian noise, by the velocity, and `mean_flow`."""
        return SAMPLERS.joined(JUMPERS)

    def check(self, weighting: Weighting, density: Callable[..., Tensor]) -> None:
        """Require the weighting that stands for none.

        Raises:
            UsageError: It is another.
        """
        told = "objective=mean_flow has a weight of its own, objective.power: weighting=unit"
        require(getattr(weighting, "func", weighting) is unit, told)

    def loss(self, denoiser: Denoiser, weighting: Weighting, batch: Batch) -> Tensor:
        """A concave function of the error of u + (t - r) du/dt against z - x0.

        Args:
            denoiser: The network in its frame.
            weighting: None.
            batch: With standard normal z, and `coin`.

        Returns:
            The loss of each example, [B].
        """
        x0, z, t, at = batch.x0, batch.z, batch.t, denoiser.coefficients(batch.t)
        x = like(at.alpha, x0) * x0 + like(at.sigma, x0) * z
        velocity = like(at.a, x0) * x0 + like(at.b, x0) * z
        r = self.starts(batch)
        u = knowing(denoiser, batch).predict(x, t, batch.label, batch.augment, None, r)
        slope = self.slope(denoiser, x, velocity, r, batch)  # of all: to pick some, a GPU would have to wait
        difference = u + like(t - r, x0) * slope.to(u) - velocity
        return self.concave(self.error_in(difference, batch))

    def starts(self, batch: Batch) -> Tensor:
        """r, [B]: of a share of the examples uniform in [0, t] by what is left of the coin, else t."""
        assert batch.coin is not None
        share = batch.coin.to(batch.t) / self.apart
        return torch.where(share < 1, share * batch.t, batch.t)

    @torch.no_grad()
    def slope(self, denoiser: Denoiser, x: Tensor, velocity: Tensor, r: Tensor, batch: Batch) -> Tensor:
        """du/dt along the way, with r fixed: v . grad_x u + d_t u.

        By the network as it stands, in float32: gradients are not exchanged on the way, and bf16 has too few digits.

        Args:
            denoiser: The network in its frame.
            x: x_t, [B, *size].
            velocity: z - x0, like x.
            r: Where the stretch begins, [B].
            batch: Of the other end.
        """
        plain = knowing(denoiser.as_it_stands(), batch)

        def u(x: Tensor, t: Tensor) -> Tensor:
            return plain.predict(x, t, batch.label, batch.augment, None, r)

        with torch.autocast(x.device.type, enabled=False):
            return difference(u, x, batch.t, velocity, self.step) if self.step else forward(u, x, batch.t, velocity)

    def concave(self, error: Tensor) -> Tensor:
        """The integral of 1 / (e + floor)^power from 0 to the error, [B] -> [B]."""
        c, rest = self.floor, 1 - self.power
        if rest == 0:
            return torch.log1p(error / c)
        return ((error + c) ** rest - c**rest) / rest


def forward(u: Velocity, x: Tensor, t: Tensor, velocity: Tensor) -> Tensor:
    """du/dt along dx = velocity dt, by forward-mode differentiation, which fused attention does not have.

    Raises:
        UsageError: A part of the network does not have it either.
    """
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.script.*", category=FutureWarning)  # torch's own
        try:
            slope: Tensor = torch.func.jvp(u, (x, t), (velocity, torch.ones_like(t)))[1]
        except (RuntimeError, NotImplementedError) as error:
            if out_of_memory(error):
                raise
            told = "objective.step=0 needs a network with a forward-mode derivative, which this one has not"
            raise UsageError(f"{told} ({first_line(error)[:200]}): objective.step=0.05") from None
    return slope


def difference(u: Velocity, x: Tensor, t: Tensor, velocity: Tensor, step: float) -> Tensor:
    """The same by the difference of two calls, with the same dropout in both."""
    half = step / 2
    with drawn_again(x.device):
        before = u(x - half * velocity, t - half)
    return (u(x + half * velocity, t + half) - before) / step
