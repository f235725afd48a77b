"""What is trained on and what is held out from it."""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from diffgen.core.errors import DataError
from diffgen.core.randomness import generator
from diffgen.data.base import Source


class Splits:
    """The examples that a model is trained on, and those that are held out from training to judge it."""

    def __init__(self, train: Source, held_out: Callable[[], Source | None], *, chosen: bool = False) -> None:
        """Put them together.

        Args:
            train: To train on.
            held_out: Makes the others when they are first asked for; None where there are none.
            chosen: Whether the user chose them, so that they are not the data set's own.
        """
        self.train, self._held_out, self.chosen = train, held_out, chosen

    @classmethod
    def of(cls, train: Source, test: Source | None, *, chosen: bool = False) -> "Splits":
        """Both, as they are."""
        return cls(train, lambda: test, chosen=chosen)

    @cached_property
    def test(self) -> Source | None:
        """The examples that are held out, or None."""
        return self._held_out()


def held_out(size: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Which of so many examples are trained on, and which are held out: a function of the seed.

    Args:
        size: How many there are.
        share: Of them to hold out, in (0, 1); at least one is.
        seed: Of the choice.

    Returns:
        The numbers of both, each in rising order.

    Raises:
        DataError: Nothing would be left to train on.
    """
    count = max(1, round(share * size))
    if count >= size:
        raise DataError(f"dataset.held_out={share:g} of {size} examples leaves none to train on")
    order = torch.randperm(size, generator=generator("cpu", seed, "held_out"))
    return order[count:].sort().values, order[:count].sort().values
