"""The table of objectives, and the batch that they learn from."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from diffgen.core.errors import NonFiniteError, require
from diffgen.core.registry import Table
from diffgen.diffusion.guidance import Guidance
from diffgen.diffusion.samplers import Denoise as Denoising
from diffgen.diffusion.samplers import Noise
from diffgen.diffusion.schedules import Schedule
from diffgen.diffusion.tasks import Start, Wrap
from diffgen.diffusion.times import uniform
from diffgen.diffusion.weightings import Weighting, unit

NOT_FINITE = "the samples are not finite: the model or the sampler's settings are at fault"

OBJECTIVES = Table("objective")
"""Rows are classes, called as row(**settings); a checkpoint names its own."""


class Batch(NamedTuple):
    """What a step learns from; it is a function of the seed, the step and the images seen.

    Attributes:
        x0: Examples as the network knows them, [B, *size].
        label: int64 [B], `NO_LABEL` where none.
        t: Times [B].
        z: The objective's noise, shaped like x0.
        augment: What was done to the examples, [B, augment_labels], or None.
        coin: A number in [0, 1) each, [B], for what an objective leaves to chance.
        known: Which part of x0 the network is told of, bool [B, 1, *sides] or broadcast to that; None for a network
            that is told of nothing.
    """

    x0: Tensor
    label: Tensor
    t: Tensor
    z: Tensor
    augment: Tensor | None = None
    coin: Tensor | None = None
    known: Tensor | None = None

    def part(self, start: int, stop: int) -> "Batch":
        """Examples start .. stop - 1."""
        return Batch(*(None if values is None else values[start:stop] for values in self))  # type: ignore[arg-type]


class Trial(NamedTuple):
    """What a sampler is tried on without a network: a denoiser that says nothing, a state, and noise."""

    denoise: Denoising
    x: Tensor
    noise: Noise


class Objective(Protocol):
    """What is learned, and what that means for sampling. It keeps nothing from one batch to the next.

    A frame is what makes of a network what samplers ask: a `Denoiser` of real numbers, a `Predictor` of tokens.
    """

    samplers: ClassVar[Table]
    """What walks back from its noise."""
    discrete: ClassVar[bool]
    """Whether x0 is tokens, whole numbers, and not real numbers."""
    noise_type: ClassVar[torch.dtype]
    """Of the noise in sampling, which is drawn on the CPU."""
    path: ClassVar[bool]
    """Whether examples and noise are the ends of a path alpha x0 + sigma z, along which samplers walk."""
    codes: ClassVar[bool]
    """Whether it learns an autoencoder, whose frame is a `Codec`."""
    labelled: ClassVar[bool]
    """Whether the network is told of labels."""
    spans: ClassVar[bool]
    """Whether the network is told how far a step goes."""
    estimates: ClassVar[bool]
    """Whether what the network says of x0 is its mean, given x_t: likelihoods and the ODE are of that."""
    makes: ClassVar[str]
    """What such a model does, for sentences."""

    def suited(self, kind: Any) -> Any:
        """The kind of the same stored examples whose x0 is what is learned from.

        Raises:
            UsageError: There is none.
        """

    def check(self, weighting: Weighting, density: Callable[..., Tensor]) -> None:
        """Require a weighting and a density of times that go with it.

        Raises:
            UsageError: They do not.
        """

    # --- training -------------------------------------------------------------------------------------------------

    def noise(self, out: Tensor, generator: torch.Generator) -> Tensor:
        """Fill `out` [*size] or [B, *size] with noise, in training and in sampling; returns it."""

    def times(self, t: Tensor, schedule: Schedule) -> Tensor:
        """The times, like t [B], at which examples are learned from that were drawn for t."""

    def inputs(self, size: tuple[int, ...], noise_size: tuple[int, ...], device: torch.device) -> tuple[Tensor, ...]:
        """What its network is called with for one example, of zeros.

        Args:
            size: Of what the network sees of x0.
            noise_size: Of the noise that an example is drawn from.
            device: Where.
        """

    def loss(self, frame: Any, weighting: Weighting, batch: Batch) -> Tensor:
        """The loss of each example, [B].

        Args:
            frame: Of the network.
            weighting: (alpha, sigma, c_out) -> weight, [B] each.
            batch: What to learn from.
        """

    # --- sampling -------------------------------------------------------------------------------------------------

    def start(self, noise: Tensor, frame: Any, t: Tensor) -> Tensor:
        """The state at t_max of this noise, [B, *size]."""

    def noise_of(self, x0: Tensor, frame: Any, t: Tensor, rtol: float) -> Tensor:
        """The noise of which a sampler that draws none makes examples x0 [B, *size] again.

        Args:
            x0: Examples.
            frame: Of the network, which is told of no labels.
            t: Where samplers start.
            rtol: Tolerance, where it is found step by step.
        """

    def keep(self, x0: Tensor, free: Tensor, start: Start) -> tuple[Start, Wrap]:
        """How to start, and what a sampler sees, so that samples are x0 [*size] where they are not free, bool."""

    def guided(
        self, frame: Any, label: Tensor, guidance: Guidance, *, clip: bool, doubles: bool
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """What a sampler sees: (x [B, *size], t []) -> what the network says; see `diffusion.guidance.guided`."""

    def seen(self, x: Tensor, schedule: Schedule, t: Tensor) -> Tensor:
        """A state on the way as x0 to look at."""

    def finished(self, x: Tensor) -> Tensor:
        """x0 of a sampler's last state.

        Raises:
            NonFiniteError: It is none.
        """

    def trial(self, size: tuple[int, ...]) -> Trial:
        """What a sampler of x0 [*size] is tried on."""


def finite(x: Tensor) -> Tensor:
    """A sampler's last state in single precision.

    Raises:
        NonFiniteError: A value is not finite.
    """
    x = x.float()
    if not x.isfinite().all():
        raise NonFiniteError(NOT_FINITE)
    return x


def check_plain(weighting: object, density: object, why: str) -> None:
    """Require the weighting and the density of times that stand for none.

    Args:
        weighting: The row, perhaps with its settings bound.
        density: The same of times.
        why: No other goes; `{key}` is the group's name.

    Raises:
        UsageError: Another one was chosen.
    """
    for key, row, only in (("weighting", weighting, unit), ("time", density, uniform)):
        require(getattr(row, "func", row) is only, f"{why.format(key=key)}: {key}={only.__name__}")
