"""Exponential moving average of the weights, with its length given in images seen, not in steps."""

import torch
from torch import Tensor, nn


class EMA:
    """Averaged copies of a model's parameters.

    The decay for a step of `batch` images is 0.5^(batch / h), with half-life h = min(halflife, ramp * images seen):
    early on the average forgets faster, so that it never drags the initial weights along (Karras et al. 2022, F.2).
    """

    def __init__(self, model: nn.Module, averaged: nn.Module, *, halflife: float, ramp: float) -> None:
        """Average `model` into `averaged`, a module of the same structure.

        Args:
            model: The network in training.
            averaged: Holds the averages, e.g. a deep copy.
            halflife: In images.
            ramp: Half-life as a share of the images seen, while that is shorter; in (0, 1].
        """
        self.halflife, self.ramp = halflife, ramp
        self.sources: list[Tensor] = [p.detach() for p in model.parameters()]
        self.averages: list[Tensor] = [p.detach() for p in averaged.parameters()]
        self.buffers = list(zip(averaged.buffers(), model.buffers(), strict=True))

    def decay(self, images_seen: int, batch: int) -> float:
        """Weight of the old average in the step that ends at `images_seen`."""
        return 0.5 ** (batch / min(self.halflife, max(self.ramp * images_seen, 1e-9)))

    @torch.no_grad()
    def update(self, images_seen: int, batch: int) -> None:
        """Take the step that ends at `images_seen` into the average, in place."""
        torch._foreach_lerp_(self.averages, self.sources, 1 - self.decay(images_seen, batch))
        for average, source in self.buffers:  # statistics are not averaged again
            average.copy_(source)
