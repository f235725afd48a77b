"""Averages of the weights over training, with their length given in images seen, not in steps.

Two profiles say how fast the past is forgotten. `HalfLife` is the exponential average that everybody uses. `Power`
(Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models", sec. 3.1) has a length that
grows with the run, and two of them are enough to make any other length afterwards; see `diffgen.storage.posthoc`.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from diffgen.core.settings import EmaSettings

TRACKED = (0.05, 0.1)
"""Widths from which others are made (Karras et al. 2024, sec. 3.2: two are enough)."""


class Profile(Protocol):
    """How fast an average forgets."""

    def decay(self, images_seen: int, batch: int) -> float:
        """Weight of the old average in the step of `batch` images that ends at `images_seen`."""

    def facts(self) -> dict[str, Any]:
        """What a checkpoint says of its average; plain data."""


@dataclass(frozen=True)
class HalfLife:
    """The decay of a step of `batch` images is 0.5^(batch / h), with half-life h = min(halflife, ramp * images seen).

    Early on the average forgets faster, so that it never drags the initial weights along (Karras et al. 2022, F.2).

    Attributes:
        halflife: In images.
        ramp: Half-life as a share of the images seen, while that is shorter; in (0, 1].
    """

    halflife: float
    ramp: float

    def decay(self, images_seen: int, batch: int) -> float:
        """Weight of the old average."""
        return 0.5 ** (batch / min(self.halflife, max(self.ramp * images_seen, 1e-9)))

    def facts(self) -> dict[str, Any]:
        """Name and settings."""
        return {"profile": "halflife", "halflife": self.halflife, "ramp": self.ramp}


@dataclass(frozen=True)
class Power:
    """Weights of time t count in proportion to t^gamma (Karras et al. 2024, sec. 3.1), so nothing of the start is left.

    Attributes:
        sigma_rel: Standard deviation of t under this profile, as a share of the run so far; in (0, 0.28].
    """

    sigma_rel: float

    def __str__(self) -> str:
        """The width, as it stands in the names of files."""
        return f"{self.sigma_rel:.3f}"

    @property
    def gamma(self) -> float:
        """The exponent that gives this width."""
        return gamma_of(self.sigma_rel)

    def decay(self, images_seen: int, batch: int) -> float:
        """(1 - batch / images seen)^(gamma + 1) (ibid., sec. 3.1)."""
        return (1 - batch / images_seen) ** (self.gamma + 1)

    def facts(self) -> dict[str, Any]:
        """Name and settings."""
        return {"profile": "power", "sigma_rel": self.sigma_rel}


@cache
def gamma_of(sigma_rel: float) -> float:
    """The gamma whose profile has this width: sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).

    It is the largest root of gamma^3 + 7 gamma^2 + (16 - sigma_rel^-2) gamma + 12 - sigma_rel^-2 (ibid., app. C).
    """
    inverse = sigma_rel**-2
    companion = torch.tensor([[-7, inverse - 16, inverse - 12], [1, 0, 0], [0, 1, 0]], dtype=torch.float64)
    return float(torch.linalg.eigvals(companion).real.max())


def profiles(settings: EmaSettings) -> list[Profile]:
    """The averages to track; the first is what previews show and checkpoints hold."""
    if settings.profile == "power":
        return [Power(sigma_rel) for sigma_rel in settings.sigma_rel or TRACKED]
    return [HalfLife(settings.halflife, settings.ramp)]


class EMA:
    """Averaged copies of a model's parameters."""

    def __init__(self, model: nn.Module, averaged: nn.Module, profile: Profile) -> None:
        """Average `model` into `averaged`, a module of the same structure.

        Args:
            model: The network in training.
            averaged: Holds the averages, e.g. a deep copy.
            profile: How fast the past is forgotten.
        """
        self.averaged, self.profile = averaged, profile
        # the parameters themselves: wrapping a network for several processes moves what they hold
        self.sources: list[Tensor] = list(model.parameters())
        self.averages: list[Tensor] = list(averaged.parameters())
        self.buffers = list(zip(averaged.buffers(), model.buffers(), strict=True))

    @torch.no_grad()
    def update(self, images_seen: int, batch: int) -> None:
        """Take the step that ends at `images_seen` into the average, in place."""
        torch._foreach_lerp_(self.averages, self.sources, 1 - self.profile.decay(images_seen, batch))
        for average, source in self.buffers:  # statistics are not averaged again
            average.copy_(source)
