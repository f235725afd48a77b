"""Consistency: what the denoiser says at one level of noise it says at the next one below, down to the data itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffgen.core.errors import UsageError, require
from diffgen.core.randomness import drawn_again
from diffgen.diffusion.denoiser import Denoiser, like
from diffgen.diffusion.guidance import Guidance, guided
from diffgen.diffusion.schedules import Schedule
from diffgen.diffusion.weightings import Weighting
from diffgen.objectives.base import OBJECTIVES, Batch
from diffgen.objectives.denoise import Denoise, weighted


@OBJECTIVES.register("consistency")
@dataclass(frozen=True, kw_only=True)
class Consistency(Denoise):
    """|D(x_t) - D(x_r)| / (n_t - n_r), with no gradient through D(x_r), for levels n = sigma/alpha (Geng et al. 2024).

    Both are made of one x0 and one z, and see one dropout mask. The lower level is that of their eq. 13,
    n_r = n_t (1 - m(n_t) / q) with m(n) = 1 + k sigmoid(-b n), which is valid on every schedule's clock and for every
    parameterization. Below the level at t_min the network is not asked: D(x_0) = x_0.

    Attributes:
        q: The larger, the nearer n_r is to n_t; above 1 + k.
        k: How much farther apart they are where there is little noise, >= 0.
        b: How soon that ends as noise grows, >= 0.
        most: Level from which on D is taken to be what it is there, so that pure noise, of infinite n, is one as well.
    """

    q: float
    k: float
    b: float
    most: float

    estimates: ClassVar[bool] = False
    makes: ClassVar[str] = "goes from noise to data at once"

    def __post_init__(self) -> None:
        require(self.k >= 0, f"objective.k={self.k:g} must not be negative")
        require(self.b >= 0, f"objective.b={self.b:g} must not be negative")
        require(self.q > 1 + self.k, f"objective.q={self.q:g} must be above 1 + objective.k = {1 + self.k:g}")
        require(self.most > 0, f"objective.most={self.most:g} must be positive")

    def noise_of(self, x0: Tensor, denoiser: Denoiser, t: Tensor, rtol: float) -> Tensor:
        """There is no ODE to walk backwards.

        Raises:
            UsageError: Always.
        """
        raise UsageError(f"this model {self.makes}, and has no ODE that leads pictures back to noise: task.seeds=[1,2]")

    def times(self, t: Tensor, schedule: Schedule) -> Tensor:
        """Any: the level below lies between the entries of a schedule that is a table, too."""
        return t

    def loss(self, denoiser: Denoiser, weighting: Weighting, batch: Batch) -> Tensor:
        """Distance of D at two levels over that of the levels, weighted; see `Denoise.loss`.

        Args:
            denoiser: The network in its frame.
            weighting: Of that distance, by (alpha, sigma, c_out) at the upper level.
            batch: With standard normal z, and nothing known.

        Returns:
            The loss of each example, [B].
        """
        now = denoiser.coefficients(batch.t)
        n = (now.sigma / now.alpha).clamp(max=self.most)
        n_below = self.below(n, denoiser.schedule)
        with drawn_again(batch.x0.device), torch.no_grad():
            target = self._at(denoiser, self._times_at(n_below, denoiser.schedule), batch)
        target = torch.where(like(n_below, target) > 0, target, batch.x0)
        distance = self.error(self._at(denoiser, batch.t, batch) - target)
        return weighted(weighting, now, distance / (n - n_below).to(distance))

    def below(self, n: Tensor, schedule: Schedule) -> Tensor:
        """The level to agree with, like n [B]; 0, which is data, for one below that at t_min."""
        lower = n * (1 - (1 + self.k * torch.sigmoid(-self.b * n)) / self.q)
        least = torch.full_like(n, schedule.t_min)
        return torch.where(lower < schedule.sigma(least) / schedule.alpha(least), 0.0, lower)

    def error(self, difference: Tensor) -> Tensor:
        """Size of a difference of two estimates, [B, ...] -> [B]: the Euclidean norm, whose gradient at 0 is 0."""
        return torch.linalg.vector_norm(difference.flatten(1), dim=1)

    def guided(
        self, denoiser: Denoiser, label: Tensor, guidance: Guidance, *, clip: bool, doubles: bool
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """As of `Denoise`, of a network that is shown no earlier estimate, which it is not in training either."""
        return guided(denoiser, label, guidance, clip=clip, doubles=doubles)

    def _times_at(self, n: Tensor, schedule: Schedule) -> Tensor:
        return schedule.time_at(n).clamp(schedule.t_min, schedule.t_max)

    def _at(self, denoiser: Denoiser, t: Tensor, batch: Batch) -> Tensor:
        """x0_hat of the batch's examples at times t [B]."""
        alpha, sigma = (like(part, batch.x0) for part in (denoiser.schedule.alpha(t), denoiser.schedule.sigma(t)))
        return denoiser(alpha * batch.x0 + sigma * batch.z, t, batch.label, augment=batch.augment)
