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
"""Of a difference in time: smaller ones lose digits of float32, larger ones the change of the fastest sinusoids."""

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x [B, *size], t [B]) -> a velocity like x."""


@OBJECTIVES.register("mean_flow")
@dataclass(frozen=True, kw_only=True)
class MeanFlow(Denoise):
    """The mean velocity u(x_t, r, t) over [r, t], which at r = t is the velocity (Geng et al. 2025, eq. 6).

    On the path x_t = (1 - t) x0 + t z the ODE leads by (t - r) u from x_r to x_t, so v = u + (t - r) du/dt along it. The
    right-hand side, with du/dt held fixed, is regressed on z - x0, a target without the network (Geng et al. 2025, iMF,
    sec. 4.1); u against z - x0 - (t - r) du/dt has the same gradient.

    Attributes:
        apart: Share of the examples with r < t, r uniform in [0, t]; the others learn the velocity.
        power: p of the weight 1 / (|error|^2 + floor)^p of an example (Geng et al. 2025, eq. 22), where |error|^2 is
            the mean over its values. It is the slope of the loss, which is a concave function of |error|^2.
        floor: c of that.
        derivative: How du/dt is found: `forward`, by forward-mode differentiation; `difference`, by two more calls;
            `auto`, forward where the network allows it.
    """

    apart: float
    power: float
    floor: float
    derivative: Literal["auto", "forward", "difference"]
    _refused: list[str] = field(init=False, repr=False, compare=False, default_factory=list)
    spans: ClassVar[bool] = True
    makes: ClassVar[str] = "is a mean flow"

    def __post_init__(self) -> None:
        require(0 < self.apart <= 1, f"apart={self.apart:g} must be in (0, 1]: a share of the examples")
        require(0 <= self.power <= 2, f"power={self.power:g} must be in [0, 2]")
        require(0 < self.floor <= 100, f"floor={self.floor:g} must be in (0, 100]")

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
        apart, r = self.starts(batch)
        u = knowing(denoiser, batch).predict(x, t, batch.label, batch.augment, None, r)
        gain = torch.zeros_like(u)
        if bool(apart.any()):
            slope = self.slope(denoiser, x[apart], velocity[apart], r[apart], batch.of(apart))
            gain[apart] = like(t - r, x0)[apart] * slope.to(u)
        difference = u + gain - velocity
        error = self.error(difference) if batch.known is None else self.error_of_unknown(difference, batch.known)
        return self.concave(error)

    def starts(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Which examples have r < t, bool [B], and r, [B]: uniform in [0, t] by what is left of the coin."""
        assert batch.coin is not None
        share = batch.coin.to(batch.t) / self.apart
        apart = share < 1
        return apart, torch.where(apart, share * batch.t, batch.t)

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
            if self.derivative != "difference" and not self._refused:
                try:
                    return forward(u, x, batch.t, velocity)
                except (RuntimeError, NotImplementedError) as error:
                    self._refuse(error)
            return difference(u, x, batch.t, velocity)

    def _refuse(self, error: Exception) -> None:
        """Take differences from now on, since forward mode failed, and say so.

        Raises:
            UsageError: It was asked for.
        """
        if out_of_memory(error):
            raise error
        told = f"this network has no forward-mode derivative here ({first_line(error)[:200]})"
        if self.derivative == "forward":
            raise UsageError(f"objective.derivative=forward, but {told}: choose auto or difference") from None
        self._refused.append(told)
        warnings.warn(f"{told}: differences are taken (objective.derivative=difference)", stacklevel=2)

    def concave(self, error: Tensor) -> Tensor:
        """The integral of 1 / (e + floor)^power from 0 to the error, [B] -> [B]."""
        c, rest = self.floor, 1 - self.power
        if rest == 0:
            return torch.log1p(error / c)
        return ((error + c) ** rest - c**rest) / rest


def knowing(denoiser: Denoiser, batch: Batch) -> Denoiser:
    """The denoiser, told what a batch knows of x0."""
    return denoiser if batch.known is None else denoiser.knowing(told(batch.x0, batch.known))


def forward(u: Velocity, x: Tensor, t: Tensor, velocity: Tensor) -> Tensor:
    """du/dt along dx = velocity dt, by forward-mode differentiation, which fused attention does not have."""
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.script.*", category=FutureWarning)  # torch's own
        slope: Tensor = torch.func.jvp(u, (x, t), (velocity, torch.ones_like(t)))[1]
    return slope


def difference(u: Velocity, x: Tensor, t: Tensor, velocity: Tensor) -> Tensor:
    """The same by the difference of two calls, with the same dropout in both."""
    half = STEP / 2
    with same_draws(x.device):
        before = u(x - half * velocity, t - half)
    return (u(x + half * velocity, t + half) - before) / STEP
