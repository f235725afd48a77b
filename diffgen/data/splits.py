"""What is trained on and what is held out from it."""

from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from diffgen.core.errors import DataError
from diffgen.core.randomness import generator
from diffgen.data.base import Source
from diffgen.data.kinds import Kind
from diffgen.data.places import LeftOut
from diffgen.data.survey import several

NOTHING_HELD_OUT: dict[str, Any] = {"held_out": None, "held_out_seed": 0}
"""What the config of a data set without a split of its own says where nothing is held out from it."""

By = Literal["split", "share", "place"]
"""What divides a data set: its own splits, a share that is held out, or another place of examples."""


class Splits:
    """The examples that a model is trained on, and those that are held out from training to judge it."""

    def __init__(self, train: Source, held_out: Callable[[], Source | None], by: By = "split") -> None:
        """Put them together.

        Args:
            train: To train on.
            held_out: Makes the others when they are first asked for; None where there are none.
            by: What divides them.
        """
        self.train, self._held_out, self.by = train, held_out, by

    def known_as(self, kind: Kind) -> "Splits":
        """The same examples, known as another kind that stores them alike."""
        return Splits(self.train.of(kind), lambda: self.test.of(kind) if self.test else None, self.by)

    @classmethod
    def of(cls, train: Source, test: Source | None, by: By = "split") -> "Splits":
        """Both, as they are."""
        return cls(train, lambda: test, by)

    @cached_property
    def test(self) -> Source | None:
        """The examples that are held out, or None."""
        return self._held_out()

    @property
    def left_out(self) -> list[LeftOut]:
        """What was found and is not used, in both places."""
        others = self.test.left_out if self.by == "place" and self.test else ()
        return [*self.train.left_out, *(LeftOut(f"held out: {name}", reason) for name, reason in others)]


def held_out(
    size: int, share: float, seed: int, groups: Tensor | None = None, what: str = "example"
) -> tuple[Tensor, Tensor]:
    """Which of so many examples are trained on, and which are held out: a function of the seed.

    Args:
        size: How many there are.
        share: Of them to hold out, in (0, 1); at least one is.
        seed: Of the choice.
        groups: Of each example, int64 [size]; a share of these is held out, each whole; None: each is alone.
        what: What is counted, one of them, for sentences.

    Returns:
        The numbers of both, each in rising order.

    Raises:
        DataError: Nothing would be left to train on.
    """
    if groups is not None:
        numbers, whose = groups.unique(return_inverse=True)
        kept, apart = held_out(len(numbers), share, seed, what="film")
        return (*(torch.isin(whose, chosen).nonzero()[:, 0] for chosen in (kept, apart)),)  # type: ignore[return-value]
    count = max(1, round(share * size))
    if count >= size:
        raise DataError(f"dataset.held_out={share:g} of {several(size, what)} leaves none to train on")
    order = torch.randperm(size, generator=generator("cpu", seed, "held_out"))
    return order[count:].sort().values, order[:count].sort().values
