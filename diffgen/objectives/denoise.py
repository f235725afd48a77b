"""Denoising: regress F = a x0 + b z from x_t = alpha x0 + sigma z. The only place where noise meets data."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from diffgen.core.randomness import normal
from diffgen.core.registry import Table
from diffgen.diffusion.denoiser import NO_LABEL, Coefficients, Denoiser, like
from diffgen.diffusion.guidance import Guidance, guided
from diffgen.diffusion.knowing import told
from diffgen.diffusion.samplers import SAMPLERS, encode
from diffgen.diffusion.samplers import Denoise as Denoising
from diffgen.diffusion.schedules import Schedule
from diffgen.diffusion.tasks import Start, Wrap
from diffgen.diffusion.weightings import Weighting
from diffgen.objectives.base import OBJECTIVES, Batch, Trial, finite


@OBJECTIVES.register("denoise")
@dataclass(frozen=True, kw_only=True)
class Denoise:
    """The weighted squared error of F, for Gaussian noise (Ho et al. 2020, eq. 14; Karras et al. 2022, eq. 8)."""

    samplers: ClassVar[Table] = SAMPLERS
    discrete: ClassVar[bool] = False
    noise_type: ClassVar[torch.dtype] = torch.float32
    path: ClassVar[bool] = True
    codes: ClassVar[bool] = False
    labelled: ClassVar[bool] = True
    spans: ClassVar[bool] = False
    estimates: ClassVar[bool] = True
    makes: ClassVar[str] = "removes Gaussian noise"

    def suited(self, kind: Any) -> Any:
        """The kind as real numbers."""
        return kind.as_numbers()

    def check(self, weighting: Weighting, density: Callable[..., Tensor]) -> None:
        """Any goes."""

    def noise(self, out: Tensor, generator: torch.Generator) -> Tensor:
        """Standard normal."""
        return normal(out, generator)

    def times(self, t: Tensor, schedule: Schedule) -> Tensor:
        """The entries of a schedule that is a table, which are all that its network is told of."""
        return schedule.snap(t)

    def inputs(self, size: tuple[int, ...], noise_size: tuple[int, ...], device: torch.device) -> tuple[Tensor, ...]:
        """x, the noise condition and a label."""
        zero = torch.zeros(1, device=device)
        return torch.zeros(1, *size, device=device), zero, zero.long()

    def loss(self, denoiser: Denoiser, weighting: Weighting, batch: Batch) -> Tensor:
        """Weighted error of the network's output F against a x0 + b z.

        Args:
            denoiser: The network in its frame.
            weighting: See `weighted`.
            batch: With standard normal z.

        Returns:
            The loss of each example, [B]. Where papers sum over pixels (EDM) this is smaller by C H W; Adam does not
            see it.
        """
        x0, z, at = batch.x0, batch.z, denoiser.coefficients(batch.t)
        denoiser = knowing(denoiser, batch)
        x = like(at.alpha, x0) * x0 + like(at.sigma, x0) * z
        target = like(at.a, x0) * x0 + like(at.b, x0) * z
        estimate = self.estimate(denoiser, x, batch) if denoiser.self_condition else None
        difference = denoiser.predict(x, batch.t, batch.label, batch.augment, estimate) - target
        return weighted(weighting, at, self.error_in(difference, batch))

    @torch.no_grad()
    def estimate(self, denoiser: Denoiser, x: Tensor, batch: Batch) -> Tensor:
        """x0_hat of a network that sees none, for half of the examples, and 0 for the others (Chen et al. 2023)."""
        assert batch.coin is not None
        x0_hat = denoiser(x, batch.t, batch.label, augment=batch.augment)
        return torch.where(like(batch.coin, x) < 0.5, x0_hat, 0.0)

    def error(self, difference: Tensor) -> Tensor:
        """Size of an error in F, [B, ...] -> [B]: the mean square over its values."""
        return difference.square().flatten(1).mean(1)

    def error_in(self, difference: Tensor, batch: Batch) -> Tensor:
        """The same, of what a batch does not know."""
        return self.error(difference) if batch.known is None else self.error_of_unknown(difference, batch.known)

    def error_of_unknown(self, difference: Tensor, known: Tensor) -> Tensor:
        """The same of what a network is not told of: what it is told needs no learning.

        That of a mean square; an objective with another `error` needs another of these, too, to learn known frames.
        """
        free = ~known.expand_as(difference)
        return self.error(difference * free) / free.float().flatten(1).mean(1)

    def start(self, noise: Tensor, denoiser: Denoiser, t: Tensor) -> Tensor:
        """sigma(t_max) z."""
        return float(denoiser.schedule.sigma(t)) * noise

    def noise_of(self, x0: Tensor, denoiser: Denoiser, t: Tensor, rtol: float) -> Tensor:
        """The end of the ODE that is walked backwards, over sigma(t_max)."""

        @torch.inference_mode()
        def denoise(x: Tensor, at: Tensor) -> Tensor:
            return denoiser(x, at.to(x).expand(len(x)), torch.full((len(x),), NO_LABEL, device=x.device))

        end = encode(denoise, denoiser.schedule, x0, t_end=float(t), rtol=rtol, atol=rtol)
        return end / float(denoiser.schedule.sigma(t))

    def keep(self, x0: Tensor, free: Tensor, start: Start) -> tuple[Start, Wrap]:
        """What is known replaces x0_hat at every step (replacement, Song et al. 2021, app. I.2).

        It then follows its own path alpha x0 + sigma z exactly, and the network sees it at the noise level of the rest.
        """

        def wrap(denoise: Denoising) -> Denoising:
            return lambda x, *times: torch.where(free, denoise(x, *times), x0.to(x))

        return start, wrap

    def guided(
        self, denoiser: Denoiser, label: Tensor, guidance: Guidance, *, clip: bool, doubles: bool
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """See `guidance.guided`."""
        return guided(denoiser, label, guidance, clip=clip, doubles=doubles, remembers=True)

    def seen(self, x: Tensor, schedule: Schedule, t: Tensor) -> Tensor:
        """x / |(alpha, sigma)|: noise of unit size, then more and more the example."""
        return x / math.hypot(float(schedule.alpha(t)), float(schedule.sigma(t)))

    def finished(self, x: Tensor) -> Tensor:
        """In single precision.

        Raises:
            NonFiniteError: A value is not finite.
        """
        return finite(x)

    def trial(self, size: tuple[int, ...]) -> Trial:
        """A small picture; no sampler asks for a size."""
        one = torch.ones(1, 1, 8, 8, dtype=torch.float64)
        return Trial(lambda x, *times: torch.zeros_like(x), one, lambda step: one)


def judges_parts(objective: object) -> bool:
    """Whether the error of what is not known is of one kind with the error of the whole."""
    own = type(objective)
    if not issubclass(own, Denoise):
        return False
    return own.error is Denoise.error or own.error_of_unknown is not Denoise.error_of_unknown


def knowing(denoiser: Denoiser, batch: Batch) -> Denoiser:
    """The denoiser, told what a batch knows of x0."""
    return denoiser if batch.known is None else denoiser.knowing(told(batch.x0, batch.known))


def weighted(weighting: Weighting, at: Coefficients, error: Tensor) -> Tensor:
    """Errors [B] at some times, weighted.

    A module's weight w is learned, so it pays -log w: this is the likelihood of an error with variance 1/w, and the
    best w is 1 / (mean error) (Kendall et al. 2018).
    """
    weight = weighting(at.alpha, at.sigma, at.c_out)
    return weight * error - weight.log() if isinstance(weighting, nn.Module) else weight * error
