"""Unmasking: say what hidden tokens are, by the bound of masked diffusion. The only place where tokens are hidden."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffgen.core.errors import NonFiniteError, UsageError, require
from diffgen.core.registry import Table
from diffgen.diffusion.denoiser import like
from diffgen.diffusion.guidance import Guidance
from diffgen.diffusion.masking import HIDDEN, Predictor, guided_tokens, unmasking_rate
from diffgen.diffusion.samplers.unmasking import UNMASKERS
from diffgen.diffusion.schedules import Schedule
from diffgen.diffusion.tasks import Start, Wrap
from diffgen.objectives.base import NOT_FINITE, OBJECTIVES, Batch, Trial, check_plain

EARLIEST = 1e-4
"""Share of t_max before which hardly a token is hidden; nearer to 0 the bound's weight is too large for its numbers."""


@OBJECTIVES.register("unmask")
@dataclass(frozen=True, kw_only=True)
class Unmask:
    """The bound of masked diffusion in continuous time (Sahoo et al. 2024, eq. 11; Shi et al. 2024, eq. 5).

    Attributes:
        levels: Values that a channel of a picture has as a token, evenly spaced; 256 are all of them.
    """

    levels: int
    samplers: ClassVar[Table] = UNMASKERS
    discrete: ClassVar[bool] = True
    noise_type: ClassVar[torch.dtype] = torch.float64  # as rare as a token may be, some number is its own
    path: ClassVar[bool] = False
    codes: ClassVar[bool] = False
    labelled: ClassVar[bool] = True
    spans: ClassVar[bool] = False
    estimates: ClassVar[bool] = False
    makes: ClassVar[str] = "unmasks tokens"

    def __post_init__(self) -> None:
        require(2 <= self.levels <= 256, f"levels={self.levels} must be in [2, 256]")

    def suited(self, kind: Any) -> Any:
        """The kind as tokens."""
        return kind.as_tokens(self.levels)

    def check(self, weighting: object, density: object) -> None:
        """Require what the bound takes: its own weights, and times drawn evenly.

        Raises:
            UsageError: Another weighting or density was chosen.
        """
        check_plain(weighting, density, "objective=unmask is a bound on the likelihood, which has its own {key}s")

    def noise(self, out: Tensor, generator: torch.Generator) -> Tensor:
        """Uniform in [0, 1): a token is seen where this is below alpha, and samplers draw by it."""
        return out.uniform_(generator=generator)

    def times(self, t: Tensor, schedule: Schedule) -> Tensor:
        """All of (0, t_max], between the entries of a table and below t_min, too: no network is told the time."""
        share = (t - schedule.t_min) / (schedule.t_max - schedule.t_min)
        return schedule.t_max * share.clamp(min=EARLIEST)

    def inputs(self, size: tuple[int, ...], noise_size: tuple[int, ...], device: torch.device) -> tuple[Tensor, ...]:
        """Tokens, a condition that says nothing and a label."""
        zero = torch.zeros(1, device=device)
        return torch.zeros(1, *size, device=device, dtype=torch.int64), zero, zero.long()

    def loss(self, predictor: Predictor, weighting: object, batch: Batch) -> Tensor:
        """The bound of each example, in bits a token, [B].

        Args:
            predictor: The network in its frame.
            weighting: None but the bound's own.
            batch: With tokens x0 and uniform z.
        """
        x0, schedule = batch.x0, predictor.schedule
        hidden = batch.z >= like(schedule.alpha(batch.t), batch.z)
        log_p = predictor(torch.where(hidden, HIDDEN, x0), batch.label).gather(-1, x0[..., None])[..., 0]
        bits = -(log_p * hidden).flatten(1).sum(1) / math.log(2)
        return schedule.t_max * unmasking_rate(schedule, batch.t).to(bits) * bits / x0[0].numel()

    def start(self, noise: Tensor, predictor: Predictor, t: Tensor) -> Tensor:
        """Nothing is seen."""
        return torch.full_like(noise, HIDDEN, dtype=torch.int64)

    def noise_of(self, x0: Tensor, predictor: Predictor, t: Tensor, rtol: float) -> Tensor:
        """There is none.

        Raises:
            UsageError: Always; tasks that ask for it need a path of Gaussian noise.
        """
        raise UsageError("tokens have no noise that they are made of")

    def keep(self, x0: Tensor, free: Tensor, start: Start) -> tuple[Start, Wrap]:
        """Tokens x0 are given where they are not free, which no sampler changes."""
        return lambda indices: torch.where(free, start(indices), x0), lambda predict: predict

    def guided(
        self, predictor: Predictor, label: Tensor, guidance: Guidance, *, clip: bool, doubles: bool
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """See `guided_tokens`; there is nothing to clip."""
        return guided_tokens(predictor, label, guidance, doubles=doubles)

    def seen(self, x: Tensor, schedule: Schedule, t: Tensor) -> Tensor:
        """The tokens, and which are hidden."""
        return x

    def finished(self, x: Tensor) -> Tensor:
        """The sample.

        Raises:
            NonFiniteError: A token stayed hidden, since what the network says of it is no number.
        """
        if bool((x == HIDDEN).any()):
            raise NonFiniteError(NOT_FINITE)
        return x

    def trial(self, size: tuple[int, ...]) -> Trial:
        """All tokens hidden, and numbers that are spread as random ones are."""
        x = torch.full((1, *size), HIDDEN)
        spread = torch.linspace(0, 1, x.numel() + 1, dtype=torch.float64)[:-1].reshape(x.shape)
        return Trial(lambda x, t: torch.zeros(*x.shape, 2), x, lambda step: (spread + step * 0.618034) % 1)
