"""The table of objectives, and the batch that they learn from."""

from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from diffgen.core.registry import Table
from diffgen.diffusion.denoiser import Denoiser
from diffgen.diffusion.weightings import Weighting

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
    """

    x0: Tensor
    label: Tensor
    t: Tensor
    z: Tensor
    augment: Tensor | None = None

    def part(self, start: int, stop: int) -> "Batch":
        """Examples start .. stop - 1."""
        return Batch(*(None if values is None else values[start:stop] for values in self))  # type: ignore[arg-type]


class Objective(Protocol):
    """What is learned. It keeps nothing from one batch to the next."""

    samplers: ClassVar[Table]
    """What walks back from its noise."""

    def noise(self, out: Tensor, generator: torch.Generator) -> Tensor:
        """Fill `out` [*size] or [B, *size] with noise, in training and in sampling; returns it."""

    def loss(self, denoiser: Denoiser, weighting: Weighting, batch: Batch) -> Tensor:
        """The loss of each example, [B].

        Args:
            denoiser: The network in its frame.
            weighting: (alpha, sigma, c_out) -> weight, [B] each.
            batch: What to learn from.
        """
